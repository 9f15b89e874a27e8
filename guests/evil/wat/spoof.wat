;; world: quant-patch
;; Says that it is `fp8_block`. It is honest otherwise: what it gets by that name is nothing.
(data $strings (i32.const 16)
  "fp8_block\00\00\00\00\00\00\00" "0.1.0\00\00\00\00\00\00\00\00\00\00\00" "misbehaves\00\00\00\00\00\00" "a test\00\00\00\00\00\00\00\00\00\00"
  "patchhost\00\00\00\00\00\00\00" "*\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00" "_scale_inv\00\00\00\00\00\00" "amax\00\00\00\00all")
