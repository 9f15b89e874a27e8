(component
  ;; Exports a type of resources beside what a patch exports nothing of: handles are tables in the host.
  (core module $m
    (func (export "dtor") (param i32) unreachable))
  (core instance $i (instantiate $m))
  (type $r (resource (rep i32) (dtor (func $i "dtor"))))
  (export "r" (type $r)))
