;; world: quant-patch
;; Writes escape sequences, line ends and direction marks into every text about itself. Harmless once they are escaped.
(data $info (i32.const 256)
  "\10\00\00\00\09\00\00\00" "\20\00\00\00\05\00\00\00" "\00\08\00\00\20\00\00\00" "\00\08\00\00\20\00\00\00"
  "\01\00\00\00\00\08\00\00\20\00\00\00" "\01\00\00\00\00\08\00\00\20\00\00\00" "\40\01\00\00\01\00\00\00")
(data $text (i32.const 2048) "\1b[2J\1b]0;root\07\0d\0aerror: ok\e2\80\ae\c2\9b\08\08\00")
