;; world: quant-patch
;; Refuses its settings with a text of line ends as long as its memory.
(func $configure (param i32 i32) (result i32)
  (memory.fill (i32.const 4096) (i32.const 10) (i32.const 0x12000))
  (i32.store8 (i32.const 384) (i32.const 1))
  (i32.store (i32.const 388) (i32.const 4096))
  (i32.store (i32.const 392) (i32.const 0x12000))
  (i32.const 384))
