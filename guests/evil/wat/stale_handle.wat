;; world: quant-patch
;; wit: interface things { resource thing { constructor(); } }
;; Drops a handle twice.
(import "[export]evil:evil/things" "[resource-new]thing" (func $new (param i32) (result i32)))
(import "[export]evil:evil/things" "[resource-drop]thing" (func $drop (param i32)))
(export "evil:evil/things#[constructor]thing" (func $make))
(func $make (result i32) (call $new (i32.const 1)))
(func $describe (result i32) (local $handle i32)
  (local.set $handle (call $new (i32.const 1)))
  (call $drop (local.get $handle))
  (call $drop (local.get $handle))
  (i32.const 256))
