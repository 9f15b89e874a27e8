;; A `lora` that answers rank 8, scaling 1 and no places: honest for an adapter of no tensors.
(func $admit (param i32 i32 i32 i32 i32 i32 i32 i32) (param i32 i32) (param i32 i32) (param i32 i32) (result i32)
  (i32.store (i32.const 712) (i32.const 0))
  (i32.store (i32.const 716) (i32.const 8))
  (f32.store (i32.const 720) (f32.const 1))
  (i64.store (i32.const 724) (i64.const 0))
  (i32.const 712))
(export "patchhost:patch/lora@0.1.0#admit" (func $admit))
