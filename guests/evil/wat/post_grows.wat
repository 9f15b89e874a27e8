;; world: quant-patch
;; Takes all the memory that it can get after it was asked for scales.
(memory $memory (export "memory") 2)
(func $post_scales (param i32)
  (loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))))
