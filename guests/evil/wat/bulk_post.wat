;; world: quant-patch
;; Fills its memory for ever after it was asked for scales. Fuel counts the bytes.
(memory $memory (export "memory") 1024 1024)
(func $post_scales (param i32)
  (loop $more
    (memory.fill (i32.const 0) (i32.const 1) (i32.const 0x4000000))
    (br $more)))
