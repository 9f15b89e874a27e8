;; world: quant-patch
;; `cabi_realloc` copies memory for ever. Fuel counts the bytes.
(func $realloc (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
  (drop (memory.grow (i32.const 512))) (loop $more (memory.fill (i32.const 65536) (i32.const 0) (i32.const 0x1000000)) (br $more)) (i32.const 0))
(func $decide (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
  (i32.store (i32.const 548) (i32.const 400))
  (i32.store (i32.const 552) (i32.const 1))
  (i32.const 544))
