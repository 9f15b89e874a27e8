;; world: quant-patch
;; Answers a list that lies over the very record that describes it.
(func $scales (param i32 i32 i32 i32 i32 i32 i32) (param $amax i32) (param $count i32) (result i32)
  (i32.store8 (i32.const 576) (i32.const 0)) (i32.store (i32.const 580) (i32.const 576)) (i32.store (i32.const 584) (local.get $count)) (i32.const 576))
