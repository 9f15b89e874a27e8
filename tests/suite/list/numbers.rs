//! Numbers and layout: non-finite values, golden vectors, shapes, powers of two, the swap of w13.

use super::*;

#[test]
fn item_10_nan_and_infinity_follow_the_named_policy() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (_tmp, folder) = model("qwen3_moe");
        let spoil = |tensors: &mut Vec<Tensor>| {
            let t = tensors.iter_mut().find(|t| t.0 == "model.layers.0.self_attn.q_proj.weight").unwrap();
            let at = 2 * (3 * t.2[1] + 2);
            t.3[at..at + 2].copy_from_slice(&bf16::from_f32(bad).to_le_bytes());
        };
        edit_tensors(&folder, spoil);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let strict = engine(&folder).refit(&checkpoint, &hooks(&["moe_loader", "fp8_block"]), QUIET);
        let error = strict.unwrap_err().to_string();
        assert!(
            error.contains("q_proj.weight") && error.contains("[3, 2]") && error.contains("block [0, 0]"),
            "{error}"
        );
    }
}

#[test]
fn item_11_golden_vectors() {
    // All of them, through the sandbox: tests/golden.rs. Here the one that the seed's own path made, on its own.
    let golden = read(&crate::support::data("quant/fp8_block_golden.safetensors"));
    let find = |name: String| golden.iter().find(|t| t.0 == name).unwrap_or_else(|| panic!("no {name}")).clone();
    let mut tried = 0;
    for input in golden.iter().filter(|t| t.0.ends_with("/input") && t.1 == Dtype::BF16) {
        let stem = input.0.trim_end_matches("/input");
        let values: Vec<f32> = input.3.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect();
        let (q, s, shape) = quantized(input.2[0], input.2[1], &values, &["edges=seed-torch"]);
        let (weight, scale) = (find(format!("{stem}/verl_torch/weight")), find(format!("{stem}/verl_torch/scale_inv")));
        assert_eq!((q, f32_bytes(&s), shape), (weight.3, scale.3, scale.2), "{stem}");
        tried += 1;
    }
    assert!(tried > 0);
}

#[test]
fn item_12_shapes_from_1x1_to_576x7168_and_empty_ones() {
    for (rows, cols) in
        [(1, 1), (1, 700), (700, 1), (300, 130), (576, 7168), (2112, 7168), (0, 128), (40, 96), (256, 128)]
    {
        let values = normal(rows * cols, (rows * 7 + cols) as u64);
        let (q, s, shape) = quantized(rows, cols, &values, &[]);
        assert_eq!(shape, [rows.div_ceil(128), cols.div_ceil(128)], "{rows}x{cols}");
        assert_eq!((q.len(), s.len()), (rows * cols, shape[0] * shape[1]), "{rows}x{cols}");
        // Each value is within half a step of its own: 2^-4 of its size, or half of the least step of its block.
        for (i, (value, code)) in values.iter().zip(&q).enumerate() {
            let value = bf16::from_f32(*value).to_f32();
            let scale = s[i / cols / 128 * shape[1] + i % cols / 128];
            let back = patchhost_kernels::e4m3::decode(*code) * scale;
            let room = (value.abs() / 16.0).max(scale / 1024.0) * 1.000_01;
            assert!((back - value).abs() <= room, "{rows}x{cols} at {i}: {value} became {back}, scale {scale}");
        }
    }
}

/// H8: `squeeze(-1)` made the scale of a matrix with one column of blocks 1-D.
#[test]
fn item_13_the_scale_of_a_narrow_matrix_stays_two_dimensional() {
    for cols in [1, 64, 127, 128] {
        assert_eq!(quantized(300, cols, &normal(300 * cols, cols as u64), &[]).2, [3, 1], "{cols}");
    }
}

#[test]
fn item_14_ue8m0_scales_are_powers_of_two_and_requantizing_them_changes_nothing() {
    let values = normal(300 * 200, 14);
    for profile in ["verl-torch", "verl-triton", "deepseek", "vllm-group", "hf", "deepgemm", "slime"] {
        let profile = format!("profile={profile}");
        let (q, s, shape) = quantized(300, 200, &values, &[&profile, "scale_format=ue8m0"]);
        assert!(s.iter().all(|s| s.to_bits() & 0x007f_ffff == 0 && *s > 0.0), "{profile}: {s:?}");
        let dequantized: Vec<f32> = q
            .iter()
            .enumerate()
            .map(|(i, code)| patchhost_kernels::e4m3::decode(*code) * s[i / 200 / 128 * shape[1] + i % 200 / 128])
            .collect();
        let (again, scales, _) = quantized(300, 200, &dequantized, &[&profile, "scale_format=ue8m0"]);
        assert_eq!(scales, s, "{profile}");
        assert_eq!(again, q, "{profile}");
    }
}

/// vLLM's FlashInfer kernels want [up; gate]. Swapping moves weight and scale alike, twice is nothing, and the model says
/// the same.
#[test]
fn item_15_the_swap_of_w13_is_an_involution_on_weight_and_scale() {
    let (_tmp, folder) = model("qwen3_moe");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let fp8 = hooks(&["moe_loader", "fp8_block"]);
    let plain = engine(&folder);
    plain.refit(&checkpoint, &fp8, QUIET).unwrap();
    let says = logits(&plain, &[IDS]);
    let layout = patch("gpu_layout", &[("passes", "swap-w13,col-major-align")]).layout();
    let engine = engine(&folder);
    engine.refit(&checkpoint, &RefitHooks { layout, ..fp8 }, QUIET).unwrap();
    let (live, before) = (engine.live().unwrap(), plain.live().unwrap());
    let mut swapped = 0;
    for (param, decl) in engine.registry().params().iter().enumerate() {
        let back = live.checkpoint_parts(param);
        assert!(back.iter().zip(before.parts(param)).all(|(a, b)| a.matrix.bit_equal(&b.matrix)), "{}", decl.name);
        if live.swapped(param) {
            let Matrix::Fp8 { q, scales, .. } = &live.plain_parts(param)[0].matrix else { panic!("{}", decl.name) };
            let Matrix::Fp8 { q: up, scales: up_scales, .. } = &before.plain_parts(param)[1].matrix else { panic!() };
            assert!(q == up && scales[0] == up_scales[0], "{}", decl.name);
            swapped += 1;
        }
    }
    assert_eq!(swapped, 2);
    assert_eq!(logits(&engine, &[IDS]), says, "another order in memory is the same model, bit for bit");
}

#[test]
fn item_17_routers_and_shared_expert_gates_are_never_quantized() {
    let quantizing = hooks(&["moe_loader", "fp8_block"]);
    for name in ["qwen2_moe", "qwen3_moe", "mixtral"] {
        let (_tmp, folder) = model(name);
        let outcomes = engine(&folder).explain(&Checkpoint::open(&folder).unwrap(), &quantizing).unwrap();
        let gates: Vec<_> = outcomes
            .iter()
            .filter(|o| o.name.ends_with(".gate.weight") || o.name.ends_with(".shared_expert_gate.weight"))
            .collect();
        assert!(gates.len() >= 2, "{name}");
        for gate in gates {
            assert!(matches!(&gate.outcome, Outcome::Kept { reason } if reason.contains("router")), "{gate:?}");
        }
        assert!(outcomes.iter().any(|o| matches!(o.outcome, Outcome::Quantized { .. })), "{name}");
    }
}
