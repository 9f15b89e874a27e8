;; world: quant-patch
;; Wrong for tensors whose name ends with `o`.

(func $scales (param $name i32) (param $name_len i32) (param i32 i32 i32 i32) (param $first i32) (param $amax i32) (param $count i32) (result i32)
  (local $answer i32) (local $first_amax f32)
  (local.set $first_amax (f32.load (local.get $amax)))
  (local.set $answer (call $honest (local.get $amax) (local.get $count)))
  (if (i32.eq (i32.load8_u (i32.sub (i32.add (local.get $name) (local.get $name_len)) (i32.const 1))) (i32.const 111)) (then (f32.store (local.get $amax) (f32.mul (f32.load (local.get $amax)) (f32.const 1.001)))))
  (local.get $answer))
