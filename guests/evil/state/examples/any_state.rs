//! Counts its calls and hands the count over; misbehaves in the one way that the setting `fault` names.
//! `masked` masks the id whose number is the count, so that the tests can see which instance answered.

use evil_state::bindings::exports::patchhost::patch::identity::{self, Info, Target};
use evil_state::bindings::exports::patchhost::patch::logits_mask::{self, Range};
use evil_state::bindings::exports::patchhost::patch::refit_observer::{self, Arrival, Verdict};
use evil_state::bindings::exports::patchhost::patch::state::{self, Snapshot};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

static FAULT: OnceLock<String> = OnceLock::new();
static COUNT: AtomicU32 = AtomicU32::new(0);
static WATCHING: AtomicU32 = AtomicU32::new(0);

const SCHEMA: &str = "any-state.count";

fn fault() -> &'static str {
    FAULT.get().map_or("", String::as_str)
}

fn spin() -> ! {
    let mut n = 0u64;
    loop {
        n = std::hint::black_box(n.wrapping_add(1));
    }
}

struct AnyState;

impl identity::Guest for AnyState {
    fn describe() -> Info {
        Info {
            name: "any-state".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Misbehaves on purpose".into(),
            reason: "a test of the host".into(),
            upstream: None,
            remove_when: None,
            targets: vec![Target { engine: "patchhost".into(), versions: ">=0.1, <0.2".into(), architectures: vec![] }],
        }
    }

    fn configure(settings: Vec<(String, String)>) -> Result<(), String> {
        for (key, value) in settings {
            if key != "fault" {
                return Err(format!("unknown setting `{key}`; known is: fault"));
            }
            let _ = FAULT.set(value);
        }
        Ok(())
    }
}

impl logits_mask::Guest for AnyState {
    fn masked(_: logits_mask::Model, rows: u32, _: u32) -> Result<Vec<Range>, String> {
        let count = COUNT.fetch_add(1, Relaxed);
        if fault() == "trap-third" && count == 2 {
            panic!("on purpose");
        }
        let first = count.min(rows - 1);
        Ok(vec![Range { first, end: first + 1 }])
    }
}

impl refit_observer::Guest for AnyState {
    fn begin(_: String, _: Option<Vec<String>>) -> Verdict {
        WATCHING.store(1, Relaxed);
        Verdict::Accept
    }

    fn tensors(_: Vec<Arrival>) -> Verdict {
        if fault() == "trap-tensors" {
            panic!("on purpose");
        }
        match WATCHING.load(Relaxed) {
            0 => Verdict::Veto("another instance saw `begin`".into()),
            _ => Verdict::Accept,
        }
    }

    fn finish(_: u32) -> Verdict {
        COUNT.fetch_add(100, Relaxed);
        match WATCHING.swap(0, Relaxed) {
            0 => Verdict::Veto("another instance saw `begin`".into()),
            _ => Verdict::Accept,
        }
    }
}

impl state::Guest for AnyState {
    fn export_state() -> Result<Snapshot, String> {
        let count = COUNT.load(Relaxed);
        let snapshot = |payload| Ok(Snapshot { schema: SCHEMA.into(), version: 1, payload });
        match fault() {
            "export-trap" => panic!("on purpose"),
            "export-spin" => spin(),
            "export-error" => Err("I keep it\u{1b}[31m".into()),
            "export-over" => snapshot(vec![0; (1 << 20) + 1]),
            "export-huge" => snapshot(vec![0; 40 << 20]),
            "export-long-schema" => Ok(Snapshot { schema: "s".repeat(65), version: 1, payload: vec![] }),
            "export-no-schema" => Ok(Snapshot { schema: String::new(), version: 1, payload: vec![] }),
            "export-most" => snapshot(vec![7; 1 << 20]),
            _ => snapshot(count.to_le_bytes().to_vec()),
        }
    }

    fn import_state(s: Snapshot) -> Result<(), String> {
        match fault() {
            "import-trap" => panic!("on purpose"),
            "import-spin" => spin(),
            "import-huge-error" => return Err("x".repeat(10 << 20)),
            "import-any" => return Ok(()),
            _ => {}
        }
        if s.schema != SCHEMA || s.version != 1 {
            let (schema, version) = (&s.schema, s.version);
            return Err(format!("schema `{schema}` version {version} is unknown; known is `{SCHEMA}` version 1"));
        }
        let bytes = <[u8; 4]>::try_from(s.payload).map_err(|p| format!("{} bytes; a count has 4", p.len()))?;
        COUNT.store(u32::from_le_bytes(bytes), Relaxed);
        Ok(())
    }
}

evil_state::bindings::export!(AnyState with_types_in evil_state::bindings);
