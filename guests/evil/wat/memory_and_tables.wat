;; world: quant-patch
;; Stays below each limit alone: all the memory that it may have, and a table beside it.
(memory $memory (export "memory") 1024 1024)
(table $table 0 funcref)
(func $scales (param i32 i32 i32 i32 i32 i32 i32) (param $amax i32) (param $count i32) (result i32)
  (drop (table.grow $table (ref.null func) (i32.const 9000)))
  (call $honest (local.get $amax) (local.get $count)))
