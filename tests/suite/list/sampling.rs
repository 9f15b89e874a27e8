//! Adapters, and ids that are never sampled.

use super::*;

#[test]
fn item_18_an_adapter_in_three_chunks_equals_one() {
    // Any number and order of chunks, and every adapter: tests/suite/lora.rs. Here the number that the list says.
    let (_tmp, folder) = model("qwen3_moe");
    let engine = crate::oracle::loaded(&folder, &hooks(&["moe_loader"]));
    let adapter = crate::support::data("lora/qwen3_moe_attention");
    let config = std::fs::read_to_string(adapter.join("adapter_config.json")).unwrap();
    let tensors = Checkpoint::open(&adapter.join("adapter_model.safetensors")).unwrap();
    let says = |chunks: usize| {
        let mut builder = AdapterBuilder::new("a", config.clone());
        for t in tensors.tensors() {
            let size = t.data.len().div_ceil(chunks);
            for (i, part) in t.data.load().unwrap().chunks(size).enumerate() {
                let header = ChunkHeader { name: &t.name, dtype: t.stored, shape: &t.shape, offset: i * size };
                builder.chunk(&header, part).unwrap();
            }
        }
        let patch = crate::lora::lora_patch("lora_tensors", &[]);
        let adapter = engine.load_adapter(builder, patch.as_ref()).unwrap();
        crate::lora::logits_with(&engine, Some(adapter), IDS)
    };
    assert_eq!(says(3), says(1));
    assert_ne!(says(1), logits(&engine, &[IDS]));
}

/// B45: the seed removes the adapter and adds the next, with a window between. Here a sequence keeps the one it began with.
#[test]
fn item_19_a_sequence_keeps_its_adapter_and_says_which() {
    let (_tmp, folder) = model("qwen3_moe");
    let engine = crate::oracle::loaded(&folder, &hooks(&["moe_loader"]));
    let patch = crate::lora::lora_patch("lora_tensors", &[]);
    let load = |factor: f32| {
        let adapter = crate::support::data("lora/qwen3_moe_attention");
        let config = std::fs::read_to_string(adapter.join("adapter_config.json")).unwrap();
        let mut builder = AdapterBuilder::new("a", config);
        for (name, dtype, shape, bytes) in read(&adapter.join("adapter_model.safetensors")) {
            let scaled: Vec<f32> = read_f32(&bytes).iter().map(|v| v * factor).collect();
            let header = ChunkHeader { name: &name, dtype, shape: &shape, offset: 0 };
            builder.chunk(&header, &f32_bytes(&scaled)).unwrap();
        }
        engine.load_adapter(builder, patch.as_ref()).unwrap()
    };
    let weights = engine.live().unwrap();
    let step = |cache: &mut KvCache, tokens: &[u32]| -> Vec<f32> {
        let mut batch = [Sequence { tokens, cache }];
        engine.model().forward(&weights, &mut batch, Rows::Last).unwrap().into_values()
    };
    let first = load(1.0);
    let mut undisturbed = engine.model().new_cache_with(Some(first.clone()));
    let expected = (step(&mut undisturbed, &IDS[..3]), step(&mut undisturbed, &IDS[3..]));
    let mut running = engine.model().new_cache_with(engine.adapters().get("a"));
    let before = step(&mut running, &IDS[..3]);
    let second = load(-0.5);
    assert!(second.version() > first.version());
    assert_eq!((before, step(&mut running, &IDS[3..])), expected, "the running sequence kept its adapter");
    assert_eq!(running.adapter().unwrap().version(), first.version());
    let mut fresh = engine.model().new_cache_with(engine.adapters().get("a"));
    assert_ne!(step(&mut fresh, &IDS[..3]), expected.0);
    assert_eq!(fresh.adapter().unwrap().version(), second.version());
}

/// B47: padding rows of the vocabulary. The model is made to want nothing else.
#[test]
fn item_20_ids_beyond_the_vocabulary_are_never_sampled() {
    let tmp = tmp();
    let folder =
        crate::support::copy_folder(&crate::support::repo().join("models/tiny-shakespeare-moe"), &tmp.path().join("m"));
    // 64 rows more, each a large multiple of a row that exists: one of them is the most likely token everywhere.
    let mut vocabulary = 0;
    edit_tensors(&folder, |tensors| {
        for t in tensors.iter_mut().filter(|t| t.0 == "lm_head.weight" || t.0 == "model.embed_tokens.weight") {
            let cols = t.2[1];
            vocabulary = t.2[0];
            let values: Vec<f32> = t.3.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect();
            let rows = values.chunks_exact(cols).take(64).flatten();
            let padding: Vec<f32> =
                rows.enumerate().map(|(i, v)| v * if i / cols % 2 == 0 { 9.0 } else { -9.0 }).collect();
            t.3.extend(bf16_bytes(&padding));
            t.2[0] += 64;
        }
    });
    crate::support::edit_config(&folder, |c| c["vocab_size"] = (vocabulary + 64).into());
    let run = |more: &[&str]| {
        let mut args =
            vec!["run", folder.to_str().unwrap(), "--prompt", "KING", "--max-tokens", "12", "--format", "json"];
        args.extend(more);
        patchhost(args)
    };
    let ids = |ran: serde_json::Value| -> Vec<u64> {
        ran["completions"][0]["token_ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect()
    };
    for settings in [&["--temperature", "0"][..], &["--temperature", "1.5", "--seed", "3"]] {
        let ran = run(settings).good().json();
        assert_eq!(ran["masked_ids"], 64);
        let sampled = ids(ran);
        assert!(sampled.len() == 12 && sampled.iter().all(|id| *id < vocabulary as u64), "{sampled:?}");
        let without = run(&[settings, &["--no-default-patches", "--component", "moe_loader"]].concat());
        // Without the patch such an id is sampled, and cannot be decoded.
        assert!(without.code != 0 || ids(without.json()).iter().any(|id| *id >= vocabulary as u64));
    }
    let banned = run(&["--temperature", "0", "--component", "vocab_mask", "--set", "banned=3,4,5"]).good().json();
    assert_eq!(banned["masked_ids"], 67);
}
