;; world: quant-patch
;; Describes 16 targets that share one list of 8,000 architectures that share one name of 1,000 bytes: 300 KB in the guest,
;; 130 MB on the host.
(memory $memory (export "memory") 8 1024)
(data $info (i32.const 256)
  "\10\00\00\00\09\00\00\00" "\20\00\00\00\05\00\00\00" "\30\00\00\00\0a\00\00\00" "\40\00\00\00\06\00\00\00"
  "\00\00\00\00\00\00\00\00\00\00\00\00" "\00\00\00\00\00\00\00\00\00\00\00\00" "\00\00\01\00\10\00\00\00")
(func $describe (result i32)
  (local $i i32) (local $at i32)
  (loop $targets
    (local.set $at (i32.add (i32.const 65536) (i32.mul (local.get $i) (i32.const 24))))
    (i64.store (local.get $at) (i64.const 0x900000050))
    (i64.store offset=8 (local.get $at) (i64.const 0x100000060))
    (i32.store offset=16 (local.get $at) (i32.const 131072))
    (i32.store offset=20 (local.get $at) (i32.const 8000))
    (local.set $i (i32.add (local.get $i) (i32.const 1)))
    (br_if $targets (i32.lt_u (local.get $i) (i32.const 16))))
  (local.set $i (i32.const 0))
  (loop $names
    (local.set $at (i32.add (i32.const 131072) (i32.shl (local.get $i) (i32.const 3))))
    (i32.store (local.get $at) (i32.const 262144))
    (i32.store offset=4 (local.get $at) (i32.const 1000))
    (local.set $i (i32.add (local.get $i) (i32.const 1)))
    (br_if $names (i32.lt_u (local.get $i) (i32.const 8000))))
  (memory.fill (i32.const 262144) (i32.const 65) (i32.const 1000))
  (i32.const 256))
