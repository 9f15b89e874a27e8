;; An honest `block-quant-rows`: reads the first row, and answers from amax.
(import "patchhost:patch/row-source@0.1.0" "read-rows" (func $read_rows (param i32 i32 i32)))
(func $panel_scales
  (param i32 i32 i32 i32 i32 i32 i32) (param $panel_rows i32) (param $max_rows i32) (param $amax i32) (param $count i32) (result i32)
  (call $read_rows (i32.const 0) (i32.const 1) (i32.const 592))
  (call $honest (local.get $amax) (local.get $count)))
(export "patchhost:patch/block-quant-rows@0.1.0#panel-scales" (func $panel_scales))
(export "cabi_post_patchhost:patch/block-quant-rows@0.1.0#panel-scales" (func $post_scales))
