;; world: quant-patch
;; Copies half of its memory for ever in `describe`: few instructions, much work. Fuel counts the bytes.
(memory $memory (export "memory") 1024 1024)
(func $describe (result i32)
  (loop $more
    (memory.copy (i32.const 0) (i32.const 0x2000000) (i32.const 0x2000000))
    (br $more))
  (i32.const 256))
