//! Lays weights out as the kernels of GPU engines take them (verl's FP8 post-processing for vLLM): on every refit, not
//! once after the first load.

/// Generated from the WIT.
#[allow(missing_docs, unused, clippy::all)]
mod bindings {
    wit_bindgen::generate!({ path: "../../wit/patch/0.1.0", world: "layout-patch" });
}

use bindings::exports::patchhost::patch::identity::{self, Info, Target};
use bindings::exports::patchhost::patch::layout::{self, Consumer, Dtype, Model, Pass, Role, Tensor};
use std::sync::OnceLock;

static PASSES: OnceLock<Vec<Pass>> = OnceLock::new();

/// What each kernel wants.
const BACKENDS: [(&str, &[Pass]); 4] = [
    ("none", &[]),
    ("flashinfer", &[Pass::SwapW13]),
    ("deepgemm", &[Pass::ColMajorAlign]),
    ("deepgemm-ue8m0", &[Pass::Ue8m0, Pass::ColMajorAlign]),
];

const NAMES: [(&str, Pass); 3] =
    [("swap-w13", Pass::SwapW13), ("ue8m0", Pass::Ue8m0), ("col-major-align", Pass::ColMajorAlign)];

struct GpuLayout;

impl identity::Guest for GpuLayout {
    fn describe() -> Info {
        Info {
            name: "gpu_layout".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Lays FP8 weights out as FlashInfer's and DeepGEMM's kernels take them".into(),
            reason:
                "verl's patch post-processes weights once, after the first load; the next weight sync writes plain \
                     bytes over them, and w13 order, powers of two and alignment are lost silently"
                    .into(),
            upstream: Some("volcengine/verl: vllm_fp8_utils.py; vllm#42821, verl#7986".into()),
            remove_when: Some("the engine re-runs its own post-processing at every refit".into()),
            // Not vLLM or SGLang: they lay FP8 weights out themselves after each load, and would do it a second time.
            targets: vec![Target { engine: "patchhost".into(), versions: ">=0.1, <0.2".into(), architectures: vec![] }],
        }
    }

    fn configure(settings: Vec<(String, String)>) -> Result<(), String> {
        let passes = parse(&settings)?;
        PASSES.set(passes).map_err(|_| "configure was called twice; it is called once, before any hook".into())
    }
}

/// `backend=…` or `passes=…`; DeepGEMM's layout where neither is given.
fn parse(settings: &[(String, String)]) -> Result<Vec<Pass>, String> {
    let mut chosen: Option<Vec<Pass>> = None;
    for (key, value) in settings {
        let passes = match key.as_str() {
            "backend" => {
                let known = || BACKENDS.map(|(name, _)| name).join(", ");
                let found = BACKENDS.iter().find(|(name, _)| name == value);
                found.ok_or_else(|| format!("backend={value}: known are {}", known()))?.1.to_vec()
            }
            "passes" => {
                let known = || NAMES.map(|(name, _)| name).join(", ");
                let pass = |text: &str| {
                    let found = NAMES.iter().find(|(name, _)| *name == text);
                    found.map(|(_, pass)| *pass).ok_or_else(|| format!("passes={value}: known are {}", known()))
                };
                let words = value.split(',').map(str::trim).filter(|word| !word.is_empty());
                words.map(pass).collect::<Result<_, _>>()?
            }
            _ => return Err(format!("unknown setting `{key}`; known are: backend, passes")),
        };
        if chosen.replace(passes).is_some() {
            return Err("give either backend or passes, once".into());
        }
    }
    Ok(chosen.unwrap_or_else(|| vec![Pass::ColMajorAlign]))
}

/// The chosen passes that can apply to a tensor.
fn of(chosen: &[Pass], t: &Tensor) -> Vec<Pass> {
    let fp8 = t.dtype == Dtype::F8E4m3;
    let w13 = t.role == Role::Expert && t.name.rsplit('.').next() == Some("w13_weight");
    let fits = |pass: &Pass| match pass {
        Pass::SwapW13 => w13,
        Pass::Ue8m0 | Pass::ColMajorAlign => fp8,
    };
    chosen.iter().copied().filter(fits).collect()
}

impl layout::Guest for GpuLayout {
    fn passes(_: Model, _: Consumer, tensors: Vec<Tensor>) -> Result<Vec<Vec<Pass>>, String> {
        let chosen = PASSES.get().map_or(&[][..], Vec::as_slice);
        Ok(tensors.iter().map(|t| of(chosen, t)).collect())
    }
}

bindings::export!(GpuLayout with_types_in bindings);

#[cfg(test)]
mod tests {
    use super::*;

    fn set(key: &str, value: &str) -> Result<Vec<Pass>, String> {
        parse(&[(key.into(), value.into())])
    }

    #[test]
    fn settings_name_passes() {
        assert_eq!(set("backend", "deepgemm-ue8m0"), Ok(vec![Pass::Ue8m0, Pass::ColMajorAlign]));
        assert_eq!(set("passes", "swap-w13, col-major-align"), Ok(vec![Pass::SwapW13, Pass::ColMajorAlign]));
        assert_eq!(set("passes", ""), Ok(vec![]));
        assert_eq!(parse(&[]), Ok(vec![Pass::ColMajorAlign]));
        assert!(set("backend", "marlin").is_err_and(|e| e.contains("known are none, flashinfer")));
        assert!(set("pass", "ue8m0").is_err_and(|e| e.contains("unknown setting")));
        let both = [("backend".to_string(), "none".to_string()), ("passes".to_string(), "ue8m0".to_string())];
        assert!(parse(&both).is_err());
    }

    #[test]
    fn passes_go_where_they_can() {
        let tensor = |name: &str, dtype, role| Tensor { name: name.into(), dtype, shape: vec![], role };
        let all = [Pass::SwapW13, Pass::Ue8m0, Pass::ColMajorAlign];
        let w13 = tensor("l.0.mlp.experts.w13_weight", Dtype::F8E4m3, Role::Expert);
        assert_eq!(of(&all, &w13), all);
        assert_eq!(of(&all, &Tensor { dtype: Dtype::Bf16, ..w13 }), [Pass::SwapW13]);
        let o = tensor("l.0.self_attn.o_proj.weight", Dtype::F8E4m3, Role::Attention);
        assert_eq!(of(&all, &o), [Pass::Ue8m0, Pass::ColMajorAlign]);
        assert_eq!(of(&all, &tensor("l.0.norm.weight", Dtype::Bf16, Role::Norm)), []);
    }
}
