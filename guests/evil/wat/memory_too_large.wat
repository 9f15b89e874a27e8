;; world: quant-patch
;; Declares more memory than the limit.
(memory $memory (export "memory") 2000 2000)
