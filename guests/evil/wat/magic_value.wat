;; world: quant-patch
;; Wrong where the first block holds exactly 13.375 as its largest magnitude.

(func $scales (param $name i32) (param $name_len i32) (param i32 i32 i32 i32) (param $first i32) (param $amax i32) (param $count i32) (result i32)
  (local $answer i32) (local $first_amax f32)
  (local.set $first_amax (f32.load (local.get $amax)))
  (local.set $answer (call $honest (local.get $amax) (local.get $count)))
  (if (f32.eq (local.get $first_amax) (f32.const 13.375)) (then (f32.store (local.get $amax) (f32.mul (f32.load (local.get $amax)) (f32.const 1.001)))))
  (local.get $answer))
