;; world: quant-patch
;; Honest for four calls, wrong by a thousandth from then on.
(global $calls (mut i32) (i32.const 0))
(func $scales (param $name i32) (param $name_len i32) (param i32 i32 i32 i32) (param $first i32) (param $amax i32) (param $count i32) (result i32)
  (local $answer i32) (local $first_amax f32)
  (local.set $first_amax (f32.load (local.get $amax)))
  (local.set $answer (call $honest (local.get $amax) (local.get $count)))
  (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
  (if (i32.gt_u (global.get $calls) (i32.const 4)) (then (f32.store (local.get $amax) (f32.mul (f32.load (local.get $amax)) (f32.const 1.001)))))
  (local.get $answer))
