;; world: quant-patch
;; The engine that it is for is an escape sequence: it is for no engine, and the reason says so.
(data $target (i32.const 320) "\00\08\00\00\09\00\00\00" "\60\00\00\00\01\00\00\00" "\00\00\00\00\00\00\00\00")
(data $text (i32.const 2048) "\1b[2Jroot\07")
