;; world: quant-patch
;; wit: interface things { resource thing { constructor(); } }
;; The destructor of its resource makes and drops the next one, without end.
(import "[export]evil:evil/things" "[resource-new]thing" (func $new (param i32) (result i32)))
(import "[export]evil:evil/things" "[resource-drop]thing" (func $drop (param i32)))
(export "evil:evil/things#[constructor]thing" (func $make))
(export "evil:evil/things#[dtor]thing" (func $dtor))
(func $make (result i32) (call $new (i32.const 1)))
(func $dtor (param i32) (call $drop (call $new (i32.const 1))))
(func $describe (result i32)
  (call $drop (call $new (i32.const 1)))
  (i32.const 256))
