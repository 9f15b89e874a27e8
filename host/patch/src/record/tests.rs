//! Real guests, recorded and asked again.

use super::format::Event;
use super::{Overview, Recorder, Recording, RecordingError, Replay, ReplayReport};
use crate::patch::{Cache, Limits, Patch, Reviewing, Sandbox, Site, Snapshot, Terms, bundled};
use half::bf16;
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::hooks::{
    Arrival, Blocks, Consumer, Dtype, Elem, HookCause, ModelInfo, Role, RowPanel, TensorInfo,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

mod forged;

/// Compiles each component once.
static SANDBOX: LazyLock<Sandbox> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder").keep();
    Sandbox::new(2).expect("an engine").with_cache(Cache::open(&folder))
});
const CONFIG: &str = r#"{"architectures":["Qwen2MoeForCausalLM"]}"#;

/// Where calls are written to a recording.
fn recorded(recorder: &Arc<Recorder>) -> Site {
    Site::from(&*SANDBOX).with_witness(Some(Arc::clone(recorder) as _))
}

fn start(site: impl Into<Site>, name: &str, settings: &[(&str, &str)]) -> Arc<Patch> {
    let candidate = bundled::bundled(name).expect("bundled");
    let started = Reviewing::default().start(candidate, &Terms::settings(settings.iter().copied()), site);
    started.unwrap_or_else(|e| panic!("{e}"))
}

fn recorder(path: &Path, limit: u64) -> Arc<Recorder> {
    Recorder::create(path, limit, "tiny", CONFIG, |_| {}).expect("a new file")
}

fn model() -> ModelInfo {
    let architecture = "Qwen2MoeForCausalLM".to_owned();
    ModelInfo { architecture, model_type: "qwen2_moe".into(), layers: 2, experts: 4, config: CONFIG.into() }
}

fn tensors() -> Vec<TensorInfo> {
    let tensor = |name: &str, role| TensorInfo { name: name.into(), dtype: Dtype::Bf16, shape: vec![256, 384], role };
    vec![tensor("model.layers.0.self_attn.q_proj.weight", Role::Attention), tensor("lm_head.weight", Role::LmHead)]
}

fn ask_quant(patch: &Arc<Patch>, rows: bool) {
    let quant = patch.block_quant().expect("a block quantizer");
    let reader = Consumer { engine: "patchhost".into(), version: "0.1.0".into() };
    quant.decide(&model(), &reader, &tensors()).expect("decisions");
    quant.activation(&model()).expect("a rule, or none");
    for panel in 0..2usize {
        let blocks = Blocks {
            tensor: "model.layers.0.self_attn.q_proj.weight",
            rows: 256,
            cols: 384,
            block_rows: 128,
            block_cols: 128,
            first_block: panel * 3,
        };
        let amax = [1.5 + panel as f32, 0.0, 3e-3];
        if rows {
            let values = (0..256 * 384).map(|i| bf16::from_f32((i as f32 * 0.7).sin()).to_le_bytes());
            let bytes: Vec<u8> = values.flatten().collect();
            let length = bytes.len();
            let data = TensorBytes::new(Arc::new(bytes), 0..length).expect("the whole of it");
            let panel = RowPanel { data, elem: Elem::Bf16, cols: 384, first_row: panel * 128, rows: 128 };
            quant.panel_scales(&blocks, &panel, &amax).expect("scales");
        } else {
            quant.scales(&blocks, &amax).expect("scales");
        }
    }
}

fn ask_observer(patch: &Arc<Patch>, name: &str) {
    let observer = patch.refit_observer().expect("an observer");
    let (_, mut watch) = observer.begin("7", None).expect("begins");
    let sha256 = "0".repeat(64);
    let arrival = Arrival { name: name.into(), dtype: Dtype::Bf16, shape: vec![4, 4], sha256 };
    watch.tensors(&[arrival]).expect("a verdict");
    watch.finish(1).expect("a verdict");
}

/// A recording of every hook; its folder, its file, and its patches.
fn everything() -> (tempfile::TempDir, PathBuf) {
    let tmp = tempfile::tempdir().expect("a folder");
    let path = tmp.path().join("a.rec");
    let recorder = recorder(&path, Recorder::MAX_BYTES);
    let site = recorded(&recorder);
    ask_quant(&start(&site, "fp8_block", &[("profile", "deepseek")]), false);
    ask_quant(&start(&site, "fp8_block_mse", &[]), true);
    let guard = start(&site, "refit_guard", &[]);
    ask_observer(&guard, "a.weight");
    ask_observer(&guard, "a.weight");
    let snapshot: Snapshot = guard.export_state().expect("its state").expect("some");
    ask_observer(&guard, "a.weight");
    guard.import_state(snapshot).expect("its own");
    ask_observer(&guard, "a.weight");
    let mask = start(&site, "vocab_mask", &[]);
    mask.logits_mask().expect("a mask").masked(&model(), 512, 500).expect("ranges");
    // A refusal is an answer too: no such adapter.
    let lora = start(&site, "lora_tensors", &[]);
    lora.lora().expect("admission").admit(&model(), "{}", &tensors(), &tensors()).expect_err("no adapter");
    start(&site, "gpu_layout", &[]);
    let status = recorder.finish();
    assert_eq!((status.left_out, status.stopped), (0, None));
    assert_eq!(status.bytes, std::fs::metadata(&path).expect("the file").len());
    (tmp, path)
}

fn replay(path: &Path) -> Result<ReplayReport, RecordingError> {
    let recording = Recording::open(path)?;
    let mut replay = Replay::new(&recording);
    for entry in &recording.overview().patches {
        let settings: Vec<_> = entry.settings.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        if bundled::bundled(&entry.name).is_some() {
            replay.answer_with(entry, &start(&*SANDBOX, &entry.name, &settings))?;
        }
    }
    replay.run(&|_| {})
}

#[test]
fn every_hook_there_and_back() {
    let (_tmp, path) = everything();
    let report = replay(&path).expect("a recording");
    assert_eq!(report.first, None);
    assert_eq!((report.total.calls, report.total.identical, report.skipped), (4 + 4 + 14 + 2, 24, 0));
    let Overview { calls, full, end, torn, .. } = report.recording;
    assert_eq!((calls, full, end.map(|e| (e.calls, e.left_out)), torn), (24, None, Some((24, 0)), 0));
    let names: Vec<_> = report.patches.iter().map(|p| (p.name.as_str(), p.functions.len())).collect();
    let called = [("fp8_block", 3), ("fp8_block_mse", 3), ("refit_guard", 5), ("vocab_mask", 1), ("lora_tensors", 1)];
    assert_eq!(names, called, "what was never called is not replayed");
    let entry = &Recording::open(&path).expect("a recording").overview().patches[0].clone();
    assert_eq!(entry.settings, [("profile".to_owned(), "deepseek".to_owned())]);
    assert_eq!(entry.bounded_limits(), (Limits::default(), true));
    // Nobody but the owner reads what may hold weights.
    #[cfg(unix)]
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).expect("it").permissions()) & 0o777,
        0o600
    );
}

#[test]
fn what_is_recorded_does_not_change() {
    let tmp = tempfile::tempdir().expect("a folder");
    let recorder = recorder(&tmp.path().join("a.rec"), Recorder::MAX_BYTES);
    let with = start(recorded(&recorder), "fp8_block", &[]);
    let without = start(&*SANDBOX, "fp8_block", &[]);
    ask_quant(&with, false);
    ask_quant(&without, false);
    assert_eq!(with.generation(), without.generation());
    let counts = |patch: &Patch| {
        let stats = patch.stats();
        stats.functions.iter().map(|(name, f)| (name.to_string(), f.calls, f.fuel_total)).collect::<Vec<_>>()
    };
    assert_eq!(counts(&with), counts(&without));
}

#[test]
fn another_answer_is_found() {
    let (_tmp, path) = everything();
    let recording = Recording::open(&path).expect("a recording");
    let mut replay = Replay::new(&recording);
    let entry = &recording.overview().patches[0];
    replay.answer_with(entry, &start(&*SANDBOX, "fp8_block", &[("profile", "verl-torch")])).expect("it has the hook");
    let report = replay.run(&|_| {}).expect("a recording");
    assert_eq!((report.total.calls, report.total.different, report.skipped), (4, 4, 20));
    let first = report.first.expect("a difference");
    assert_eq!((first.call, first.patch.as_str(), first.part.as_str()), (1, "fp8_block", "decision 0"));
    let scales = &report.patches[0].functions[&crate::base::Function::Scales];
    assert!(scales.numbers > 0 && scales.max_ulp > 0, "{scales:?}");

    let mut replay = Replay::new(&recording);
    let error = replay.answer_with(entry, &start(&*SANDBOX, "vocab_mask", &[])).expect_err("another hook");
    assert!(matches!(error, RecordingError::NoHook { .. }), "{error}");
}

#[test]
fn a_bound_is_kept_and_noted() {
    let tmp = tempfile::tempdir().expect("a folder");
    let path = tmp.path().join("a.rec");
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let tell = Arc::clone(&told);
    let notice = move |text: &str| tell.lock().expect("no panic").push(text.to_owned());
    let recorder = Recorder::create(&path, 5_000, "tiny", CONFIG, notice).expect("a new file");
    let patch = start(recorded(&recorder), "fp8_block", &[]);
    for _ in 0..20 {
        ask_quant(&patch, false);
    }
    let status = recorder.finish();
    assert!(status.bytes <= 5_000 && status.calls > 4 && status.left_out > 4, "{status:?}");
    assert_eq!(status.calls + status.left_out, 80);
    assert_eq!(recorder.finish(), status, "closed once");
    assert_eq!(told.lock().expect("no panic").len(), 1);
    let report = replay(&path).expect("a recording");
    assert_eq!((report.recording.full, report.total.identical), (Some(5_000), status.calls));
    assert_eq!(report.recording.end.map(|e| e.left_out), Some(status.left_out));

    let again = Recorder::create(&path, 5_000, "tiny", CONFIG, |_| {}).expect_err("never over a file");
    assert!(matches!(again, RecordingError::Create { .. }));
    let small = Recorder::create(&tmp.path().join("b"), 100, "tiny", CONFIG, |_| {}).expect_err("too small");
    assert!(matches!(small, RecordingError::Limit { .. }) && !tmp.path().join("b").exists());
}

#[test]
fn threads_record_at_once() {
    let tmp = tempfile::tempdir().expect("a folder");
    let path = tmp.path().join("a.rec");
    let recorder = recorder(&path, Recorder::MAX_BYTES);
    let patch = start(recorded(&recorder), "fp8_block", &[]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..50).for_each(|_| ask_quant(&patch, false)));
        }
    });
    assert_eq!(recorder.finish().calls, 800);
    let report = replay(&path).expect("a recording");
    assert_eq!((report.total.identical, report.total.calls), (800, 800));
}

#[test]
fn a_fault_is_recorded_as_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests/evil/trap_nth.wasm");
    let tmp = tempfile::tempdir().expect("a folder");
    let file = tmp.path().join("a.rec");
    let recorder = recorder(&file, Recorder::MAX_BYTES);
    let site = recorded(&recorder);
    let ready = |site: &Site| {
        let candidate = crate::patch::Candidate::from_file(&path).expect("a guest");
        Reviewing::default().start(candidate, &Terms::settings([("n", "3")]), site).expect("ready")
    };
    let quant = ready(&site).block_quant().expect("a block quantizer");
    let blocks = Blocks { tensor: "w", rows: 128, cols: 128, block_rows: 128, block_cols: 128, first_block: 0 };
    let causes: Vec<_> = (0..4).map(|_| quant.scales(&blocks, &[1.0]).err().map(|e| e.cause)).collect();
    assert!(causes.contains(&Some(HookCause::Trap)), "{causes:?}");
    recorder.finish();
    let recording = Recording::open(&file).expect("a recording");
    let recorded: Vec<_> = recording
        .events()
        .expect("opened before")
        .filter_map(|event| match event {
            Ok(Event::Call(call)) => Some(call.outcome.err().map(|e| e.cause)),
            _ => None,
        })
        .collect();
    assert_eq!(recorded, causes);
    let mut replay = Replay::new(&recording);
    replay.answer_with(&recording.overview().patches[0], &ready(&Site::from(&*SANDBOX))).expect("it has the hook");
    assert_eq!(replay.run(&|_| {}).expect("a recording").total.identical, 4);
}
