//! The same attacks in this process: every stage, then one honest question to every hook.

use std::sync::{Arc, OnceLock};

use patchhost::patch::{Candidate, Limits, Patch, Reviewing, Sandbox, StageError, Terms};
use patchhost_kernels::spec::Elem;
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::hooks::{Arrival, Blocks, Consumer, Dtype, HookError, ModelInfo, Role, RowPanel, TensorInfo};

/// One engine for all attacks: what one of them breaks, the next one meets.
pub fn sandbox() -> &'static Sandbox {
    static SANDBOX: OnceLock<Sandbox> = OnceLock::new();
    SANDBOX.get_or_init(|| Sandbox::new(2).unwrap())
}

/// Through every stage.
pub fn load(name: &str, bytes: Vec<u8>, limits: Limits) -> Result<Arc<Patch>, StageError> {
    let candidate = Candidate::from_bytes(name, bytes)?;
    Reviewing::default().start(candidate, &Terms::default().with_limits(limits), sandbox())
}

pub fn model() -> ModelInfo {
    ModelInfo {
        architecture: "Qwen3MoeForCausalLM".into(),
        model_type: "qwen3_moe".into(),
        layers: 1,
        experts: 2,
        config: "{}".into(),
    }
}

fn tensors() -> Vec<TensorInfo> {
    let tensor = |name: &str, role| TensorInfo { name: name.into(), dtype: Dtype::Bf16, shape: vec![256, 256], role };
    vec![tensor("model.layers.0.mlp.w", Role::Mlp), tensor("model.norm.weight", Role::Norm)]
}

/// Asks every hook of a patch once, and gives what each call came to.
pub fn ask(patch: &Arc<Patch>) -> Vec<(&'static str, Result<(), HookError>)> {
    let mut answers = Vec::new();
    let (model, tensors) = (model(), tensors());
    let reader = Consumer { engine: "patchhost".into(), version: "0.1.0".into() };
    if let Some(quant) = patch.block_quant() {
        let blocks = Blocks { tensor: "w", rows: 128, cols: 256, block_rows: 128, block_cols: 128, first_block: 0 };
        answers.push(("decide", quant.decide(&model, &reader, &tensors).map(drop)));
        answers.push(("activation", quant.activation(&model).map(drop)));
        answers.push(("scales", quant.scales(&blocks, &[1.0, 2.0]).map(drop)));
        answers.push(("moments", quant.scales_with_moments(&blocks, &[1.0, 2.0], &[3.0, 4.0]).map(drop)));
        answers.push(("activation-scales", quant.activation_scales(&[1.0, 2.0]).map(drop)));
        // Wide: a whole panel is more than one read may ask for.
        let bytes = vec![0x3f; 128 * 1024 * 2];
        let length = bytes.len();
        let data = TensorBytes::new(Arc::new(bytes), 0..length).unwrap();
        let panel = RowPanel { data, elem: Elem::Bf16, cols: 1024, first_row: 0, rows: 128 };
        answers.push(("panel-scales", quant.panel_scales(&blocks, &panel, &[1.0, 2.0]).map(drop)));
    }
    if let Some(loader) = patch.loader_map() {
        answers.push(("resolve", loader.resolve(&model, &tensors, &tensors).map(drop)));
    }
    if let Some(layout) = patch.layout() {
        answers.push(("passes", layout.passes(&model, &reader, &tensors).map(drop)));
    }
    if let Some(lora) = patch.lora() {
        answers.push(("admit", lora.admit(&model, "{\"r\": 8}", &tensors, &tensors).map(drop)));
    }
    if let Some(mask) = patch.logits_mask() {
        answers.push(("masked", mask.masked(&model, 1000, 900).map(drop)));
    }
    if let Some(observer) = patch.refit_observer() {
        let names = vec!["w".to_string()];
        match observer.begin("v1", Some(&names)) {
            Err(error) => answers.push(("begin", Err(error))),
            Ok((_, mut watch)) => {
                let sha256 = "0".repeat(64);
                let arrival = Arrival { name: "w".into(), dtype: Dtype::Bf16, shape: vec![2, 2], sha256 };
                answers.push(("begin", Ok(())));
                answers.push(("tensors", watch.tensors(&[arrival]).map(drop)));
                answers.push(("finish", watch.finish(1).map(drop)));
            }
        }
    }
    if patch.has_state() {
        answers.push(("export-state", patch.export_state().map(drop)));
        let snapshot = patchhost::patch::Snapshot::new("all".into(), 1, vec![1, 2, 3]).unwrap();
        answers.push(("import-state", patch.import_state(snapshot)));
    }
    answers
}

/// The host goes on: an honest patch of the same process answers.
#[track_caller]
pub fn host_lives() {
    let honest = load("honest", super::wat::honest("quant-patch"), Limits::default()).unwrap();
    let quant = honest.block_quant().unwrap();
    let blocks = Blocks { tensor: "w", rows: 128, cols: 256, block_rows: 128, block_cols: 128, first_block: 0 };
    assert_eq!(quant.scales(&blocks, &[448.0, 896.0]).unwrap(), [1.0, 2.0]);
}
