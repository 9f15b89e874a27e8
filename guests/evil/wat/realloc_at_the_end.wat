;; world: quant-patch
;; `cabi_realloc` gives an address whose last bytes lie outside of the memory.
(func $realloc (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
  (i32.sub (i32.shl (memory.size) (i32.const 16)) (i32.const 4)))
(func $decide (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
  (i32.store (i32.const 548) (i32.const 400))
  (i32.store (i32.const 552) (i32.const 1))
  (i32.const 544))
