//! `patchhost quantize` from outside.

use std::path::Path;

use safetensors::tensor::Dtype;

use crate::support::{Tensor, bf16_bytes, data, f32_bytes, matrix_file, normal, patchhost, read, read_f32, tmp, write};

fn run(input: &Path, out: &Path, extra: &[&str]) -> crate::support::Ran {
    let (i, o) = (input.display().to_string(), out.display().to_string());
    patchhost(["quantize", &i, &o, "--force", "--format", "json"].iter().chain(extra))
}

fn find<'a>(tensors: &'a [Tensor], name: &str) -> &'a Tensor {
    tensors.iter().find(|t| t.0 == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn the_reference_vectors_through_the_command_line() {
    let tmp = tmp();
    let golden = read(&data("quant/fp8_block_golden.safetensors"));
    let inputs: Vec<Tensor> =
        golden.iter().filter(|t| t.0.ends_with("/input") && !t.0.starts_with("edge_inf")).cloned().collect();
    let path = tmp.path().join("in.safetensors");
    write(&path, &inputs);
    for (mode, settings) in [
        ("verl_torch", &[][..]),
        ("verl_triton_ieee", &["profile=verl-triton"]),
        ("deepseek_act", &["profile=deepseek"]),
        ("deepgemm_ue8m0", &["profile=deepgemm", "scale_format=ue8m0"]),
        ("hf_nemo", &["profile=hf"]),
    ] {
        let out = tmp.path().join(format!("{mode}.safetensors"));
        let mut extra = vec!["--component", "fp8_block.wasm"];
        for s in settings {
            extra.extend(["--set", s]);
        }
        run(&path, &out, &extra).good();
        let made = read(&out);
        for t in &inputs {
            let stem = t.0.trim_end_matches("/input");
            let (q, s) = (find(&made, &t.0), find(&made, &format!("{}_scale_inv", t.0)));
            assert_eq!((q.1, &q.2), (Dtype::F8_E4M3, &t.2));
            assert_eq!(s.1, Dtype::F32);
            assert_eq!(q.3, find(&golden, &format!("{stem}/{mode}/weight")).3, "{stem}/{mode}");
            let scale = find(&golden, &format!("{stem}/{mode}/scale_inv"));
            assert_eq!((&s.2, &s.3), (&scale.2, &scale.3), "{stem}/{mode}");
        }
    }
}

#[test]
fn edges_strict_names_the_value_and_seed_torch_takes_it() {
    let tmp = tmp();
    let mut values = normal(300 * 200, 3);
    values[170 * 200 + 140] = f32::NEG_INFINITY;
    let path = tmp.path().join("in.safetensors");
    write(&path, &[("layer.weight".into(), Dtype::F32, vec![300, 200], f32_bytes(&values))]);
    let out = tmp.path().join("out.safetensors");
    let (i, o) = (path.display().to_string(), out.display().to_string());
    let text = patchhost(["quantize", &i, &o, "--component", "fp8_block"]).refused(1, tmp.path());
    insta::assert_snapshot!(text);
    assert!(!out.exists());
    run(&path, &out, &["--component", "fp8_block", "--set", "edges=seed-torch"]).good();
    let made = read(&out);
    // inf: scale 1, inf saturates to 448; the block's other values are cast with scale 1.
    assert_eq!(read_f32(&find(&made, "layer.weight_scale_inv").3)[3], 1.0);
    assert_eq!(find(&made, "layer.weight").3[170 * 200 + 140], 0xfe);
}

#[test]
fn shapes_other_tensors_and_globs() {
    let tmp = tmp();
    let path = tmp.path().join("in.safetensors");
    let matrix = |name: &str, rows: usize, cols: usize| -> Tensor {
        (name.into(), Dtype::BF16, vec![rows, cols], bf16_bytes(&normal(rows * cols, 5)))
    };
    let mut tensors = vec![
        matrix("a.weight", 1, 1),
        matrix("b.weight", 1, 700),
        matrix("c.weight", 700, 1),
        matrix("d.weight", 257, 129),
        matrix("empty.weight", 0, 128),
        matrix("mlp.gate.weight", 8, 128),
        ("norm.weight".into(), Dtype::F32, vec![5], f32_bytes(&normal(5, 6))),
        ("steps".into(), Dtype::I64, vec![1], vec![7, 0, 0, 0, 0, 0, 0, 0]),
    ];
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    write(&path, &tensors);
    let out = tmp.path().join("out.safetensors");
    let report = run(&path, &out, &["--component", "fp8_block"]).good().json();
    let made = read(&out);
    for (name, grid) in [
        ("a.weight", [1, 1]),
        ("b.weight", [1, 6]),
        ("c.weight", [6, 1]),
        ("d.weight", [3, 2]),
        ("empty.weight", [0, 1]),
    ] {
        assert_eq!(find(&made, name).1, Dtype::F8_E4M3, "{name}");
        assert_eq!(find(&made, &format!("{name}_scale_inv")).2, grid, "{name}");
    }
    for name in ["mlp.gate.weight", "norm.weight", "steps"] {
        assert_eq!(find(&made, name), find(&tensors, name), "{name} must be unchanged");
    }
    assert_eq!(report["quantized"], 5);

    let some = tmp.path().join("some.safetensors");
    run(&path, &some, &["--component", "fp8_block", "--tensors", "d.*"]).good();
    let made = read(&some);
    assert_eq!(find(&made, "d.weight").1, Dtype::F8_E4M3);
    assert_eq!(find(&made, "b.weight"), find(&tensors, "b.weight"));

    // The same input gives the same bytes.
    let again = tmp.path().join("again.safetensors");
    run(&path, &again, &["--component", "fp8_block", "--threads", "1"]).good();
    assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(&again).unwrap());
}

#[test]
fn block_sizes_and_settings_reach_the_patch() {
    let tmp = tmp();
    let path = crate::support::matrix_file(tmp.path(), 130, 300);
    let out = tmp.path().join("out.safetensors");
    for (block, grid) in [("64x128", [3, 3]), ("1x128", [130, 3]), ("128x1", [2, 300]), ("4096x4096", [1, 1])] {
        run(&path, &out, &["--component", "fp8_block", "--set", &format!("block={block}")]).good();
        assert_eq!(find(&read(&out), "w_scale_inv").2, grid, "{block}");
    }
    let meta = patchhost_runtime::checkpoint::Checkpoint::open(&out).unwrap().metadata().clone();
    assert!(
        meta["patchhost.patch_digest"].len() >= 64 && meta["patchhost.settings"].contains("block=4096x4096"),
        "{meta:?}"
    );
    assert_eq!(meta["patchhost.profile"], "verl-torch");
}

/// Student's t with 3 degrees of freedom: the tails that outlier-heavy weights have.
fn heavy(n: usize, seed: u64) -> Vec<f32> {
    let parts: Vec<Vec<f32>> = (0..4).map(|i| normal(n, seed + i)).collect();
    (0..n)
        .map(|i| parts[0][i] / ((1..4).map(|p| parts[p][i] * parts[p][i]).sum::<f32>() / 3.0).sqrt().max(1e-6))
        .collect()
}

/// MSE-optimal scales against amax scales on heavy tails, and that the gain is what it says.
#[test]
fn mse_scales_lower_the_error_on_heavy_tails() {
    let tmp = tmp();
    let path = tmp.path().join("in.safetensors");
    write(&path, &[("w".into(), Dtype::BF16, vec![512, 1030], bf16_bytes(&heavy(512 * 1030, 9)))]);
    let rmse = |component: &str| {
        let out = tmp.path().join("out.safetensors");
        let report = run(&path, &out, &["--component", component]).good().json();
        let original: Vec<f32> = heavy(512 * 1030, 9).iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
        let made = read(&out);
        let scales = read_f32(&find(&made, "w_scale_inv").3);
        let q = &find(&made, "w").3;
        let (mut error, mut sum) = (0.0f64, 0.0f64);
        for (i, x) in original.iter().enumerate() {
            let s = scales[i / 1030 / 128 * 9 + i % 1030 / 128];
            let y = patchhost_kernels::e4m3::decode(q[i]) * s;
            error += ((x - y) as f64).powi(2);
            sum += (*x as f64).powi(2);
        }
        let measured = (error / sum).sqrt();
        let said = report["relative_rmse"].as_f64().unwrap();
        assert!((measured - said).abs() < 1e-6 * measured.max(1.0), "said {said}, measured {measured}");
        measured
    };
    let (amax, mse) = (rmse("fp8_block"), rmse("fp8_block_mse"));
    println!("relative RMSE on Student t(3): amax {amax:.5}, mse {mse:.5}, {:.1} % lower", (1.0 - mse / amax) * 100.0);
    assert!(mse < amax * 0.97, "amax {amax}, mse {mse}");
}

/// With many bad values, the first is named, whatever the threads do.
#[test]
fn the_first_bad_value_is_named_every_time() {
    let tmp = tmp();
    let mut values = normal(4096 * 64, 3);
    for row in (130..4096).step_by(64) {
        values[row * 64 + 5] = f32::NAN;
    }
    let (path, out) = (tmp.path().join("in.safetensors"), tmp.path().join("out.safetensors"));
    write(&path, &[("w".into(), Dtype::F32, vec![4096, 64], f32_bytes(&values))]);
    for threads in ["1", "2", "7", "7", "7", "7"] {
        let (i, o) = (path.display().to_string(), out.display().to_string());
        let ran = patchhost(["quantize", &i, &o, "--component", "fp8_block", "--threads", threads]);
        let text = ran.refused(1, tmp.path());
        assert!(text.contains("index [130, 5] is NaN (block [1, 0]"), "{threads} threads: {text}");
    }
}

/// Fused 3-D experts of a plain file: each expert's matrix has its own grid of blocks.
#[test]
fn fused_experts_are_quantized_expert_by_expert() {
    let tmp = tmp();
    let (path, out) = (tmp.path().join("in.safetensors"), tmp.path().join("out.safetensors"));
    let values = normal(3 * 130 * 140, 11);
    let name = "model.layers.0.mlp.experts.gate_up_proj";
    let other = "conv.weight";
    write(
        &path,
        &[
            (other.into(), Dtype::BF16, vec![2, 3, 4], bf16_bytes(&normal(24, 12))),
            (name.into(), Dtype::BF16, vec![3, 130, 140], bf16_bytes(&values)),
        ],
    );
    run(&path, &out, &["--component", "fp8_block"]).good();
    let made = read(&out);
    assert_eq!(find(&made, name).2, [3, 130, 140]);
    let scales = find(&made, &format!("{name}_scale_inv"));
    assert_eq!(scales.2, [3, 2, 2]);
    let single = tmp.path().join("single.safetensors");
    write(&single, &[("w".into(), Dtype::BF16, vec![130, 140], bf16_bytes(&values[130 * 140..2 * 130 * 140]))]);
    run(&single, &out, &["--component", "fp8_block"]).good();
    let alone = read(&out);
    assert_eq!(find(&made, name).3[130 * 140..2 * 130 * 140], find(&alone, "w").3);
    assert_eq!(scales.3[16..32], find(&alone, "w_scale_inv").3);
    assert_eq!(find(&made, other).1, Dtype::BF16);
}

#[test]
fn what_is_there_is_replaced_only_with_force() {
    let tmp = tmp();
    let input = matrix_file(tmp.path(), 128, 128);
    let out = tmp.path().join("out.safetensors");
    std::fs::write(&out, "precious").unwrap();
    let quantize = |out: &Path, extra: &[&str]| {
        let args = ["quantize", input.to_str().unwrap(), out.to_str().unwrap(), "--component", "fp8_block"];
        patchhost(args.iter().chain(extra))
    };
    let mut text = quantize(&out, &[]).refused(2, tmp.path());
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");
    text += "\n\n";
    text += &quantize(tmp.path(), &["--force"]).refused(2, tmp.path());
    insta::assert_snapshot!(text);
    quantize(&out, &["--force"]).good();
    assert_eq!(read(&out).len(), 2);
    // A device is no file that could be lost, and one that is full says so.
    quantize(Path::new("/dev/null"), &[]).good();
    assert!(quantize(Path::new("/dev/full"), &[]).refused(4, tmp.path()).contains("No space left"));
    assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
}
