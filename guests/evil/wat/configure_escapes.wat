;; world: quant-patch
;; Refuses its settings with 60 KB of escape sequences: each byte is six when it is escaped.
(func $configure (param i32 i32) (result i32)
  (memory.fill (i32.const 4096) (i32.const 27) (i32.const 60000))
  (i32.store8 (i32.const 384) (i32.const 1))
  (i32.store (i32.const 388) (i32.const 4096))
  (i32.store (i32.const 392) (i32.const 60000))
  (i32.const 384))
