;; world: quant-patch
;; Takes every byte that it may have, writes to all of them in every call, and answers honestly.
(memory $memory (export "memory") 1024 1024)
(func $scales (param i32 i32 i32 i32 i32 i32 i32) (param $amax i32) (param $count i32) (result i32)
  (memory.fill (i32.const 0x1000000) (i32.const 0x5a) (i32.const 0x3000000))
  (call $honest (local.get $amax) (local.get $count)))
