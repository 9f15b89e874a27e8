;; world: quant-patch
;; `cabi_realloc` takes all the memory that it can get.
(memory $memory (export "memory") 2)
(func $realloc (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
  (loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) (i32.const 65536))
(func $decide (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
  (i32.store (i32.const 548) (i32.const 400))
  (i32.store (i32.const 552) (i32.const 1))
  (i32.const 544))
