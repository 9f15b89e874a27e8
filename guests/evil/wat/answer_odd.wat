;; world: quant-patch
;; Answers at an odd address.
(func $scales (param i32 i32 i32 i32 i32 i32 i32) (param $amax i32) (param $count i32) (result i32)
  (i32.const 577))
