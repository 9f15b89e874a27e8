;; world: quant-patch
;; Answers a list whose length times its element size is four, if one counts in 32 bits.
(func $scales (param i32 i32 i32 i32 i32 i32 i32) (param $amax i32) (param $count i32) (result i32)
  (i32.store8 (i32.const 576) (i32.const 0)) (i32.store (i32.const 580) (i32.const 65536)) (i32.store (i32.const 584) (i32.const 0x40000001)) (i32.const 576))
