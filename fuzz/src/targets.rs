//! What the fuzz targets do with their bytes. Here and not in the targets, so that the normal test suite runs the very same
//! code over the seeds (`tests/suite/generated/fuzz.rs`) and it never rots. A target fails by a panic.

use std::sync::{Arc, OnceLock};

use patchhost::patch::{Candidate, Limits, Patch, Reviewing, Sandbox, Terms};
use patchhost::trust::Policy;
use patchhost_kernels::spec::Elem;
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::hooks::{
    Arrival, BlockQuant, Blocks, Consumer, Dtype, HookError, ModelInfo, Role, RowPanel, TensorInfo,
};

/// A target: its name, which is also that of its folder of seeds, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: [Target; 8] = [
    ("component", component),
    ("answers", answers),
    ("safetensors", safetensors),
    ("config", config),
    ("policy", policy),
    ("ledger", ledger),
    ("weights_body", weights_body),
    ("request", request),
];

/// The guest that answers with the bytes it was given: `guests/evil/wat/mirror.wat`, assembled.
pub const MIRROR: &[u8] = include_bytes!("../mirror.wasm");

fn sandbox() -> &'static Sandbox {
    static SANDBOX: OnceLock<Sandbox> = OnceLock::new();
    SANDBOX.get_or_init(|| Sandbox::new(1).expect("an engine"))
}

/// An error of any kind has a reason.
fn reasonable(error: &dyn std::fmt::Display) {
    let text = error.to_string();
    assert!(text.contains("why: "), "no reason: {text}");
    assert!(!text.contains("panicked"), "{text}");
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
}

/// Component bytes → audit → every stage.
pub fn component(bytes: &[u8]) {
    let limits = Limits { fuel_base: 1_000_000, ..Limits::default() };
    let loaded = Candidate::from_bytes("fuzz", bytes.to_vec())
        .and_then(|candidate| Reviewing::default().start(candidate, &Terms::default().with_limits(limits), sandbox()));
    if let Err(error) = loaded {
        reasonable(&error);
    }
}

/// Bytes of a guest's memory → the adapters: each hook reads its answer from them. The first word says which tensors are
/// asked about.
pub fn answers(bytes: &[u8]) {
    static PATCH: OnceLock<Arc<Patch>> = OnceLock::new();
    let patch = PATCH.get_or_init(|| {
        let candidate = Candidate::from_bytes("mirror", MIRROR).expect("small enough");
        Reviewing::default().start(candidate, &Terms::default(), sandbox()).expect("it starts")
    });
    let quant = patch.block_quant().expect("it quantizes");
    let (model, reader) = (model(), Consumer { engine: "patchhost".into(), version: "0.1.0".into() });
    let tensors = tensors(1 + bytes.first().map_or(0, |byte| usize::from(byte % 4)));
    let blocks = Blocks { tensor: "w", rows: 128, cols: 256, block_rows: 128, block_cols: 128, first_block: 0 };
    let amax: Vec<f32> =
        bytes.chunks_exact(4).take(8_192).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    // After a fault the instance is another one, with nothing in its memory: it is given the bytes before each question.
    let given = |answer: Result<(), HookError>| {
        if let Err(error) = answer {
            assert!(!error.why.is_empty() && !error.next.is_empty());
            reasonable(&error);
        }
    };
    let give = || given(quant.scales(&blocks, &amax).map(drop));
    give();
    given(quant.decide(&model, &reader, &tensors).map(|answer| assert_eq!(answer.len(), tensors.len())));
    give();
    given(quant.activation(&model).map(drop));
    give();
    given(quant.scales_with_moments(&blocks, &[1.0, 2.0], &[1.0, 2.0]).map(|answer| assert_eq!(answer.len(), 2)));
    give();
    let activation = quant.activation_scales(&[1.0, 2.0]);
    given(activation.map(|answer| assert!(answer.iter().all(|scale| scale.is_finite() && *scale > 0.0))));
    give();
    given(panel(&*quant, &blocks));
    if let Some(layout) = patch.layout() {
        give();
        given(layout.passes(&model, &reader, &tensors).map(|answer| assert_eq!(answer.len(), tensors.len())));
    }
    if let Some(loader) = patch.loader_map() {
        give();
        given(loader.resolve(&model, &tensors, &tensors).map(|answer| assert_eq!(answer.len(), tensors.len())));
    }
    if let Some(lora) = patch.lora() {
        give();
        given(lora.admit(&model, "{}", &tensors, &tensors).map(|plan| assert!((1..=512).contains(&plan.rank))));
    }
    if let Some(mask) = patch.logits_mask() {
        give();
        given(
            mask.masked(&model, 1_000, 900)
                .map(|ranges| assert!(ranges.iter().all(|r| r.start < r.end && r.end <= 1_000))),
        );
    }
    if let Some(observer) = patch.refit_observer() {
        give();
        match observer.begin("v1", None) {
            Err(error) => reasonable(&error),
            Ok((_, mut watch)) => {
                let arrival =
                    Arrival { name: "w".into(), dtype: Dtype::Bf16, shape: vec![2, 2], sha256: "0".repeat(64) };
                given(watch.tensors(&[arrival]).map(drop));
                given(watch.finish(1).map(drop));
            }
        }
    }
    give();
    given(patch.export_state().map(drop));
}

fn panel(quant: &dyn BlockQuant, blocks: &Blocks<'_>) -> Result<(), HookError> {
    let bytes = vec![0x3f; 128 * 256 * 2];
    let length = bytes.len();
    let data = TensorBytes::new(Arc::new(bytes), 0..length).expect("the whole of it");
    let panel = RowPanel { data, elem: Elem::Bf16, cols: 256, first_row: 0, rows: 128 };
    quant.panel_scales(blocks, &panel, &[1.0, 2.0]).map(drop)
}

fn model() -> ModelInfo {
    ModelInfo {
        architecture: "LlamaForCausalLM".into(),
        model_type: "llama".into(),
        layers: 1,
        experts: 0,
        config: "{}".into(),
    }
}

fn tensors(count: usize) -> Vec<TensorInfo> {
    let tensor = |n| TensorInfo { name: format!("w{n}"), dtype: Dtype::Bf16, shape: vec![256, 256], role: Role::Mlp };
    (0..count).map(tensor).collect()
}

/// A safetensors file → the tensors.
pub fn safetensors(bytes: &[u8]) {
    match Checkpoint::from_shared("fuzz", Arc::new(bytes.to_vec())) {
        Err(error) => reasonable(&error),
        Ok(checkpoint) => {
            let total: usize = checkpoint.tensors().map(|tensor| tensor.data.len()).sum();
            assert!(total <= bytes.len(), "tensors of {total} bytes in {}", bytes.len());
        }
    }
}

/// config.json → an engine.
pub fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Err(error) = Engine::new(&text, EngineOptions::default()) {
        reasonable(&error);
    }
}

/// A policy file.
pub fn policy(bytes: &[u8]) {
    if let Err(why) = Policy::parse(&String::from_utf8_lossy(bytes)) {
        assert!(!why.is_empty() && why.chars().all(|c| !c.is_control()), "{why:?}");
    }
}

/// A ledger file.
pub fn ledger(bytes: &[u8]) {
    static FOLDER: OnceLock<std::path::PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("patchhost-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the ledger");
        folder
    });
    let path = folder.join("ledger.jsonl");
    std::fs::write(&path, bytes).expect("a ledger to verify");
    if let Err(error) = patchhost::patch::ledger::verify(&path, None) {
        reasonable(&error);
    }
}

/// Bodies that carry weights: framed, safetensors, base64.
pub fn weights_body(bytes: &[u8]) {
    use patchhost::serve::weights as body;
    let shared = || bytes.to_vec().into();
    let _ = body::framed("fuzz", shared()).map(|pieces| inside(&pieces, bytes.len()));
    let _ = body::safetensors("fuzz", shared()).map(|pieces| inside(&pieces, bytes.len()));
    let _ = body::base64_bytes("fuzz", &String::from_utf8_lossy(bytes));
}

fn inside(pieces: &[patchhost::serve::weights::Piece], most: usize) {
    assert!(pieces.iter().all(|piece| piece.data.len() <= most), "a piece is larger than its body");
}

/// JSON requests.
pub fn request(bytes: &[u8]) {
    use patchhost::serve::{self, weights as body};
    let _ = serve::parse_json::<body::UpdateInfo>(bytes);
    let _ = serve::parse_json::<body::BucketMeta>(bytes).map(body::BucketMeta::entries);
    let _ = serve::parse_json::<serve::CompletionRequest>(bytes);
    let _ = serve::parse_json::<serve::ChatRequest>(bytes);
}
