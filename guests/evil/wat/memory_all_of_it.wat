;; world: quant-patch
;; Takes every byte that it may have, writes to all of its pages in every call, and answers honestly.
(memory $memory (export "memory") 1024 1024)
(func $scales (param i32 i32 i32 i32 i32 i32 i32) (param $amax i32) (param $count i32) (result i32)
  (local $at i32)
  (loop $next
    (i32.store offset=0x80000 (local.get $at) (i32.const 1))
    (local.set $at (i32.add (local.get $at) (i32.const 4096)))
    (br_if $next (i32.lt_u (local.get $at) (i32.const 0x3f00000))))
  (call $honest (local.get $amax) (local.get $count)))
