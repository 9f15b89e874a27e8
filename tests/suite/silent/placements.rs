//! Placements that differ from the host's own map are remarked wherever they are seen, and refused where the operator says so.

use std::path::Path;

use super::{Row, experts, llama_loader, loader, rig};
use crate::live::me;
use crate::support::{data, patchhost, tmp};

fn explain(model: &str, folder: &Path, bytes: &[u8], more: &[&str]) -> crate::support::Ran {
    let file = folder.join("loader.wasm");
    std::fs::write(&file, bytes).unwrap();
    let (model, file) = (data("oracle").join(model).display().to_string(), file.display().to_string());
    let mut args = vec!["explain", &model, "--component", &file, "--no-default-patches"];
    args.extend(more);
    patchhost(args)
}

/// Each kind of exchange: what goes elsewhere, and what is said of it.
fn exchanges() -> Vec<(&'static str, &'static str, Vec<Row>, [&'static str; 2])> {
    let attention = |layer: u32| format!("model.layers.{layer}.self_attn");
    let qkv = |layer, leaf: &str, slot: &str| {
        let module = attention(layer);
        Row::new(&format!("{module}.{leaf}.weight"), &format!("{module}.qkv_proj.weight"), slot)
    };
    let mlp = |leaf: &str, slot: &str| {
        Row::new(&format!("model.layers.1.mlp.{leaf}.weight"), "model.layers.1.mlp.gate_up_proj.weight", slot)
    };
    let norm = |from: &str, to: &str| Row::new(from, to, "whole");
    let exchanged = |a: u32, b: u32| {
        let mut rows = experts();
        for row in &mut rows {
            if row.name.contains("layers.0.mlp.experts") && row.name.contains("down_proj") {
                row.expert = row.expert.map(|e| {
                    if e == a {
                        b
                    } else if e == b {
                        a
                    } else {
                        e
                    }
                });
            }
        }
        rows
    };
    let mut halves = experts();
    for row in halves.iter_mut().filter(|row| row.name.contains("layers.1.mlp.experts.2.")) {
        row.slot = match row.slot {
            1 => 3,
            3 => 1,
            other => other,
        };
    }
    vec![
        ("llama", "k for v", vec![qkv(0, "k_proj", "v"), qkv(0, "v_proj", "k")], ["slot v", "slot k"]),
        ("llama", "gate for up", vec![mlp("gate_proj", "up"), mlp("up_proj", "gate")], ["slot up", "slot gate"]),
        (
            "llama",
            "layers",
            (0..2)
                .map(|layer| {
                    let name = |layer| format!("model.layers.{layer}.mlp.down_proj.weight");
                    Row::new(&name(layer), &name(1 - layer), "whole")
                })
                .collect(),
            ["`model.layers.1.mlp.down_proj.weight`", "`model.layers.0.mlp.down_proj.weight`"],
        ),
        (
            "llama",
            "norms",
            vec![
                norm("model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight"),
                norm("model.layers.0.post_attention_layernorm.weight", "model.layers.0.input_layernorm.weight"),
            ],
            ["post_attention_layernorm", "input_layernorm"],
        ),
        ("qwen3_moe", "experts", exchanged(1, 3), ["expert 3", "expert 1"]),
        ("qwen3_moe", "gate for up of an expert", halves, ["slot w3, expert 2", "slot w1, expert 2"]),
    ]
}

#[test]
fn explain_says_what_goes_elsewhere() {
    let tmp = tmp();
    std::fs::write(tmp.path().join("strict.toml"), "[loader]\ndiffers = \"refuse\"\n").unwrap();
    let strict = tmp.path().join("strict.toml").display().to_string();
    for (model, what, rows, [placed, host]) in exchanges() {
        let bytes = loader(&rows);
        let ran = explain(model, tmp.path(), &bytes, &[]).good();
        let remark = ran
            .stdout
            .lines()
            .find(|line| line.starts_with("remark: "))
            .unwrap_or_else(|| panic!("{what}: {}", ran.stdout));
        assert!(
            remark.contains("patch `wat-guest` places 2 tensors elsewhere than the host's own map"),
            "{what}: {remark}"
        );
        assert!(remark.contains(placed) && remark.contains(host), "{what}: {remark}");
        assert!(ran.stdout.contains("; the host's own map: "), "{what}: {}", ran.stdout);
        let json = explain(model, tmp.path(), &bytes, &["--format", "json"]).good().json();
        let elsewhere = json["tensors"].as_array().unwrap().iter().filter(|t| t["host_map"].is_string());
        let elsewhere: Vec<_> = elsewhere.collect();
        assert_eq!(elsewhere.len(), 2, "{what}");
        assert!(
            elsewhere.iter().all(|t| t["placed"]["slot"].is_string() && t["placed"]["transposed"] == false),
            "{what}"
        );
        let refused = explain(model, tmp.path(), &bytes, &["--policy", &strict]);
        let text = refused.refused(1, tmp.path());
        assert!(text.contains("[loader] differs = \"refuse\"") && text.contains(placed), "{what}: {text}");
    }
}

/// A square matrix that is loaded transposed has the right shape.
#[test]
fn a_transposed_square_is_remarked() {
    let tmp = tmp();
    let model = crate::support::copy_model("llama", tmp.path());
    // 6 heads of 16: o_proj is 96x96.
    crate::support::edit_config(&model, |config| config["num_attention_heads"] = 6.into());
    crate::support::edit_tensors(&model, |tensors| {
        for (name, _, shape, bytes) in tensors {
            if name.ends_with("o_proj.weight") || name.ends_with("q_proj.weight") {
                *shape = vec![96, 96];
                *bytes = crate::support::bf16_bytes(&crate::support::normal(96 * 96, 3));
            }
        }
    });
    let row = Row::new("model.layers.0.self_attn.o_proj.weight", "model.layers.0.self_attn.o_proj.weight", "whole");
    let bytes = loader(&[Row { transposed: true, ..row }]);
    let ran = explain(&model.display().to_string(), tmp.path(), &bytes, &[]).good();
    assert!(ran.stdout.contains("placed in model.layers.0.self_attn.o_proj.weight, slot whole, transposed; the host's own map: `model.layers.0.self_attn.o_proj.weight`, slot whole"), "{}", ran.stdout);
}

#[test]
fn honest_loaders_are_not_remarked() {
    let tmp = tmp();
    let ran = explain("qwen3_moe", tmp.path(), &loader(&experts()), &[]).good();
    assert!(!ran.stdout.contains("remark: "), "{}", ran.stdout);
    // Every way to store experts that the bundled loader knows.
    for model in
        ["qwen3_moe", "qwen3_moe_fused", "qwen3_vl_moe", "mixtral", "olmoe", "qwen2_moe", "qwen3_next", "deepseek_v3"]
    {
        let ran = patchhost(["explain", &data("oracle").join(model).display().to_string()]).good();
        assert!(!ran.stdout.contains("remark: "), "{model}: {}", ran.stdout);
    }
    // Named for each tensor with --all.
    let model = data("oracle").join("qwen3_moe").display().to_string();
    let ran = patchhost(["explain", &model, "--all"]).good();
    assert!(
        ran.stdout.contains("placed in model.layers.1.mlp.experts.w13_weight, slot w3, expert 2"),
        "{}",
        ran.stdout
    );
}

/// The probe, staging, the report of a refit and the ledger say it too.
#[test]
fn staging_and_the_ledger_say_what_goes_elsewhere() {
    let live = rig("llama", &[("honest", &llama_loader(&[]))], "");
    let (_, _, rows, _) = exchanges().swap_remove(0);
    let candidate = || patchhost::patch::Candidate::from_bytes("k-for-v", llama_loader(&rows)).unwrap();
    let staged = live.live.stage(candidate(), None, &[], &me()).unwrap();
    assert!(staged.remarks.iter().any(|remark| remark.contains("places 2 tensors elsewhere")), "{:?}", staged.remarks);
    assert_eq!(live.last("patch.staged")["remarks"][0], staged.remarks[0]);
    live.swap(staged.generation, patchhost::patch::When::Now);
    let refit = live.last("refit");
    assert_eq!((&refit["placed_elsewhere"], &refit["remarks"][0]), (&2.into(), &staged.remarks[0].as_str().into()));
    assert_eq!(live.live.last_refit().unwrap().report.placed_elsewhere, 2);
    // Where the operator refuses them, it is not staged.
    let strict = rig("llama", &[("honest", &llama_loader(&[]))], "[loader]\ndiffers = \"refuse\"\n");
    let error = strict.live.stage(candidate(), None, &[], &me()).unwrap_err().to_string();
    assert!(error.contains("elsewhere than the host's own map"), "{error}");
}
