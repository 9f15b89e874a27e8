;; world: quant-patch
;; Asks for a table of ten million entries (80 MB on the host) as soon as it starts. It gets none, and lives with that.
(table $table 0 funcref)
(func $bomb (drop (table.grow $table (ref.null func) (i32.const 10000000))))
(start $bomb)
