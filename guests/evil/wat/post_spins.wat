;; world: quant-patch
;; Never ends after it was asked for scales.
(func $post_scales (param i32)
  (loop $more (br $more)))
