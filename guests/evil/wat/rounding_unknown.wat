;; world: quant-patch
;; Answers an activation rule with a rounding that the enum does not have.
(func $activation (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
  (i32.store8 (i32.const 560) (i32.const 1))
  (f32.store (i32.const 564) (f32.const 1e-10))
  (f32.store (i32.const 568) (f32.const 448))
  (i32.store8 (i32.const 572) (i32.const 9))
  (i32.const 560))
