;; An honest `logits-mask`: nothing is masked.
(func $masked (param i32 i32 i32 i32 i32 i32 i32 i32) (param $rows i32) (param $vocabulary i32) (result i32)
  (i64.store (i32.const 600) (i64.const 0)) (i32.store (i32.const 608) (i32.const 0))
  (i32.const 600))
(export "patchhost:patch/logits-mask@0.1.0#masked" (func $masked))
