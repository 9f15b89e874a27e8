//! Components that are cheap to write and dear to compile: `Bomb`s of less than the largest file. Each is made here, not
//! kept: they are all repetition.

use super::{child, wat};

/// One bomb: its name and its bytes.
pub type Bomb = (&'static str, Vec<u8>);

fn quant(fields: &str) -> Vec<u8> {
    wat::component("quant-patch", fields)
}

/// A function of `params` i32 parameters, `locals` locals and `body`.
fn function(params: usize, locals: usize, body: &str) -> String {
    format!("(func (param {}) (local {}) {body})", "i32 ".repeat(params), "i32 ".repeat(locals))
}

fn lines(count: usize, line: impl Fn(usize) -> String) -> String {
    (0..count).map(line).collect::<Vec<_>>().join("\n")
}

/// Bodies: control flow, live values, operations that grow in the compiler.
pub fn bodies() -> Vec<Bomb> {
    // Uses every local in a block that a branch may reach from anywhere: all of them live all the time.
    let uses = |locals: usize, at: usize| {
        format!("(local.set {at} (i32.add (local.get {at}) (local.get {})))", (at * 7 + 1) % locals)
    };
    let live = |params: usize, locals: usize, blocks: usize| {
        let all = params + locals;
        let body =
            lines(blocks, |i| format!("(loop (br_if 0 (i32.eqz (local.get {}))) {})", i % all, uses(all, i % all)));
        function(params, locals, &format!("{body} {}", lines(all, |i| uses(all, i))))
    };
    let branches = |locals: usize, count: usize| {
        let body =
            lines(count, |i| format!("(br_if 0 (local.tee {} (local.get {})))", i % locals, (i * 13 + 5) % locals));
        function(0, locals, &format!("(block {body}) {}", lines(locals, |i| uses(locals, i))))
    };
    let stack = |depth: usize, blocks: usize| {
        let push = lines(depth, |i| format!("local.get {} i32.const {i} i32.add", i % 8));
        let blocks = lines(blocks, |i| {
            format!("(loop (br_if 0 (local.tee {} (i32.add (local.get {}) (i32.const 1)))))", i % 8, (i + 3) % 8)
        });
        function(8, 0, &format!("{push} {blocks} {} drop", "i32.add ".repeat(depth - 1)))
    };
    let values = |width: usize, blocks: usize| {
        let ty = format!("(type $wide (func (param {0}) (result {0})))", "i32 ".repeat(width));
        let push = lines(width, |i| format!("(i32.add (local.get 0) (i32.const {i}))"));
        let blocks = lines(blocks, |_| "loop (type $wide) local.get 0 br_if 0 end".to_string());
        format!("{ty} (func (param i32) {push} {blocks} {})", "drop ".repeat(width))
    };
    let straight = |op: &str, ty: &str, count: usize, functions: usize| {
        let body = format!("(local.set 0 ({op} (local.get 0) (local.get 1)))").repeat(count);
        lines(functions, |_| format!("(func (param {ty} {ty}) {body})"))
    };
    let calls = |count: usize, functions: usize| {
        let body = "(call_indirect $t (type $f) (local.get 0))".repeat(count);
        format!(
            "(type $f (func)) (table $t 8 8 funcref) {}",
            lines(functions, |_| format!("(func (param i32) {body})"))
        )
    };
    let many = |count: usize, op: &str, functions: usize| {
        lines(functions, |_| format!("(func (param i32) {})", op.repeat(count)))
    };
    let table = |targets: usize, tables: usize| {
        let one = format!("(block (br_table {} (local.get 0)))", "0 ".repeat(targets));
        format!("(func (param i32) {})", one.repeat(tables))
    };
    let ifs = |count: usize| {
        let body =
            "(if (result i32) (local.get 0) (then (i32.const 1)) (else (i32.const 2))) local.set 0 ".repeat(count);
        format!("(func (param i32) {body})")
    };
    vec![
        ("functions", quant(&"(func)".repeat(50_000))),
        ("br_tables", quant(&table(1_000, 200))),
        ("br_tables_below", quant(&table(15, 1_000))),
        ("locals_x_blocks", quant(&live(0, 1_200, 1_200))),
        ("locals_x_blocks_below", quant(&lines(4, |_| live(0, 490, 500)))),
        ("params_x_blocks", quant(&live(990, 0, 4_000))),
        ("params_x_blocks_many", quant(&lines(8, |_| live(990, 0, 4_000)))),
        ("locals_x_branches", quant(&branches(1_990, 25_000))),
        ("locals_x_branches_many", quant(&lines(3, |_| branches(1_990, 25_000)))),
        ("stack_x_blocks", quant(&stack(10_000, 10_000))),
        ("stack_x_blocks_many", quant(&lines(4, |_| stack(8_000, 10_000)))),
        ("wide_blocks", quant(&values(990, 10_000))),
        ("wide_blocks_many", quant(&values(990, 30_000))),
        ("nesting", quant(&format!("(func {} {})", "block ".repeat(2_000), "end ".repeat(2_000)))),
        ("nan_canon", quant(&straight("f32x4.add", "v128", 28_000, 4))),
        ("nan_canon_f64", quant(&straight("f64.mul", "f64", 28_000, 4))),
        ("division", quant(&straight("i64.rem_s", "i64", 28_000, 4))),
        ("simd_shifts", quant(&straight("i64x2.mul", "v128", 25_000, 4))),
        ("indirect_calls", quant(&calls(40_000, 4))),
        ("memory_grows", quant(&many(40_000, "(drop (memory.grow (local.get 0)))", 4))),
        ("memory_copies", quant(&many(18_000, "(memory.copy (local.get 0) (local.get 0) (local.get 0))", 4))),
        ("loads", quant(&many(40_000, "(drop (i64.load offset=77777 (local.get 0)))", 3))),
        ("constants", quant(&many(11_000, "(drop (v128.const i64x2 0x123456789abcdef 0x77123456789abcdf))", 4))),
        ("calls", quant(&many(55_000, "(call $forget (local.get 0))", 3))),
        ("calls_below", quant(&many(3_300, "(call $forget (local.get 0))", 3))),
        ("ifs_below", quant(&lines(5, |_| ifs(1_950)))),
        ("branches_many", quant(&lines(10, |_| branches(30, 7_900)))),
        ("branches_below", quant(&lines(4, |_| branches(180, 3_900)))),
        ("operands_below", quant(&lines(4, |_| stack(400, 850)))),
        (
            "selects",
            quant(&lines(4, |_| {
                format!(
                    "(func (param i32 i32) {})",
                    "(local.set 0 (select (local.get 1) (local.get 0) (local.get 1)))".repeat(23_000)
                )
            })),
        ),
        ("ifs", quant(&ifs(21_000))),
        ("ifs_many", quant(&lines(4, |_| ifs(21_000)))),
        (
            "small_functions",
            quant(&lines(3_900, |i| {
                format!("(func (param i32) (result i32) (i32.add (local.get 0) (i32.const {i})))")
            })),
        ),
        (
            "full_functions",
            quant(&lines(3_900, |_| format!("(func (param i32) {})", "(drop (i64.load (local.get 0)))".repeat(30)))),
        ),
    ]
}

/// Modules: what stands beside the code.
pub fn modules() -> Vec<Bomb> {
    let value = |n: usize, digits: u32| {
        (0..digits).map(|d| ["i32", "i64", "f32", "f64"][n / 4usize.pow(d) % 4]).collect::<Vec<_>>().join(" ")
    };
    let sparse = |modules: usize, pages: usize| {
        let module = format!(
            "(core module $m (memory {pages} {pages}) (data (i32.const 0) \"x\") (data (i32.const {}) \"x\"))",
            pages * 65536 - 1
        );
        module.repeat(modules).replace("$m", "")
    };
    let component = |text: String| ::wat::parse_str(format!("(component {text})")).unwrap();
    vec![
        ("func_types", quant(&lines(60_000, |n| format!("(type (func (param {})))", value(n, 8))))),
        ("wide_types", quant(&lines(900, |n| format!("(type (func (param {} {})))", value(n, 8), "i64 ".repeat(980))))),
        (
            "wide_functions",
            quant(&lines(900, |n| format!("(func (export \"{n}\") (param {} {}))", value(n, 8), "i64 ".repeat(980)))),
        ),
        ("core_exports", quant(&lines(80_000, |n| format!("(export \"{n}\" (func $forget))")))),
        ("elements", quant(&format!("(elem func {})", "$forget ".repeat(300_000)))),
        ("element_segments", quant(&"(elem func $forget)".repeat(90_000))),
        ("data_segments", quant(&"(data \"\")".repeat(90_000))),
        ("active_data", quant(&lines(90_000, |n| format!("(data (i32.const {}) \"x\")", 4096 + n % 1000)))),
        ("globals", quant(&"(global i32 (i32.const 0))".repeat(150_000))),
        (
            "const_chain",
            quant(&format!("(global i32 {} {})", "i32.const 1 ".repeat(200_000), "i32.add ".repeat(199_999))),
        ),
        (
            "const_chains",
            quant(&format!("(global i32 {} {})", "i32.const 1 ".repeat(30), "i32.add ".repeat(29)).repeat(9_000)),
        ),
        ("sparse_memory", quant(r#"(memory $memory (export "memory") 1024 1024) (data (i32.const 16777000) "x")"#)),
        ("sparse_memories", component(sparse(4, 256))),
        ("names", quant(&lines(3_000, |n| format!("(func $n{n}{})", "x".repeat(290))))),
        (
            "imports",
            component(format!("(core module $m {})", lines(50_000, |n| format!("(import \"a\" \"{n}\" (func))")))),
        ),
        ("custom_sections", component("(@custom \"x\" \"\")".repeat(200_000))),
    ]
}

/// Components: types and names.
pub fn components() -> Vec<Bomb> {
    let component = |text: String| ::wat::parse_str(format!("(component {text})")).unwrap();
    let things = |body: String, uses: &str| {
        let body = body.replace('\n', " ");
        let wit = format!(";; wit: interface things {{ {body} call: func(a: {uses}); }}\n(func $f (param i32 i32))");
        let flat = format!("{wit}\n(export \"evil:evil/things#call\" (func $f))");
        wat::component("quant-patch", &flat)
    };
    let nested = |depth: usize| format!("{}u8{}", "list<".repeat(depth), ">".repeat(depth));
    let tower = |levels: usize, width: usize| {
        lines(levels, |n| {
            let inner = if n == 0 { "u64".to_string() } else { format!("$t{}", n - 1) };
            format!("(type $t{n} (tuple {}))", format!("{inner} ").repeat(width))
        })
    };
    let bomb = |levels: usize, width: usize| {
        let mut text = format!("(core module $m) {}", "(core instance (instantiate $m))".repeat(width));
        for _ in 1..levels {
            text = format!("(component $c {text}) {}", "(instance (instantiate $c))".repeat(width));
        }
        text
    };
    vec![
        ("nested_components", component(bomb(8, 10))),
        ("flat_instances", component(bomb(1, 9_000))),
        ("shims", component("(component)".repeat(20_000))),
        ("core_modules", component("(core module)".repeat(50_000))),
        ("deep_nesting", component(format!("{}{}", "(component ".repeat(60), ")".repeat(60)))),
        ("type_tower", component(tower(20, 8))),
        ("type_tower_wide", component(tower(3, 60))),
        ("many_types", component("(type (list u8))".repeat(100_000))),
        ("wide_record", component(format!("(type (record {}))", lines(5_000, |n| format!("(field \"f{n}\" u8)"))))),
        (
            "deep_list",
            component(format!("(type $t0 (list u8)) {}", lines(90, |n| format!("(type $t{} (list $t{n}))", n + 1)))),
        ),
        (
            "export_types",
            component(format!("(type $t (list u8)) {}", lines(9_000, |n| format!("(export \"e{n}\" (type $t))")))),
        ),
        ("wit_deep", things(String::new(), &nested(15))),
        ("wit_deeper", things(String::new(), &nested(40))),
        ("wit_flags", things(format!("flags f {{ {} }}", lines(30, |n| format!("a{n},"))), "list<f>")),
        ("wit_enum", things(format!("enum e {{ {} }}", lines(3_000, |n| format!("a{n},"))), "list<e>")),
        (
            "wit_variant",
            things(format!("variant v {{ {} }}", lines(2_000, |n| format!("a{n}(list<string>),"))), "list<v>"),
        ),
    ]
}

/// Those that no cap stops: they are honest-looking code up to the largest file, and compile in good time.
const ACCEPTED: [&str; 19] = [
    "sparse_memory",
    "calls_below",
    "ifs_below",
    "branches_below",
    "operands_below",
    "locals_x_blocks_below",
    "nan_canon",
    "nan_canon_f64",
    "division",
    "simd_shifts",
    "constants",
    "selects",
    "small_functions",
    "full_functions",
    "names",
    "wit_deep",
    "wit_flags",
    "wit_enum",
    "wit_variant",
];

/// `explain` loads a component through every stage, and asks it about the bundled model.
fn try_all(bombs: Vec<Bomb>) {
    let place = child::Place::new();
    let honest = place.file("honest", &wat::honest("quant-patch"));
    let honest = child::run("honest", ["explain", "--component", &honest]);
    assert_eq!(honest.ran.code, 0, "{}", honest.ran.stderr);
    let mut wrong = Vec::new();
    for (name, bytes) in bombs {
        let component = place.file(name, &bytes);
        let ended = child::run(name, ["explain", "--component", &component]);
        let text = match ended.ran.code {
            0 => "accepted".to_string(),
            _ => ended.ran.refused(1, place.folder.path()),
        };
        child::plain(name, &text);
        let expected = match name {
            _ if ACCEPTED.contains(&name) => text == "accepted",
            _ => text.contains("  why: PH") && text.len() < 4096,
        };
        let grown = ended.peak_kib.saturating_sub(honest.peak_kib);
        if !expected || grown > child::SLACK_KIB {
            wrong.push(format!("{name}: {grown} KiB more than an honest patch; {text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn bodies_that_are_dear_to_compile() {
    try_all(bodies());
}

#[test]
fn modules_that_are_dear_to_compile() {
    try_all(modules());
}

#[test]
fn components_that_are_dear_to_compile() {
    try_all(components());
}
