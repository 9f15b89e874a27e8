//! Weights that are NaN or infinite do not go live, whatever a patch's scheme says, unless the operator's policy lets them.

use serde_json::json;

use super::quantizer;
use crate::hostile::wat;
use crate::http_client::{Server, TOKEN, token_file};
use crate::http_rl::{file, step};
use crate::support::{Tensor, patchhost, tmp};

/// One bf16 of a tensor takes these bits.
fn spoiled(name: &str, at: usize, bits: u16) -> Vec<u8> {
    let mut tensors = step(1);
    spoil(&mut tensors, name, at, bits);
    file(&tensors, &[])
}

fn spoil(tensors: &mut [Tensor], name: &str, at: usize, bits: u16) {
    let tensor = tensors.iter_mut().find(|t| t.0.ends_with(name)).unwrap_or_else(|| panic!("no {name}"));
    tensor.3[2 * at..2 * at + 2].copy_from_slice(&bits.to_le_bytes());
}

const NAN: u16 = 0x7fc0;
const INF: u16 = 0xff80;

#[test]
fn no_scheme_lets_them_pass() {
    let tmp = tmp();
    for edges in [1, 2] {
        let guest = tmp.path().join(format!("edges{edges}.wasm"));
        std::fs::write(&guest, wat::component("quant-patch", &quantizer([128, 128], edges))).unwrap();
        let token = token_file(tmp.path(), TOKEN);
        let server = Server::start(&[
            "--component",
            &guest.display().to_string(),
            "--admin-token-file",
            &token.display().to_string(),
        ]);
        let before = server.checksums();
        // Quantized matrices, of attention and of experts; then what no patch quantizes.
        for (name, at, bits) in [
            ("layers.0.self_attn.q_proj.weight", 0, NAN),
            ("layers.1.self_attn.v_proj.weight", 37, INF),
            ("experts.2.down_proj.weight", 5, NAN),
            ("input_layernorm.weight", 3, NAN),
            ("embed_tokens.weight", 1000, INF),
            ("mlp.gate.weight", 7, NAN),
        ] {
            let text = server.bytes("/update_weights", &spoiled(name, at, bits)).refused(422);
            assert!(text.contains(name) && text.contains("index ["), "{text}");
            let quantized = name.contains("_proj");
            assert_eq!(text.contains("block ["), quantized, "{text}");
            assert!(text.contains("non_finite = \"allow\""), "{text}");
        }
        let two = {
            let mut tensors = step(1);
            spoil(&mut tensors, "layers.0.self_attn.q_proj.weight", 1, NAN);
            spoil(&mut tensors, "layers.0.self_attn.q_proj.weight", 9, INF);
            file(&tensors, &[])
        };
        let text = server.bytes("/update_weights", &two).refused(422);
        assert!(text.contains("index [0, 1]") && text.contains("2 of its values are not finite"), "{text}");
        assert_eq!(server.checksums(), before, "the old weights serve");
        server.bytes("/update_weights", &file(&step(1), &[])).good();
        let status = server.as_admin("GET", "/admin/v1/status", &json!({})).good();
        let report = &status["last_refit"]["report"];
        assert_eq!(report["non_finite"], 0, "{report}");
        let remark = report["remarks"][0].as_str().unwrap();
        assert!(remark.contains(["edges = propagate-nan", "edges = ignore-nan"][edges as usize - 1]), "{remark}");
    }
}

#[test]
fn the_operator_may_let_them_pass() {
    let tmp = tmp();
    let guest = tmp.path().join("edges.wasm");
    std::fs::write(&guest, wat::component("quant-patch", &quantizer([128, 128], 2))).unwrap();
    let policy = tmp.path().join("policy.toml");
    std::fs::write(&policy, "[quant]\nnon_finite = \"allow\"\n").unwrap();
    let token = token_file(tmp.path(), TOKEN);
    let (guest, policy, token) =
        (guest.display().to_string(), policy.display().to_string(), token.display().to_string());
    let server = Server::start(&["--component", &guest, "--policy", &policy, "--admin-token-file", &token]);
    let mut tensors = step(1);
    spoil(&mut tensors, "layers.0.self_attn.q_proj.weight", 0, NAN);
    spoil(&mut tensors, "layers.0.self_attn.k_proj.weight", 8, NAN);
    spoil(&mut tensors, "norm.weight", 2, INF);
    server.bytes("/update_weights", &file(&tensors, &[])).good();
    let status = server.as_admin("GET", "/admin/v1/status", &json!({})).good();
    assert_eq!(status["last_refit"]["report"]["non_finite"], 3, "{}", status["last_refit"]);
    assert_eq!(status["last_refit"]["receipt"]["counts"]["non_finite"], 3, "{}", status["last_refit"]);
    let ledger = server.as_admin("GET", "/admin/v1/ledger?last=1", &json!({})).good();
    assert_eq!((&ledger["entries"][0]["event"], &ledger["entries"][0]["non_finite"]), (&json!("refit"), &json!(3)));
}

#[test]
fn explain_and_the_probe_remark_such_edges() {
    let tmp = tmp();
    for (edges, name) in [(1, "propagate-nan"), (2, "ignore-nan")] {
        let guest = tmp.path().join("edges.wasm");
        std::fs::write(&guest, wat::component("quant-patch", &quantizer([128, 128], edges))).unwrap();
        let guest = guest.display().to_string();
        let explained = patchhost(["explain", "--component", &guest]).good().stdout;
        assert!(explained.contains(&format!(", edges {name}: ")), "{explained}");
        assert!(explained.contains("remark: ") && explained.contains(&format!("with edges = {name}")), "{explained}");
        let audited = patchhost(["audit", "--probe", &guest]);
        assert!(audited.stdout.contains(&format!("edges = {name}")), "{}{}", audited.stdout, audited.stderr);
    }
    let strict = patchhost(["explain", "--component", "fp8_block"]).good().stdout;
    assert!(!strict.contains("remark: ") && !strict.contains("edges"), "{strict}");
}

/// Scales that take more than a quarter of what the codes take are no compression.
#[test]
fn tiny_blocks_are_refused() {
    let tmp = tmp();
    let guest = tmp.path().join("tiny.wasm");
    let path = guest.display().to_string();
    for (block, good) in [([1, 1], false), ([1, 8], false), ([3, 5], false), ([1, 16], true), ([4, 4], true)] {
        std::fs::write(&guest, wat::component("quant-patch", &quantizer(block, 0))).unwrap();
        let ran = patchhost(["explain", "--component", &path]);
        match good {
            true => drop(ran.good()),
            false => {
                let text = ran.refused(3, tmp.path());
                assert!(text.contains("each with a scale of 4 bytes; a block has at least 16"), "{text}");
            }
        }
    }
}
