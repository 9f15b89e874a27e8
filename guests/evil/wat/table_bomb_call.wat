;; world: quant-patch
;; Doubles a table in a call until it gets no more.
(table $table 1 funcref)
(func $scales (param i32 i32 i32 i32 i32 i32 i32) (param $amax i32) (param $count i32) (result i32)
  (loop $more
    (br_if $more (i32.ne (table.grow $table (ref.null func) (table.size $table)) (i32.const -1))))
  (call $honest (local.get $amax) (local.get $count)))
