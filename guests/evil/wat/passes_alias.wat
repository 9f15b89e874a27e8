;; world: layout-patch
;; Answers one list of a million passes for every tensor: one megabyte in the guest, one for each tensor on the host.
(memory $memory (export "memory") 32 1024)
(func $passes (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (param $tensors i32) (param $count i32) (result i32)
  (local $out i32) (local $i i32)
  (local.set $out (call $realloc (i32.const 0) (i32.const 0) (i32.const 4) (i32.shl (local.get $count) (i32.const 3))))
  (loop $next
    (i32.store (i32.add (local.get $out) (i32.shl (local.get $i) (i32.const 3))) (i32.const 0x100000))
    (i32.store offset=4 (i32.add (local.get $out) (i32.shl (local.get $i) (i32.const 3))) (i32.const 1000000))
    (local.set $i (i32.add (local.get $i) (i32.const 1)))
    (br_if $next (i32.lt_u (local.get $i) (local.get $count))))
  (memory.fill (i32.const 0x100000) (i32.const 1) (i32.const 1000000))
  (i32.store (i32.const 680) (i32.const 0))
  (i32.store (i32.const 684) (local.get $out))
  (i32.store (i32.const 688) (local.get $count))
  (i32.const 680))
