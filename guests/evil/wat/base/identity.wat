;; What every patch has: a memory that grows as it must and forgets after each call, `cabi_realloc`, and an honest identity.
;; A file of an attack that defines a field of the same name takes its place.
(memory $memory (export "memory") 2 1024)
(global $heap (mut i32) (i32.const 65536))
(func $realloc (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
  (local $at i32) (local $more i32)
  (local.set $at
    (i32.and
      (i32.add (global.get $heap) (i32.sub (local.get $align) (i32.const 1)))
      (i32.sub (i32.const 0) (local.get $align))))
  (global.set $heap (i32.add (local.get $at) (local.get $size)))
  (local.set $more
    (i32.sub
      (i32.shr_u (i32.add (global.get $heap) (i32.const 65535)) (i32.const 16))
      (memory.size)))
  (if (i32.gt_s (local.get $more) (i32.const 0))
    (then (if (i32.eq (memory.grow (local.get $more)) (i32.const -1)) (then (unreachable)))))
  (local.get $at))
(func $forget (param i32) (global.set $heap (i32.const 65536)))
(export "cabi_realloc" (func $realloc))
(data $strings (i32.const 16)
  "wat-guest\00\00\00\00\00\00\00" "0.1.0\00\00\00\00\00\00\00\00\00\00\00" "misbehaves\00\00\00\00\00\00" "a test\00\00\00\00\00\00\00\00\00\00"
  "patchhost\00\00\00\00\00\00\00" "*\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00" "_scale_inv\00\00\00\00\00\00" "amax\00\00\00\00all")
;; info: name, version, summary, reason, upstream, remove-when, targets
(data $info (i32.const 256)
  "\10\00\00\00\09\00\00\00" "\20\00\00\00\05\00\00\00" "\30\00\00\00\0a\00\00\00" "\40\00\00\00\06\00\00\00"
  "\00\00\00\00\00\00\00\00\00\00\00\00" "\00\00\00\00\00\00\00\00\00\00\00\00" "\40\01\00\00\01\00\00\00")
;; target: engine, versions, architectures
(data $target (i32.const 320) "\50\00\00\00\09\00\00\00" "\60\00\00\00\01\00\00\00" "\00\00\00\00\00\00\00\00")
(func $describe (result i32) (i32.const 256))
(func $configure (param $settings i32) (param $count i32) (result i32) (i32.const 384))
(export "patchhost:patch/identity@0.1.0#describe" (func $describe))
(export "patchhost:patch/identity@0.1.0#configure" (func $configure))
(export "cabi_post_patchhost:patch/identity@0.1.0#describe" (func $post_describe))
(func $post_describe (param i32) (call $forget (i32.const 0)))
