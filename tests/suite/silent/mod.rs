//! Nothing is silent: what a patch says a second time, where it puts tensors, which weights it lets pass.

mod mask;
mod non_finite;
mod placements;
mod steady;

use std::sync::Arc;

use patchhost::live::{LiveModel, LiveOptions};
use patchhost::patch::{Attachments, Candidate, Description, Ledger, Phase, Reviewing, Sandbox, Terms};
use patchhost::trust::Policy;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::{Engine, EngineOptions};

use crate::hostile::wat;
use crate::live::{Rig, me};
use crate::support::data;

/// A row of a [`loader`]: from so many questions on, this tensor goes there.
pub struct Row {
    pub name: String,
    pub target: String,
    pub slot: u8,
    pub expert: Option<u32>,
    pub transposed: bool,
    pub after: u32,
}

/// Numbers of the slots in `loader-map.wit`.
pub const SLOTS: [&str; 10] = ["whole", "w1", "w2", "w3", "w13", "q", "k", "v", "gate", "up"];

impl Row {
    pub fn new(name: &str, target: &str, slot: &str) -> Self {
        let slot = SLOTS.iter().position(|s| *s == slot).unwrap() as u8;
        Self { name: name.into(), target: target.into(), slot, expert: None, transposed: false, after: 0 }
    }

    pub fn after(self, after: u32) -> Self {
        Self { after, ..self }
    }
}

/// A loader map that places the tensors of these rows (a later row wins) and leaves every other one to the host.
pub fn loader(rows: &[Row]) -> Vec<u8> {
    loader_with(rows, "")
}

/// The same for Llama only: its probe does not ask it about the bundled model, whose experts it would have to place.
pub fn llama_loader(rows: &[Row]) -> Vec<u8> {
    let target = r#"(data $own_architecture (i32.const 3072) "\08\0c\00\00\10\00\00\00LlamaForCausalLM")
(data $target (i32.const 320) "\50\00\00\00\09\00\00\00\60\00\00\00\01\00\00\00\00\0c\00\00\01\00\00\00")"#;
    loader_with(rows, target)
}

fn loader_with(rows: &[Row], more: &str) -> Vec<u8> {
    const STRINGS: usize = 4096;
    const TABLE: usize = 36_864;
    let (mut strings, mut table) = (Vec::new(), Vec::new());
    let mut put = |text: &str| {
        let at = STRINGS + strings.len();
        strings.extend_from_slice(text.as_bytes());
        [at as u32, text.len() as u32]
    };
    for row in rows {
        let [name, target] = [put(&row.name), put(&row.target)];
        let expert = [u32::from(row.expert.is_some()), row.expert.unwrap_or_default()];
        let words = [name, target, [row.slot.into(), row.transposed.into()], expert, [row.after, 0]];
        table.extend(words.concat().iter().flat_map(|word| word.to_le_bytes()));
    }
    assert!(STRINGS + strings.len() <= TABLE && TABLE + table.len() <= 65_536, "too many rows");
    let bytes = |bytes: &[u8]| bytes.iter().map(|b| format!("\\{b:02x}")).collect::<String>();
    let fields = format!(
        r#"{more}
(data $own_strings (i32.const {STRINGS}) "{strings}")
(data $own_table (i32.const {TABLE}) "{table}")
(global $calls (mut i32) (i32.const 0))
(func $same (param $p i32) (param $q i32) (param $n i32) (result i32) (local $i i32)
  (loop $next
    (if (i32.ge_u (local.get $i) (local.get $n)) (then (return (i32.const 1))))
    (if (i32.ne (i32.load8_u (i32.add (local.get $p) (local.get $i))) (i32.load8_u (i32.add (local.get $q) (local.get $i))))
      (then (return (i32.const 0))))
    (local.set $i (i32.add (local.get $i) (i32.const 1)))
    (br $next))
  (unreachable))
(func $resolve (param i32 i32 i32 i32 i32 i32 i32 i32) (param i32 i32) (param $tensors i32) (param $count i32) (result i32)
  (local $out i32) (local $i i32) (local $t i32) (local $e i32) (local $row i32)
  (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
  (local.set $out (call $realloc (i32.const 0) (i32.const 0) (i32.const 4) (i32.mul (local.get $count) (i32.const 28))))
  (memory.fill (local.get $out) (i32.const 0) (i32.mul (local.get $count) (i32.const 28)))
  (block $done (loop $tensor
    (br_if $done (i32.ge_u (local.get $i) (local.get $count)))
    (local.set $t (i32.add (local.get $tensors) (i32.mul (local.get $i) (i32.const 24))))
    (local.set $e (i32.add (local.get $out) (i32.mul (local.get $i) (i32.const 28))))
    (local.set $row (i32.const {TABLE}))
    (block $told (loop $rows
      (br_if $told (i32.ge_u (local.get $row) (i32.const {end})))
      (if (i32.and
            (i32.and
              (i32.gt_u (global.get $calls) (i32.load offset=32 (local.get $row)))
              (i32.eq (i32.load offset=4 (local.get $t)) (i32.load offset=4 (local.get $row))))
            (call $same (i32.load (local.get $t)) (i32.load (local.get $row))
              (select (i32.load offset=4 (local.get $row)) (i32.const 0)
                (i32.eq (i32.load offset=4 (local.get $t)) (i32.load offset=4 (local.get $row))))))
        (then
          (i32.store8 (local.get $e) (i32.const 2))
          (i32.store offset=4 (local.get $e) (i32.load offset=8 (local.get $row)))
          (i32.store offset=8 (local.get $e) (i32.load offset=12 (local.get $row)))
          (i32.store8 offset=12 (local.get $e) (i32.load offset=16 (local.get $row)))
          (i32.store8 offset=24 (local.get $e) (i32.load offset=20 (local.get $row)))
          (i32.store8 offset=16 (local.get $e) (i32.load offset=24 (local.get $row)))
          (i32.store offset=20 (local.get $e) (i32.load offset=28 (local.get $row)))))
      (local.set $row (i32.add (local.get $row) (i32.const 40)))
      (br $rows)))
    (local.set $i (i32.add (local.get $i) (i32.const 1)))
    (br $tensor)))
  (i32.store (i32.const 696) (i32.const 0))
  (i32.store (i32.const 700) (local.get $out))
  (i32.store (i32.const 704) (local.get $count))
  (i32.const 696))"#,
        strings = bytes(&strings),
        table = bytes(&table),
        end = TABLE + table.len(),
    );
    wat::component("loader-patch", &fields)
}

/// The decision of a text guest that quantizes with blocks of this size and these edges (0 strict, 1 propagate-nan, 2 ignore-nan).
pub fn quantizer(block: [u8; 2], edges: u8) -> String {
    let [rows, cols] = block;
    format!(
        r#"(data $decision (i32.const 400) "\01\00\00\00\{rows:02x}\00\00\00\{cols:02x}\00\00\00\00\00\00\00\70\00\00\00\0a\00\00\00\00\01\{edges:02x}\00\ff\e6\db\2e\00\00\00\00\23\51\7b\2a\00\00\00\00\00\00\00\00\01\00\00\00\80\00\00\00\04\00\00\00\88\00\00\00\03\00\00\00")"#
    )
}

/// A live model with these components, in the given order, and nothing else. It has loaded its weights.
pub fn rig(model: &str, components: &[(&str, &[u8])], policy: &str) -> Rig {
    let policy = Policy::parse(policy).unwrap();
    let folder = data("oracle").join(model);
    let engine = Engine::open(&folder, EngineOptions::default()).unwrap();
    let sandbox = Sandbox::new(2).unwrap();
    let site = patchhost::patch::Site::from(&sandbox);
    let mut start = Attachments::new(Description::patchhost(&engine.info().architecture));
    for (name, bytes) in components {
        let candidate = Candidate::from_bytes(name, bytes.to_vec()).unwrap();
        let patch = Reviewing::default().start(candidate, &Terms::default(), &site).unwrap();
        start.attach(patch, Phase::EngineUp).unwrap();
    }
    let mut options = LiveOptions::default();
    options.hooks.rules = policy.refit_rules();
    let live = LiveModel::new(engine, &start, site, policy.rules(), Ledger::in_memory(), options).unwrap();
    let checkpoint = Checkpoint::open(&folder).unwrap();
    live.load(checkpoint.clone(), &me(), &|_, _, _| {}).unwrap();
    Rig { live: Arc::new(live), checkpoint }
}

/// The expert tensors of the oracle `qwen3_moe`, where they belong.
pub fn experts() -> Vec<Row> {
    let mut rows = Vec::new();
    for layer in 0..2 {
        for expert in 0..4 {
            for (leaf, fused, slot) in
                [("gate_proj", "w13_weight", "w1"), ("up_proj", "w13_weight", "w3"), ("down_proj", "w2_weight", "w2")]
            {
                let block = format!("model.layers.{layer}.mlp.experts");
                let row = Row::new(&format!("{block}.{expert}.{leaf}.weight"), &format!("{block}.{fused}"), slot);
                rows.push(Row { expert: Some(expert), ..row });
            }
        }
    }
    rows
}
