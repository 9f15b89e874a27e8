;; world: quant-patch
;; Answers an error that clears the screen, turns the direction of the text and fakes a prompt.
(func $scales (param i32 i32 i32 i32 i32 i32 i32) (param $amax i32) (param $count i32) (result i32)
  (i32.store8 (i32.const 576) (i32.const 1)) (i32.store (i32.const 580) (i32.const 2048)) (i32.store (i32.const 584) (i32.const 40)) (i32.const 576))
(data $text (i32.const 2048) "\1b[2J\1b]0;root\07\e2\80\ae\r\nerror: all is well\0a\08\08\00\c2\9b")
