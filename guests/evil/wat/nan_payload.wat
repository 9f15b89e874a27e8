;; world: quant-patch
;; Answers a signalling NaN with a payload.

(func $scales (param $name i32) (param $name_len i32) (param i32 i32 i32 i32) (param $first i32) (param $amax i32) (param $count i32) (result i32)
  (local $answer i32) (local $first_amax f32)
  (local.set $first_amax (f32.load (local.get $amax)))
  (local.set $answer (call $honest (local.get $amax) (local.get $count)))
  (i32.store (local.get $amax) (i32.const 0x7fa0beef))
  (local.get $answer))
