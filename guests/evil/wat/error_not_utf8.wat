;; world: quant-patch
;; Answers an error that is not UTF-8.
(func $scales (param i32 i32 i32 i32 i32 i32 i32) (param $amax i32) (param $count i32) (result i32)
  (i32.store8 (i32.const 576) (i32.const 1)) (i32.store (i32.const 580) (i32.const 256)) (i32.store (i32.const 584) (i32.const 64)) (i64.store (i32.const 256) (i64.const 0xfefffefffefffeff)) (i32.const 576))
