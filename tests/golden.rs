//! Golden vectors through the sandboxed guests: bytes and scales must be equal. With `PATCHHOST_GUESTS_DIR` set, the
//! guests of that folder are tried instead of the bundled ones (`cargo xtask guests --check` does so).
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::sync::Arc;

use patchhost::patch::{Candidate, Reviewing, Sandbox, Terms, resolve};
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use patchhost_runtime::error::RuntimeError;
use patchhost_runtime::hooks::{BlockQuant, Consumer, Decision, ModelInfo, Role};
use patchhost_runtime::quantize::{Input, Measure, Quantized, quantize};
use patchhost_runtime::refit::info;

fn guest(sandbox: &Sandbox, name: &str, settings: &[(&str, &str)]) -> Arc<dyn BlockQuant> {
    let candidate = match std::env::var("PATCHHOST_GUESTS_DIR") {
        Ok(dir) => Candidate::from_file(&Path::new(&dir).join(format!("{name}.wasm"))),
        Err(_) => resolve(name),
    };
    let terms = Terms::settings(settings.iter().copied());
    Reviewing::default().start(candidate.unwrap(), &terms, sandbox).unwrap().block_quant().unwrap()
}

fn run(quant: &dyn BlockQuant, tensor: &CheckpointTensor) -> Result<Quantized, RuntimeError> {
    let model = ModelInfo {
        architecture: String::new(),
        model_type: String::new(),
        layers: 0,
        experts: 0,
        config: "{}".into(),
    };
    let reader = Consumer { engine: "patchhost".into(), version: "0.1.0".into() };
    let decisions = quant.decide(&model, &reader, &[info(tensor, Role::Other)])?;
    let Decision::Quantize(scheme) = &decisions[0] else { panic!("{} was kept: {decisions:?}", tensor.name) };
    let input = Input {
        name: &tensor.name,
        data: tensor.data.load().unwrap(),
        elem: tensor.elem().unwrap(),
        rows: tensor.shape[0],
        cols: tensor.shape[1],
    };
    quantize(&input, scheme, quant, Measure::All)
}

fn vectors() -> Checkpoint {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/quant/fp8_block_golden.safetensors");
    Checkpoint::open(&path).unwrap()
}

fn compare(vectors: &Checkpoint, input: &str, mode: &str, got: &Quantized) {
    let q = vectors.get(&format!("{input}/{mode}/weight")).unwrap();
    let s = vectors.get(&format!("{input}/{mode}/scale_inv")).unwrap();
    let scales: Vec<u8> = got.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
    assert_eq!(scales, s.data.load().unwrap().to_vec(), "{input}/{mode}: scales");
    let differ = got.q.iter().zip(q.data.load().unwrap().iter()).filter(|(a, b)| a != b).count();
    assert_eq!((got.q.len(), differ), (q.data.len(), 0), "{input}/{mode}: weights");
}

const MODES: &[(&str, &[(&str, &str)])] = &[
    ("verl_torch", &[("profile", "verl-torch")]),
    ("verl_triton_ieee", &[("profile", "verl-triton")]),
    ("deepseek_act", &[("profile", "deepseek")]),
    ("div_eps1e12", &[("profile", "slime")]),
    ("deepgemm", &[("profile", "deepgemm")]),
    ("deepgemm_ue8m0", &[("profile", "deepgemm"), ("scale_format", "ue8m0")]),
    ("hf_nemo", &[("profile", "hf")]),
];

#[test]
fn every_vector_of_every_profile() {
    let (sandbox, vectors) = (Sandbox::new(2).unwrap(), vectors());
    let inputs: Vec<_> =
        vectors.tensors().filter(|t| t.name.ends_with("/input") && !t.name.starts_with("edge_inf_nan")).collect();
    assert_eq!(inputs.len(), 6);
    for (mode, settings) in MODES {
        for stats in ["amax", "moments"] {
            let all: Vec<_> = settings.iter().copied().chain([("stats", stats)]).collect();
            let quant = guest(&sandbox, "fp8_block", &all);
            for input in &inputs {
                compare(&vectors, input.name.trim_end_matches("/input"), mode, &run(quant.as_ref(), input).unwrap());
            }
        }
    }
}

#[test]
fn the_seeds_edges_bit_for_bit_and_strict_refuses_them() {
    let (sandbox, vectors) = (Sandbox::new(2).unwrap(), vectors());
    let input = vectors.get("edge_inf_nan_subnormal_huge/input").unwrap();
    let seed = guest(&sandbox, "fp8_block", &[("edges", "seed-torch")]);
    compare(&vectors, "edge_inf_nan_subnormal_huge", "verl_torch", &run(seed.as_ref(), input).unwrap());
    let strict = guest(&sandbox, "fp8_block", &[]);
    let error = run(strict.as_ref(), input).err().unwrap().to_string();
    assert!(error.contains("edge_inf_nan_subnormal_huge/input") && error.contains("block [0, "), "{error}");
}

/// The guest against the native twin of each profile, on shapes that are no multiple of anything.
#[test]
fn guests_agree_with_the_native_reference_on_odd_shapes() {
    use patchhost_kernels::profile::Profile;
    use patchhost_kernels::spec::{Edges, ScaleFormat};
    let sandbox = Sandbox::new(2).unwrap();
    for profile in ["verl-torch", "verl-triton", "deepseek", "vllm-group", "hf", "deepgemm", "slime"] {
        let native: Profile = profile.parse().unwrap();
        for (name, format) in [("f32", ScaleFormat::F32), ("ue8m0", ScaleFormat::Ue8m0)] {
            let quant = guest(&sandbox, "fp8_block", &[("profile", profile), ("scale_format", name)]);
            let blocks = patchhost_runtime::hooks::Blocks {
                tensor: "w",
                rows: 1,
                cols: 4096,
                block_rows: 1,
                block_cols: 1,
                first_block: 0,
            };
            let amax: Vec<f32> =
                (0..4096u32).map(|i| f32::from_bits(i.wrapping_mul(0x0007_F3D1) % 0x7F80_0000)).collect();
            let got = quant.scales(&blocks, &amax).unwrap();
            for (a, g) in amax.iter().zip(&got) {
                let want = native.given(format, Edges::Strict, *a);
                assert_eq!(g.to_bits(), want.to_bits(), "{profile} {name}: amax {a:e} gives {g:e}, not {want:e}");
            }
        }
    }
}
