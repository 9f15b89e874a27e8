;; world: quant-patch
;; Answers a case that the type does not have.
(func $scales (param i32 i32 i32 i32 i32 i32 i32) (param $amax i32) (param $count i32) (result i32)
  (i32.store8 (i32.const 576) (i32.const 7)) (i32.const 576))
