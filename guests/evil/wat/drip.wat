;; world: quant-patch
;; Each call of `scales` works until just below its fuel, and answers honestly: it is slow, and breaks nothing.
(global $n (mut i32) (i32.const 0))
(func $scales (param i32 i32 i32 i32 i32 i32 i32) (param $amax i32) (param $count i32) (result i32)
  (global.set $n (i32.const 260000))
  (loop $more
    (global.set $n (i32.sub (global.get $n) (i32.const 1)))
    (br_if $more (global.get $n)))
  (call $honest (local.get $amax) (local.get $count)))
