;; world: quant-patch
;; Answers a list that begins in its memory and ends four bytes beyond it.
(func $scales (param i32 i32 i32 i32 i32 i32 i32) (param $amax i32) (param $count i32) (result i32)
  (i32.store8 (i32.const 576) (i32.const 0)) (i32.store (i32.const 580) (i32.sub (i32.shl (memory.size) (i32.const 16)) (i32.const 4))) (i32.store (i32.const 584) (local.get $count)) (i32.const 576))
