;; world: quant-patch
;; Never comes to an end of its start function.
(func $spin (loop $more (br $more)))
(start $spin)
