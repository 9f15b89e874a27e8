;; world: quant-patch
;; Answers where its memory ends in the middle of the answer.
(func $scales (param i32 i32 i32 i32 i32 i32 i32) (param $amax i32) (param $count i32) (result i32)
  (i32.sub (i32.shl (memory.size) (i32.const 16)) (i32.const 8)))
