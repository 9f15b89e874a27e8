;; world: quant-rows-patch
;; Reads its first row for ever: the host does the work.
(data $decision (i32.const 400)
  "\01\00\00\00" "\80\00\00\00\80\00\00\00" "\00\00\00\00" "\70\00\00\00\0a\00\00\00" "\02\01\00\00"
  "\ff\e6\db\2e" "\00\00\00\00" "\23\51\7b\2a" "\00\00\00\00\00\00\00\00" "\01\00\00\00"
  "\80\00\00\00\04\00\00\00" "\88\00\00\00\03\00\00\00")
(func $panel_scales (param i32 i32 i32 i32 i32 i32 i32) (param $panel_rows i32) (param $max_rows i32) (param $amax i32) (param $count i32) (result i32)
  (loop $more (call $read_rows (i32.const 0) (i32.const 1) (i32.const 592)) (global.set $heap (i32.const 65536)) (br $more))
  (call $honest (local.get $amax) (local.get $count)))
