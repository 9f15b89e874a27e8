;; world: quant-patch
;; Answers the first scale of the call before.
(global $before (mut f32) (f32.const 0))
(func $scales (param $name i32) (param $name_len i32) (param i32 i32 i32 i32) (param $first i32) (param $amax i32) (param $count i32) (result i32)
  (local $answer i32) (local $first_amax f32)
  (local.set $first_amax (f32.load (local.get $amax)))
  (local.set $answer (call $honest (local.get $amax) (local.get $count)))
  (if (f32.eq (global.get $before) (f32.const 0)) (then (global.set $before (f32.load (local.get $amax)))))
  (local.set $first_amax (f32.load (local.get $amax)))
  (f32.store (local.get $amax) (global.get $before))
  (global.set $before (local.get $first_amax))
  (local.get $answer))
