;; world: quant-patch
;; Follows addresses through all of its memory: each step misses every cache, and costs the fuel of any other load. With the
;; fuel of a large model this takes half a minute.
(memory $memory (export "memory") 1024 1024)
(func $decide (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
  (local $x i32)
  (loop $next
    (local.set $x (i32.add (i32.mul (local.get $x) (i32.const 1664525)) (i32.const 1013904223)))
    (local.set $x (i32.add (local.get $x) (i32.load8_u (i32.shr_u (local.get $x) (i32.const 6)))))
    (br $next))
  (i32.const 544))
