;; An honest `block-quant`: scale = amax / 448 for every matrix whose role allows it.
;; decision `quantize`: 128x128 blocks, divide, strict, floor 1e-10, contract amax
(data $decision (i32.const 400)
  "\01\00\00\00" "\80\00\00\00\80\00\00\00" "\00\00\00\00" "\70\00\00\00\0a\00\00\00" "\00\01\00\00"
  "\ff\e6\db\2e" "\00\00\00\00" "\23\51\7b\2a" "\00\00\00\00\00\00\00\00" "\01\00\00\00"
  "\80\00\00\00\04\00\00\00" "\88\00\00\00\03\00\00\00")
;; decision `keep("all")`
(data $keep (i32.const 472) "\00\00\00\00\88\00\00\00\03\00\00\00")
(func $decide
  (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (param $tensors i32) (param $count i32) (result i32)
  (local $out i32) (local $i i32) (local $from i32) (local $role i32)
  (local.set $out (call $realloc (i32.const 0) (i32.const 0) (i32.const 4) (i32.mul (local.get $count) (i32.const 68))))
  (block $done
    (loop $next
      (br_if $done (i32.ge_u (local.get $i) (local.get $count)))
      (local.set $from (i32.add (local.get $tensors) (i32.mul (local.get $i) (i32.const 24))))
      (local.set $role (i32.load8_u offset=20 (local.get $from)))
      (memory.copy
        (i32.add (local.get $out) (i32.mul (local.get $i) (i32.const 68)))
        (select (i32.const 400) (i32.const 472)
          (i32.and
            (i32.eq (i32.load offset=16 (local.get $from)) (i32.const 2))
            (i32.or
              (i32.and (i32.ge_u (local.get $role) (i32.const 2)) (i32.le_u (local.get $role) (i32.const 5)))
              (i32.eq (local.get $role) (i32.const 9)))))
        (i32.const 68))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))
  (i32.store (i32.const 548) (local.get $out))
  (i32.store (i32.const 552) (local.get $count))
  (i32.store8 (i32.const 544) (i32.const 0))
  (i32.const 544))
(func $activation (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
  (i32.store8 (i32.const 560) (i32.const 1))
  (f32.store (i32.const 564) (f32.const 1e-10))
  (f32.store (i32.const 568) (f32.const 448))
  (i32.const 560))
;; ok(the list of scales), written over the list of amax
(func $honest (param $amax i32) (param $count i32) (result i32)
  (local $i i32) (local $at i32)
  (block $done
    (loop $next
      (br_if $done (i32.ge_u (local.get $i) (local.get $count)))
      (local.set $at (i32.add (local.get $amax) (i32.shl (local.get $i) (i32.const 2))))
      (f32.store (local.get $at) (f32.div (f32.max (f32.load (local.get $at)) (f32.const 1e-10)) (f32.const 448)))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))
  (i32.store8 (i32.const 576) (i32.const 0))
  (i32.store (i32.const 580) (local.get $amax))
  (i32.store (i32.const 584) (local.get $count))
  (i32.const 576))
(func $scales
  (param $name i32) (param $name_len i32) (param i32 i32 i32 i32) (param $first i32) (param $amax i32) (param $count i32) (result i32)
  (call $honest (local.get $amax) (local.get $count)))
(func $moments (param i32 i32 i32 i32 i32 i32 i32) (param $amax i32) (param $count i32) (param i32 i32) (result i32)
  (call $honest (local.get $amax) (local.get $count)))
(func $activation_scales (param $amax i32) (param $count i32) (result i32)
  (call $honest (local.get $amax) (local.get $count)))
(func $post_scales (param i32) (call $forget (i32.const 0)))
(func $post_decide (param i32) (call $forget (i32.const 0)))
(export "patchhost:patch/block-quant@0.1.0#decide" (func $decide))
(export "patchhost:patch/block-quant@0.1.0#activation" (func $activation))
(export "patchhost:patch/block-quant@0.1.0#scales" (func $scales))
(export "patchhost:patch/block-quant@0.1.0#scales-with-moments" (func $moments))
(export "patchhost:patch/block-quant@0.1.0#activation-scales" (func $activation_scales))
(export "cabi_post_patchhost:patch/block-quant@0.1.0#decide" (func $post_decide))
(export "cabi_post_patchhost:patch/block-quant@0.1.0#scales" (func $post_scales))
(export "cabi_post_patchhost:patch/block-quant@0.1.0#scales-with-moments" (func $post_scales))
(export "cabi_post_patchhost:patch/block-quant@0.1.0#activation-scales" (func $post_scales))
