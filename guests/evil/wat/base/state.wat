;; An honest `state`: version 1 of the schema `all`, and nothing in it.
(data $snapshot (i32.const 640) "\00\00\00\00" "\88\00\00\00\03\00\00\00" "\01\00\00\00" "\00\00\00\00\00\00\00\00")
(func $export_state (result i32) (i32.const 640))
(func $import_state (param i32 i32 i32 i32 i32) (result i32)
  (i32.store (i32.const 672) (i32.const 0)) (i32.const 672))
(export "patchhost:patch/state@0.1.0#export-state" (func $export_state))
(export "patchhost:patch/state@0.1.0#import-state" (func $import_state))
