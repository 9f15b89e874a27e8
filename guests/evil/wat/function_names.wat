;; world: quant-patch
;; Traps in a function whose name, which the message shows, is an escape sequence.
(func $scales (@name "\1b[2J\1b]0;root\07\0aerror: all is well") (param i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
  (unreachable))
