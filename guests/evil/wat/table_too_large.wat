;; world: quant-patch
;; Declares a larger table than the limit.
(table $table 20000 funcref)
