;; world: quant-patch
;; wit: interface things { resource thing { constructor(); } }
;; Makes a resource of its own for every unit of fuel: each is an entry of a table in the host, which no limit of memory sees.
(import "[export]evil:evil/things" "[resource-new]thing" (func $new (param i32) (result i32)))
(export "evil:evil/things#[constructor]thing" (func $make))
(func $make (result i32) (call $new (i32.const 1)))
(func $describe (result i32)
  (loop $more (drop (call $new (i32.const 1))) (br $more))
  (i32.const 256))
