;; world: host-view
;; Answers every question with the bytes that it was last given: `scales` takes them as its list of amax, and all other
;; functions answer the address where they lie. So whoever asks decides what the host reads, down to the last bit: any
;; value, and any that is none. The fuzz target `answers` asks it.
(memory $memory (export "memory") 4 1024)
(global $heap (mut i32) (i32.const 131072))
(func $forget (param i32) (global.set $heap (i32.const 131072)))
(func $scales (param i32 i32 i32 i32 i32 i32 i32) (param $amax i32) (param $count i32) (result i32)
  (memory.copy (i32.const 65536) (local.get $amax) (i32.shl (local.get $count) (i32.const 2)))
  (call $honest (local.get $amax) (local.get $count)))
(func $activation (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32) (i32.const 65536))
(func $decide (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) (i32.const 65536))
(func $moments (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) (i32.const 65536))
(func $activation_scales (param i32 i32) (result i32) (i32.const 65536))
(func $panel_scales (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) (i32.const 65536))
(func $passes (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) (i32.const 65536))
(func $resolve (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) (i32.const 65536))
(func $admit (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) (i32.const 65536))
(func $masked (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) (i32.const 65536))
(func $begin (param i32 i32 i32 i32 i32) (result i32) (i32.const 65536))
(func $tensors (param i32 i32) (result i32) (i32.const 65536))
(func $finish (param i32) (result i32) (i32.const 65536))
(func $export_state (result i32) (i32.const 65536))
