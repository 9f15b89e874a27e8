//! `patchhost compare` from outside: the tensors.

mod classes;
mod refusals;
mod report;
mod trainer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::bf16;
use patchhost::compare::{State, compare_unit, decide, of_file};
use patchhost::native::Formulas;
use patchhost_kernels::e4m3;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::hooks::{
    ActivationRule, BlockQuant, Blocks, Consumer, Decision, HookError, ModelInfo, Needs, RowPanel, TensorInfo,
};
use safetensors::tensor::Dtype;
use serde_json::Value;

use crate::oracle::hooks_with;
use crate::support::{Tensor, bf16_bytes, f32_bytes, normal, patchhost, tmp, write};

/// `compare … --format json`.
fn compare(args: &[&str]) -> Value {
    patchhost(["compare"].iter().chain(args).chain(&["--format", "json"])).good().json()
}

fn file(folder: &Path, tensors: &[Tensor]) -> PathBuf {
    let path = folder.join("w.safetensors");
    write(&path, tensors);
    path
}

/// N(0, sigma), by Box and Muller, the same for the same seed.
fn gauss(n: usize, sigma: f32, seed: u64) -> Vec<f32> {
    use rand::{Rng, SeedableRng};
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let mut out = Vec::with_capacity(n + 1);
    while out.len() < n {
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * f64::from(sigma);
        let angle = std::f64::consts::TAU * rng.random::<f64>();
        out.extend([(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]);
    }
    out.truncate(n);
    out
}

/// Scales and codes of a matrix in blocks of 128x128, from a formula: amax to (stored scale, what x is multiplied with).
fn by_hand(x: &[f32], rows: usize, cols: usize, formula: impl Fn(f32) -> (f32, f32)) -> (Vec<f32>, Vec<u8>) {
    let grid = cols.div_ceil(128);
    let mut amax = vec![0.0f32; rows.div_ceil(128) * grid];
    let block = |i: usize| i / cols / 128 * grid + i % cols / 128;
    x.iter().enumerate().for_each(|(i, x)| amax[block(i)] = amax[block(i)].max(x.abs()));
    let made: Vec<(f32, f32)> = amax.iter().map(|a| formula(*a)).collect();
    let code = |(i, x): (usize, &f32)| e4m3::encode((x * made[block(i)].1).clamp(-448.0, 448.0));
    (made.iter().map(|m| m.0).collect(), x.iter().enumerate().map(code).collect())
}

struct Expected {
    scales: u64,
    bytes: u64,
    max_ulp: u32,
    max_abs: f64,
    snr: [f64; 2],
}

/// verl's PyTorch path against its Triton path, by the two formulas of fp8_kernel.py.
fn verl_against_verl(x: &[f32], rows: usize, cols: usize) -> Expected {
    let (sa, qa) = by_hand(x, rows, cols, |amax| (1.0 / (448.0 / amax), 448.0 / amax));
    let (sb, qb) = by_hand(x, rows, cols, |amax| {
        let s = amax.max(1e-10) / 448.0;
        (s, 1.0 / s)
    });
    let value = |q: &[u8], s: &[f32], i: usize| {
        f64::from(e4m3::decode(q[i]) * s[i / cols / 128 * cols.div_ceil(128) + i % cols / 128])
    };
    let mut e = Expected {
        scales: sa.iter().zip(&sb).filter(|(a, b)| a != b).count() as u64,
        bytes: qa.iter().zip(&qb).filter(|(a, b)| a != b).count() as u64,
        max_ulp: sa.iter().zip(&sb).map(|(a, b)| a.to_bits().abs_diff(b.to_bits())).max().unwrap(),
        max_abs: 0.0,
        snr: [0.0; 2],
    };
    let (mut squares, mut errors) = (0.0, [0.0; 2]);
    for (i, x) in x.iter().enumerate() {
        let (a, b, x) = (value(&qa, &sa, i), value(&qb, &sb, i), f64::from(*x));
        e.max_abs = e.max_abs.max((a - b).abs());
        squares += x * x;
        errors[0] += (x - a) * (x - a);
        errors[1] += (x - b) * (x - b);
    }
    e.snr = errors.map(|error| 10.0 * (squares / error).log10());
    e
}

const VERL: [&str; 6] =
    ["fp8_block.wasm", "fp8_block.wasm", "--set-a", "profile=verl-torch", "--set-b", "profile=verl-triton"];

#[track_caller]
fn agrees(json: &Value, expected: &Expected, blocks: u64, elements: u64) {
    let t = &json["total"];
    assert_eq!(t["scales"]["differing"], expected.scales);
    assert_eq!(t["scales"]["total"], blocks);
    assert_eq!(t["scales"]["max_ulp"], expected.max_ulp);
    assert_eq!(t["weight_bytes"]["differing"], expected.bytes);
    assert_eq!(t["weight_bytes"]["total"], elements);
    assert_eq!(t["max_abs_difference"].as_f64().unwrap(), expected.max_abs);
    for (side, snr) in ["a", "b"].iter().zip(expected.snr) {
        let got = t[side]["snr_db"].as_f64().unwrap();
        assert!((got - snr).abs() < 1e-9, "{side}: {got}, not {snr}");
        assert_eq!(t[side]["saturated"], 0);
    }
}

/// The table of the reference: 402/1024 scales and 2.9e-4 of the bytes differ on such a tensor.
#[test]
fn verl_torch_against_verl_triton_on_4096x4096_bf16() {
    let tmp = tmp();
    let (rows, cols) = (4096, 4096);
    let bytes = bf16_bytes(&gauss(rows * cols, 0.02, 20_260_801));
    let x: Vec<f32> = bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect();
    let path = file(tmp.path(), &[("w".into(), Dtype::BF16, vec![rows, cols], bytes)]);
    let expected = verl_against_verl(&x, rows, cols);
    let json = compare(&[&VERL[..2], &[path.to_str().unwrap()], &VERL[2..]].concat());
    agrees(&json, &expected, 1024, 1 << 24);
    let (scales, bytes) = (expected.scales as f64 / 1024.0, expected.bytes as f64 / (1 << 24) as f64);
    assert!((0.33..0.46).contains(&scales), "{} of 1024 scales", expected.scales);
    assert!((1.5e-4..4.5e-4).contains(&bytes), "{bytes:e} of the bytes");
    assert_eq!(json["a"]["settings"], serde_json::json!(["profile=verl-torch"]));
    // The numbers people see are the same.
    let text = patchhost([&["compare"], &VERL[..2], &[path.to_str().unwrap()], &VERL[2..]].concat()).good().stdout;
    assert!(text.contains(&format!("{}/1024", expected.scales)), "{text}");
    assert!(text.contains(&format!("{}/16777216", expected.bytes)), "{text}");
}

#[test]
fn other_seeds_sizes_and_dtypes_agree_with_the_formulas_too() {
    let tmp = tmp();
    for (seed, rows, cols, f32s) in
        [(1, 1024, 1536, false), (2, 1000, 777, false), (3, 300, 129, true), (4, 1, 700, true)]
    {
        let mut x = gauss(rows * cols, 0.02, seed);
        let (dtype, bytes) = match f32s {
            true => (Dtype::F32, f32_bytes(&x)),
            false => (Dtype::BF16, bf16_bytes(&x)),
        };
        if !f32s {
            x.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
        }
        let path = file(tmp.path(), &[("w".into(), dtype, vec![rows, cols], bytes)]);
        let json = compare(&[&VERL[..2], &[path.to_str().unwrap()], &VERL[2..]].concat());
        let blocks = (rows.div_ceil(128) * cols.div_ceil(128)) as u64;
        agrees(&json, &verl_against_verl(&x, rows, cols), blocks, (rows * cols) as u64);
    }
}

/// Matrices of all kinds that a plain file may hold.
fn mixed(folder: &Path) -> PathBuf {
    let values = |n: usize, seed: u64| normal(n, seed);
    let mut blocky = values(300 * 200, 3);
    // A block of zeros, and one of very small values.
    (0..128 * 200).filter(|i| i % 200 < 128).for_each(|i| blocky[i] = 0.0);
    (0..128 * 200).filter(|i| i % 200 >= 128).for_each(|i| blocky[i] *= 1e-9);
    let f16: Vec<u8> = values(130 * 70, 7).iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
    let mut tensors: Vec<Tensor> = vec![
        ("a.weight".into(), Dtype::F32, vec![1, 1], f32_bytes(&[0.3])),
        ("b.weight".into(), Dtype::BF16, vec![257, 129], bf16_bytes(&values(257 * 129, 5))),
        ("c.weight".into(), Dtype::F32, vec![300, 200], f32_bytes(&blocky)),
        ("d.weight".into(), Dtype::F16, vec![130, 70], f16),
        ("e.weight".into(), Dtype::BF16, vec![0, 128], Vec::new()),
        ("mlp.experts.w2".into(), Dtype::BF16, vec![3, 200, 140], bf16_bytes(&values(3 * 200 * 140, 9))),
        ("norm.weight".into(), Dtype::F32, vec![5], f32_bytes(&values(5, 1))),
        ("steps".into(), Dtype::I64, vec![1], vec![7; 8]),
    ];
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    file(folder, &tensors)
}

#[track_caller]
fn no_difference(json: &Value, tensors: usize) {
    let rows = json["tensors"].as_array().unwrap();
    assert_eq!(rows.len(), tensors);
    for row in rows {
        assert_eq!(row["state"], "both");
        for (group, key) in [
            ("scales", "differing"),
            ("scales", "max_ulp"),
            ("weight_bytes", "differing"),
            ("weight_bytes", "max_steps"),
        ] {
            assert_eq!(row[group][key], 0, "{row}");
        }
        assert_eq!(row["max_abs_difference"], 0.0);
        assert_eq!(row["a"], row["b"]);
        assert_eq!(row["weight_bytes"]["total"], row["elements"]);
    }
}

#[test]
fn a_side_against_itself_is_no_difference() {
    let tmp = tmp();
    let path = mixed(tmp.path());
    let json = compare(&["fp8_block", "fp8_block.wasm", path.to_str().unwrap()]);
    no_difference(&json, 6);
    assert_eq!(json["kept"], 2);
    assert_eq!(json["total"]["scales"]["total"], 1 + 3 * 2 + 3 * 2 + 2 + 3 * 2 * 2);
    assert_eq!(json["total"]["elements"], 1 + 257 * 129 + 300 * 200 + 130 * 70 + 3 * 200 * 140);
    // A patch of rows too.
    no_difference(&compare(&["fp8_block_mse", "fp8_block_mse", path.to_str().unwrap()]), 6);
}

#[test]
fn every_profile_equals_the_hosts_own_formulas() {
    let tmp = tmp();
    let path = mixed(tmp.path());
    for profile in ["verl-torch", "verl-triton", "deepseek", "vllm-group", "hf", "deepgemm", "slime"] {
        for format in ["f32", "ue8m0"] {
            let (profile, format) = (format!("profile={profile}"), format!("scale_format={format}"));
            let path = path.to_str().unwrap();
            let json = compare(&["fp8_block.wasm", "--against", "native", path, "--set", &profile, "--set", &format]);
            no_difference(&json, 6);
            assert_eq!(json["b"]["kind"], "native");
        }
    }
}

#[test]
fn profiles_differ_as_published() {
    let tmp = tmp();
    let bytes = bf16_bytes(&gauss(2048 * 2048, 0.02, 77));
    let path = file(tmp.path(), &[("w".into(), Dtype::BF16, vec![2048, 2048], bytes)]);
    let pair = |a: &str, b: &str| {
        let (a, b) = (format!("profile={a}"), format!("profile={b}"));
        let t =
            compare(&["fp8_block", "fp8_block", path.to_str().unwrap(), "--set-a", &a, "--set-b", &b])["total"].clone();
        (
            t["scales"]["differing"].as_u64().unwrap(),
            t["weight_bytes"]["differing"].as_f64().unwrap() / (1 << 22) as f64,
        )
    };
    // "B vs C: 0 scales, 3.6e-4 of the bytes", "B vs H, C vs F: nothing", "A vs D: 562/1024, 1.4e-3".
    let (scales, bytes) = pair("verl-triton", "deepseek");
    assert!(scales == 0 && (1e-4..8e-4).contains(&bytes), "{scales} {bytes}");
    assert_eq!(pair("verl-triton", "deepgemm"), (0, 0.0));
    assert_eq!(pair("deepseek", "slime"), (0, 0.0));
    let (scales, bytes) = pair("verl-torch", "vllm-group");
    assert!((100..180).contains(&scales) && (7e-4..2.1e-3).contains(&bytes), "{scales} {bytes}");
}

/// Multiplies one scale of a patch by 1 + 2^-23.
struct OneUlp(Arc<dyn BlockQuant>);

impl BlockQuant for OneUlp {
    fn name(&self) -> &str {
        "one_ulp"
    }
    fn decide(&self, m: &ModelInfo, reader: &Consumer, t: &[TensorInfo]) -> Result<Vec<Decision>, HookError> {
        self.0.decide(m, reader, t)
    }
    fn activation(&self, model: &ModelInfo) -> Result<Option<ActivationRule>, HookError> {
        self.0.activation(model)
    }
    fn scales(&self, blocks: &Blocks<'_>, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        let mut scales = self.0.scales(blocks, amax)?;
        if blocks.first_block == 0 {
            scales[0] = scales[0].next_up();
        }
        Ok(scales)
    }
    fn scales_with_moments(&self, b: &Blocks<'_>, a: &[f32], s: &[f32]) -> Result<Vec<f32>, HookError> {
        self.0.scales_with_moments(b, a, s)
    }
    fn panel_scales(&self, b: &Blocks<'_>, panel: &RowPanel, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.0.panel_scales(b, panel, amax)
    }
    fn activation_scales(&self, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.0.activation_scales(amax)
    }
}

fn no_model() -> ModelInfo {
    let text = String::new;
    ModelInfo { architecture: text(), model_type: text(), layers: 0, experts: 0, config: "{}".into() }
}

#[test]
fn a_patch_that_is_one_ulp_off_its_profile_is_seen() {
    let tmp = tmp();
    let values = normal(256 * 256, 11);
    let path = file(tmp.path(), &[("w".into(), Dtype::F32, vec![256, 256], f32_bytes(&values))]);
    let units = of_file(&Checkpoint::open(&path).unwrap());
    let quant: Arc<dyn BlockQuant> =
        Arc::new(OneUlp(hooks_with(&[("fp8_block", &[("profile", "deepseek")])]).quant.unwrap()));
    let decisions = decide(&units, &no_model(), quant.as_ref()).unwrap();
    let Decision::Quantize(scheme) = &decisions[0] else { panic!("kept") };
    let native = Formulas::new(quant.clone(), [("w", scheme)]).unwrap();
    let side = |q| Some((&decisions[0], q));
    let row = compare_unit(&units[0], side(quant.as_ref()), side(&native)).unwrap().unwrap();
    assert_eq!((row.state, row.scales.unwrap().differing, row.scales.unwrap().max_ulp), (State::Both, 1, 1));
    assert!(row.max_abs_difference > 0.0);

    // What no native profile does is refused, not compared with something else.
    for spoil in 0..4 {
        let mut scheme = scheme.clone();
        match spoil {
            0 => scheme.needs = Needs::Moments,
            1 => scheme.profile = "my-own".into(),
            2 => scheme.cast.floor.eps = 1e-5,
            _ => scheme.cast.contract = patchhost_runtime::hooks::Contract::Clip(0.01),
        }
        let refused = Formulas::new(quant.clone(), [("w", &scheme)]).err().unwrap().to_string();
        assert!(refused.contains("why: for tensor `w` it") && refused.contains("\n  next: "), "{refused}");
    }
}

#[test]
fn what_only_one_side_quantizes_and_other_blocks_are_listed() {
    let tmp = tmp();
    let path = mixed(tmp.path());
    let path = path.to_str().unwrap();
    let json = compare(&["fp8_block", "fp8_block", path, "--set-a", "keep=b.weight", "--set-b", "keep=d.*,c.weight"]);
    let find = |json: &Value, name: &str| {
        json["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .find(|t| t["name"] == name)
            .cloned()
            .unwrap_or_else(|| panic!("{name}"))
    };
    let b = find(&json, "b.weight");
    assert_eq!((&b["state"], &b["a"], &b["weight_bytes"]), (&"only-b".into(), &Value::Null, &Value::Null));
    assert!(b["max_abs_difference"].as_f64().unwrap() > 0.0 && b["b"]["snr_db"].as_f64().unwrap() > 20.0);
    assert_eq!(find(&json, "c.weight")["state"], "only-a");
    assert_eq!((&json["total"]["only_a"], &json["total"]["only_b"]), (&2.into(), &1.into()));
    // Sums of bytes are over what both quantize.
    assert_eq!(json["total"]["weight_bytes"]["total"], 1 + 3 * 200 * 140);

    let json = compare(&["fp8_block", "fp8_block", path, "--set-b", "block=64x128"]);
    let b = find(&json, "b.weight");
    assert_eq!((&b["state"], &b["scales"]), (&"different-blocks".into(), &Value::Null));
    assert!(b["a"]["snr_db"].as_f64().unwrap() < b["b"]["snr_db"].as_f64().unwrap() + 0.5);
    assert_eq!(json["total"]["different_blocks"], 6);

    let json = compare(&["fp8_block", path, "--against", "bf16"]);
    assert_eq!(json["total"]["only_a"], 6);
    assert_eq!(json["total"]["b"], Value::Null);
    let text = patchhost(["compare", "fp8_block", path, "--against", "bf16"]).good().stdout;
    assert!(text.contains("the unquantized weights") && !text.contains("of these tensors only A"), "{text}");
}

#[test]
fn edges_other_than_strict_do_not_spoil_the_sums() {
    let tmp = tmp();
    let mut values = normal(256 * 256, 13);
    values[5] = f32::NAN;
    values[7000] = f32::INFINITY;
    let path = file(tmp.path(), &[("w".into(), Dtype::F32, vec![256, 256], f32_bytes(&values))]);
    let json = compare(&["fp8_block", "fp8_block", path.to_str().unwrap(), "--set", "edges=seed-torch"]);
    assert_eq!(json["total"]["weight_bytes"]["differing"], 0);
    assert!(json["total"]["a"]["snr_db"].is_number(), "{}", json["total"]);
    assert_eq!(json["total"]["max_abs_difference"], 0.0);
}
