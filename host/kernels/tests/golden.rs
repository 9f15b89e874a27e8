//! The profiles against golden vectors made with PyTorch (`tests/data/quant`).
#![allow(clippy::unwrap_used)]

mod common;

use common::{bits, quantize};
use patchhost_kernels::cast::dequantize;
use patchhost_kernels::isa::Isa;
use patchhost_kernels::profile::Profile;
use patchhost_kernels::source::Source;
use patchhost_kernels::spec::{Edges, Elem, ScaleFormat};
use safetensors::{Dtype, SafeTensors};

const MODES: [(&str, Profile, ScaleFormat); 7] = [
    ("verl_torch", Profile::VerlTorch, ScaleFormat::F32),
    ("verl_triton_ieee", Profile::VerlTriton, ScaleFormat::F32),
    ("deepseek_act", Profile::Deepseek, ScaleFormat::F32),
    ("div_eps1e12", Profile::Slime, ScaleFormat::F32),
    ("deepgemm", Profile::Deepgemm, ScaleFormat::F32),
    ("deepgemm_ue8m0", Profile::Deepgemm, ScaleFormat::Ue8m0),
    ("hf_nemo", Profile::Hf, ScaleFormat::F32),
];

fn golden() -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/quant/fp8_block_golden.safetensors");
    std::fs::read(path).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn all_finite_golden_vectors() {
    let file = golden();
    let file = SafeTensors::deserialize(&file).unwrap();
    let mut cases = 0;
    for name in file.names() {
        let Some(input) = name.strip_suffix("/input") else { continue };
        if input == "edge_inf_nan_subnormal_huge" {
            continue;
        }
        let x = file.tensor(name).unwrap();
        let elem = if x.dtype() == Dtype::BF16 { Elem::Bf16 } else { Elem::F32 };
        let (rows, cols) = (x.shape()[0], x.shape()[1]);
        // At an odd address, as in a memory-mapped file.
        let shifted: Vec<u8> = std::iter::once(0).chain(x.data().iter().copied()).collect();
        let src = Source::new(&shifted[1..], elem, rows, cols).unwrap();
        for (mode, profile, format) in MODES {
            let q = file.tensor(&format!("{input}/{mode}/weight")).unwrap();
            let s = file.tensor(&format!("{input}/{mode}/scale_inv")).unwrap();
            for edges in [Edges::Strict, Edges::PropagateNan, Edges::IgnoreNan] {
                let spec = profile.cast_spec(format, edges);
                for isa in Isa::available() {
                    let given = |amax| profile.given(format, edges, amax);
                    let got = quantize(isa, &src, (128, 128), &spec, given).unwrap();
                    assert_eq!(bits(&got.scales), bits(&floats(s.data())), "{input} {mode} {isa:?} {edges:?}");
                    assert!(got.q == q.data(), "{input} {mode} {isa:?} {edges:?}");
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 6 * 7 * 3 * Isa::available().len());
}

#[test]
fn seed_torch_edges() {
    let file = golden();
    let file = SafeTensors::deserialize(&file).unwrap();
    let x = file.tensor("edge_inf_nan_subnormal_huge/input").unwrap();
    let q = file.tensor("edge_inf_nan_subnormal_huge/verl_torch/weight").unwrap();
    let s = floats(file.tensor("edge_inf_nan_subnormal_huge/verl_torch/scale_inv").unwrap().data());
    let src = Source::new(x.data(), Elem::F32, 128, 512).unwrap();
    let edges = Edges::PropagateNan;
    let spec = Profile::VerlTorch.cast_spec(ScaleFormat::F32, edges);
    for isa in Isa::available() {
        let given = |amax| Profile::VerlTorch.given(ScaleFormat::F32, edges, amax);
        let got = quantize(isa, &src, (128, 128), &spec, given).unwrap();
        assert_eq!(bits(&got.scales), bits(&s));
        assert_eq!(got.q, q.data(), "{isa:?}");
    }
}

/// What verl's Triton path does at the edges: zero, NaN, infinity, subnormals (there are no golden vectors for it).
#[test]
fn seed_triton_edges() {
    let edges = Edges::IgnoreNan;
    let spec = Profile::VerlTriton.cast_spec(ScaleFormat::F32, edges);
    let x: Vec<f32> = [
        [f32::INFINITY, 500.0, 2.0, 0.0], // scale inf; inf * 0 = NaN -> 0xfe, all other 0
        [f32::NAN, 2.0, -0.0, 1.0],       // NaN is skipped by the maximum and becomes -448
        [1e-39, 0.0, 0.0, 0.0],           // eps wins: all zeros
        [0.0, -0.0, 0.0, 0.0],
        [448.0, -448.0, 1.0, 0.0],
    ]
    .concat();
    let bytes = common::to_bytes(&x, Elem::F32);
    let src = Source::new(&bytes, Elem::F32, 5, 4).unwrap();
    for isa in Isa::available() {
        let got =
            quantize(isa, &src, (1, 4), &spec, |a| Profile::VerlTriton.given(ScaleFormat::F32, edges, a)).unwrap();
        let eps = 1e-10f32 / 448.0;
        assert_eq!(got.scales, [f32::INFINITY, 2.0 / 448.0, eps, eps, 1.0]);
        assert_eq!(
            got.q,
            [0xfe, 0, 0, 0, 0xfe, 0x7e, 0x80, 0x76, 0, 0, 0, 0, 0, 0x80, 0, 0, 0x7e, 0xfe, 0x38, 0],
            "{isa:?}"
        );
    }
}

#[test]
fn dequantizing_is_one_multiplication() {
    let file = golden();
    let file = SafeTensors::deserialize(&file).unwrap();
    let q = file.tensor("rand_bf16_300x130/verl_torch/weight").unwrap();
    let s = floats(file.tensor("rand_bf16_300x130/verl_torch/scale_inv").unwrap().data());
    let mut out = vec![0.0; 300 * 130];
    dequantize(q.data(), &s, 300, 130, 128, 128, &mut out);
    let table = common::positive_values();
    for (i, out) in out.iter().enumerate() {
        let (code, scale) = (q.data()[i], s[i / 130 / 128 * 2 + i % 130 / 128]);
        let value = table[usize::from(code & 0x7f)] as f32 * if code & 0x80 != 0 { -1.0 } else { 1.0 };
        assert_eq!(out.to_bits(), (value * scale).to_bits());
    }
    let mut out = [0.0; 3];
    dequantize(&[0x7f, 0xff, 0x38], &[2.0], 1, 3, 128, 128, &mut out);
    assert!(out[0].is_nan() && out[1].is_nan() && out[2] == 2.0);
    let mut out = [0.0; 1];
    dequantize(&[0x38], &[f32::MAX], 1, 1, 1, 1, &mut out);
    assert_eq!(out[0], f32::MAX);
}
