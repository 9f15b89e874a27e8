#![allow(clippy::unwrap_used)]
use super::*;
use crate::engine::{Engine, EngineOptions};
use crate::refit::{Begin, Manifest, Promise};

const EXPERTS: usize = 3;
const WIDTH: usize = 4;

fn engine(tied: bool) -> Engine {
    let config = serde_json::json!({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 8, "hidden_size": 6,
        "intermediate_size": 4, "moe_intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 2, "num_experts": EXPERTS, "num_experts_per_tok": 1,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": tied, "max_position_embeddings": 16,
        "norm_topk_prob": true, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
        "attention_bias": false,
    });
    Engine::new(&config.to_string(), EngineOptions::default()).unwrap()
}

/// A tensor of bytes that count up from `first`.
fn tensor(name: &str, stored: Dtype, shape: &[usize], first: u8) -> CheckpointTensor {
    let len = shape.iter().product::<usize>() * stored.bitsize() / 8;
    let bytes: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_add(first)).collect();
    let data = TensorBytes::new(Arc::new(bytes), 0..len).unwrap();
    CheckpointTensor::new(name, stored, shape.to_vec(), data)
}

fn checkpoint(tensors: &[CheckpointTensor]) -> Checkpoint {
    Checkpoint::from_tensors(tensors.iter().cloned()).unwrap()
}

fn over(engine: &Engine, held: &[CheckpointTensor], came: &[CheckpointTensor]) -> Result<Source> {
    let begin = Begin { complete: Some(false), ..Begin::default() };
    let part = engine.arrivals(begin).whole(checkpoint(came)).unwrap();
    engine.over(&checkpoint(held), &part)
}

fn bytes(source: &Source, name: &str) -> Vec<u8> {
    source.checkpoint().get(name).unwrap().data.load().unwrap().to_vec()
}

fn names(source: &Source) -> Vec<&str> {
    source.checkpoint().tensors().map(|t| t.name.as_str()).collect()
}

const EXPERT: &str = "model.layers.0.mlp.experts";

#[test]
fn what_came_takes_the_place_of_its_name_and_the_rest_stays() {
    let engine = engine(false);
    let held = [tensor("a", Dtype::U8, &[3], 0), tensor("b", Dtype::U8, &[2], 9)];
    let merged = over(&engine, &held, &[tensor("b", Dtype::U8, &[4], 50)]).unwrap();
    assert_eq!((bytes(&merged, "a"), bytes(&merged, "b")), (vec![0, 1, 2], vec![50, 51, 52, 53]));
    let stayed = merged.stayed().unwrap();
    assert_eq!((stayed.came, stayed.came_bytes, stayed.tensors, &stayed.names[..]), (1, 4, 1, &["a".to_string()][..]));
    // printf 'a\n' | sha256sum
    assert_eq!(stayed.names_sha256, "87428fc522803d31065e7bce3cf03fe475096631e5e07bbd7a0fde60c4cf25c7");
    assert!(stayed.has("a") && !stayed.has("b") && !merged.begin().is_partial());
    let none = over(&engine, &held, &[]).map(|_| ()).unwrap_err().to_string();
    assert!(none.contains("no tensor came"), "{none}");
}

#[test]
fn a_manifest_is_about_what_came() {
    let engine = engine(false);
    let promising = |names: &[&str]| {
        let tensors = names.iter().map(|name| (name.to_string(), Promise::default())).collect();
        Begin { manifest: Some(Manifest { tensors }), complete: Some(false), ..Begin::default() }
    };
    let held = checkpoint(&[tensor("a", Dtype::U8, &[3], 0), tensor("b", Dtype::U8, &[2], 9)]);
    let came = checkpoint(&[tensor("b", Dtype::U8, &[2], 50)]);
    let part = |names: &[&str]| engine.arrivals(promising(names)).whole(came.clone());
    let merged = engine.over(&held, &part(&["b"]).unwrap()).unwrap();
    merged.check().unwrap();
    assert_eq!(merged.expected().unwrap(), ["a", "b"], "what observers are told");
    // `a` is there, and did not come.
    let error = engine.over(&held, &part(&["a", "b"]).unwrap()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("tensor `a`") && error.contains("it did not come"), "{error}");
    assert!(part(&["a"]).is_err(), "not promised");
}

#[test]
fn an_fp8_weight_and_its_scales_come_together() {
    let engine = engine(false);
    let held = [
        tensor("m.weight", Dtype::F8_E4M3, &[2, 2], 0),
        tensor("m.weight_scale_inv", Dtype::F32, &[1, 1], 1),
        tensor("z", Dtype::U8, &[1], 0),
    ];
    let codes = tensor("m.weight", Dtype::F8_E4M3, &[2, 2], 7);
    let scale = |name: &str| tensor(name, Dtype::F32, &[1, 1], 9);
    let error = |came: &[CheckpointTensor]| over(&engine, &held, came).map(|_| ()).unwrap_err().to_string();
    let alone = error(std::slice::from_ref(&codes));
    assert!(alone.contains("tensor `m.weight`") && alone.contains("without its scales"), "{alone}");
    let alone = error(&[scale("m.weight_scale_inv")]);
    assert!(alone.contains("tensor `m.weight_scale_inv`") && alone.contains("did not come with them"), "{alone}");
    let both = over(&engine, &held, &[codes, scale("m.weight_scale")]).unwrap();
    assert_eq!(names(&both), ["m.weight", "m.weight_scale", "z"]);
    let wide = over(&engine, &held, &[tensor("m.weight", Dtype::BF16, &[2, 2], 7)]).unwrap();
    assert_eq!(names(&wide), ["m.weight", "z"], "no scale without codes");
}

#[test]
fn the_copy_of_an_embedding_goes_with_it() {
    let held = [
        tensor("model.embed_tokens.weight", Dtype::BF16, &[8, 6], 0),
        tensor("lm_head.weight", Dtype::BF16, &[8, 6], 0),
    ];
    let came = [tensor("model.embed_tokens.weight", Dtype::BF16, &[8, 6], 5)];
    assert_eq!(names(&over(&engine(true), &held, &came).unwrap()), ["model.embed_tokens.weight"]);
    assert_eq!(names(&over(&engine(false), &held, &came).unwrap()), ["lm_head.weight", "model.embed_tokens.weight"]);
}

fn single(expert: usize, leaf: &str, first: u8) -> CheckpointTensor {
    let shape = if leaf == "down_proj" { [6, WIDTH] } else { [WIDTH, 6] };
    tensor(&format!("{EXPERT}.{expert}.{leaf}.weight"), Dtype::BF16, &shape, first)
}

#[test]
fn all_experts_in_one_tensor_replace_a_tensor_for_each() {
    let engine = engine(false);
    let leaves = ["gate_proj", "up_proj", "down_proj"];
    let held: Vec<_> = (0..EXPERTS).flat_map(|e| leaves.map(|leaf| single(e, leaf, e as u8))).collect();
    let stacked = tensor(&format!("{EXPERT}.gate_up_proj"), Dtype::BF16, &[EXPERTS, 2 * WIDTH, 6], 3);
    let merged = over(&engine, &held, std::slice::from_ref(&stacked)).unwrap();
    let downs: Vec<String> = (0..EXPERTS).map(|e| format!("{EXPERT}.{e}.down_proj.weight")).collect();
    assert_eq!(names(&merged), [downs.iter().map(String::as_str).collect::<Vec<_>>(), vec![&stacked.name]].concat());
    // And the other way round.
    let each: Vec<_> = (0..EXPERTS).flat_map(|e| ["gate_proj", "up_proj"].map(|leaf| single(e, leaf, 9))).collect();
    let merged = over(&engine, &[stacked], &each).unwrap();
    assert_eq!(names(&merged).len(), 2 * EXPERTS);
    assert_eq!(merged.stayed().unwrap().tensors, 0);
}

#[test]
fn the_rest_of_a_stacked_tensor_is_cut_out_of_it() {
    let engine = engine(false);
    let (rows, cols) = (2 * WIDTH, 6);
    let plain = tensor(&format!("{EXPERT}.gate_up_proj"), Dtype::BF16, &[EXPERTS, rows, cols], 1);
    let all = plain.data.load().unwrap();
    // The same matrices, each transposed.
    let mut turned = vec![0; all.len()];
    for (n, element) in all.chunks_exact(2).enumerate() {
        let (matrix, row, col) = (n / (rows * cols), n / cols % rows, n % cols);
        let at = (matrix * rows * cols + col * rows + row) * 2;
        turned[at..at + 2].copy_from_slice(element);
    }
    let len = turned.len();
    let data = TensorBytes::new(Arc::new(turned), 0..len).unwrap();
    let turned = CheckpointTensor::new(plain.name.clone(), Dtype::BF16, vec![EXPERTS, cols, rows], data);
    for held in [plain.clone(), turned] {
        let merged = over(&engine, &[held], &[single(1, "up_proj", 200)]).unwrap();
        assert_eq!(merged.stayed().unwrap().tensors, 2 * EXPERTS - 1);
        for expert in 0..EXPERTS {
            for (half, leaf) in ["gate_proj", "up_proj"].iter().enumerate() {
                let got = bytes(&merged, &format!("{EXPERT}.{expert}.{leaf}.weight"));
                let start = (expert * rows + half * WIDTH) * cols * 2;
                let want = match (expert, half) {
                    (1, 1) => single(1, "up_proj", 200).data.load().unwrap().to_vec(),
                    _ => all[start..start + WIDTH * cols * 2].to_vec(),
                };
                assert_eq!(got, want, "{expert} {leaf}");
            }
        }
    }
    for (stored, shape, says) in [
        (Dtype::F8_E4M3, [EXPERTS, rows, cols], "cannot be cut from their scales"),
        (Dtype::BF16, [EXPERTS, 5, 5], "does not say how its parts lie"),
    ] {
        let held = tensor(&plain.name, stored, &shape, 0);
        let error = over(&engine, &[held], &[single(0, "up_proj", 0)]).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("0.up_proj.weight"), "{error}");
    }
}

#[test]
fn a_small_rest_does_not_keep_a_large_body() {
    let body: Arc<Vec<u8>> = Arc::new((0..100).collect());
    let part = |name: &str, range: std::ops::Range<usize>| {
        let data = TensorBytes::new(body.clone(), range.clone()).unwrap();
        CheckpointTensor::new(name, Dtype::U8, vec![range.len()], data)
    };
    let held = [part("large", 0..90), part("small", 90..100)];
    let merged = over(&engine(false), &held, &[tensor("large", Dtype::U8, &[90], 7)]).unwrap();
    assert_eq!(bytes(&merged, "small"), (90..100).collect::<Vec<u8>>());
    drop(held);
    assert_eq!(Arc::strong_count(&body), 1, "nothing else holds it");
}
