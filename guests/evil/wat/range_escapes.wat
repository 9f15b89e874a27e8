;; world: quant-patch
;; The versions that it is for are an escape sequence.
(data $target (i32.const 320) "\50\00\00\00\09\00\00\00" "\00\08\00\00\09\00\00\00" "\00\00\00\00\00\00\00\00")
(data $text (i32.const 2048) "\1b[2Jroot\07")
