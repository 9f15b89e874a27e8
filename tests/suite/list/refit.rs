//! The refit: loaders, coverage, duplicates, ranks, types, caches, names.

use super::*;

/// B12: which runtime tensors have a loader. vLLM 0.8.2 lost those of the experts after the first load.
#[test]
fn item_04_every_runtime_tensor_has_a_loader_after_three_refits() {
    let (_tmp, folder) = model("qwen2_moe");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let engine =
        Engine::open(&folder, EngineOptions { simulate_loader_loss: true, ..EngineOptions::default() }).unwrap();
    let hooks = hooks(&["moe_loader"]);
    let layer = "model.layers.0";
    for _ in 0..3 {
        engine.refit(&checkpoint, &hooks, QUIET).unwrap();
        let targets: std::collections::BTreeSet<String> =
            engine.explain(&checkpoint, &hooks).unwrap().into_iter().filter_map(|o| o.target).collect();
        for name in [
            "model.embed_tokens.weight".to_string(),
            format!("{layer}.self_attn.qkv_proj.weight"),
            format!("{layer}.self_attn.qkv_proj.bias"),
            format!("{layer}.self_attn.o_proj.weight"),
            format!("{layer}.mlp.gate.weight"),
            format!("{layer}.mlp.shared_expert.gate_up_proj.weight"),
            format!("{layer}.mlp.shared_expert.down_proj.weight"),
            format!("{layer}.mlp.shared_expert_gate.weight"),
            format!("{layer}.input_layernorm.weight"),
            format!("{layer}.post_attention_layernorm.weight"),
            format!("{layer}.mlp.experts.w13_weight"),
            format!("{layer}.mlp.experts.w2_weight"),
        ] {
            assert!(targets.contains(&name), "{name} has no loader");
        }
        let without = engine.refit(&checkpoint, &crate::oracle::hooks(&[]), QUIET).unwrap_err().to_string();
        assert!(without.contains("weight_loader is lost") && without.contains("experts.0"), "{without}");
    }
}

/// H13: the seed post-processes once, after the first load, and a refit loses it. Every family, every combination.
#[test]
fn item_05_a_refit_equals_a_fresh_load_for_every_family_and_layout() {
    let mut tried = 0;
    for entry in std::fs::read_dir(crate::support::data("oracle")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let (_tmp, folder) = model(&name);
        let ran = patchhost(["verify-refit", folder.to_str().unwrap(), "--format", "json"]).good().json();
        let combinations = ran["combinations"].as_array().unwrap();
        assert_eq!(combinations.len(), 8, "{name}");
        assert_eq!(ran["equal"], true, "{name}");
        let changed = |passes: &[&str]| {
            let found = combinations.iter().find(|c| c["passes"] == serde_json::json!(passes)).unwrap();
            (found["tensors"].as_u64().unwrap(), found["sha256"].as_str().unwrap().to_string())
        };
        // A pass that changes nothing would prove nothing.
        let plain = changed(&[]).1;
        for pass in ["ue8m0", "col-major-align"] {
            let (tensors, sha256) = changed(&[pass]);
            assert!(tensors > 0 && sha256 != plain, "{name}: {pass}");
        }
        let experts = combinations[0]["params"]
            .as_array()
            .unwrap()
            .iter()
            .any(|p| p["name"].as_str().unwrap().ends_with(".w13_weight"));
        assert_eq!(changed(&["swap-w13"]).1 != plain, experts, "{name}");
        tried += 1;
    }
    assert!(tried >= 33);
}

#[test]
fn item_06_an_expert_without_w3_is_refused_and_the_old_weights_serve() {
    let name = "model.layers.1.mlp.experts.2.up_proj.weight";
    let error = refused_refit("qwen3_moe", |t| t.retain(|t| t.0 != name));
    assert!(error.contains(&format!("nothing writes `{name}`")), "{error}");
}

#[test]
fn item_07_an_fp8_weight_without_its_scale_is_refused() {
    let tmp = tmp();
    let folder = crate::support::copy_folder(&crate::support::data("fp8/deepseek_style"), &tmp.path().join("m"));
    std::fs::remove_file(folder.join("golden.safetensors")).unwrap();
    let engine = engine(&folder);
    let hooks = hooks(&["moe_loader"]);
    engine.refit(&Checkpoint::open(&folder).unwrap(), &hooks, QUIET).unwrap();
    let before = engine.live().unwrap().digest(engine.registry());
    let mut dropped = String::new();
    edit_tensors(&folder, |tensors| {
        let at = tensors.iter().position(|t| t.0.ends_with("_scale_inv")).unwrap();
        dropped = tensors.remove(at).0;
    });
    let error = engine.refit(&Checkpoint::open(&folder).unwrap(), &hooks, QUIET).unwrap_err().to_string();
    let weight = dropped.trim_end_matches("_scale_inv");
    assert!(error.contains(&format!("`{weight}`")) && error.contains("its scale is missing"), "{error}");
    assert_eq!(engine.live().unwrap().digest(engine.registry()), before);
}

#[test]
fn item_08_a_duplicate_is_refused_or_the_last_wins_if_asked() {
    let (_tmp, folder) = model("llama");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let engine = engine(&folder);
    engine.refit(&checkpoint, &RefitHooks::default(), QUIET).unwrap();
    let norm = checkpoint.get("model.norm.weight").unwrap();
    let zeros = vec![0u8; norm.data.len()];
    let header = ChunkHeader { name: &norm.name, dtype: norm.stored, shape: &norm.shape, offset: 0 };
    let send = |duplicates, last: &[u8]| {
        let begin = Begin { duplicates, ..Begin::default() };
        let mut refit = engine.arrivals(begin);
        checkpoint.tensors().for_each(|t| refit.tensor(t).unwrap());
        refit.chunk(&header, last)?;
        Ok(engine.prepare(&refit.finish().unwrap(), &RefitHooks::default(), QUIET).unwrap().publish())
    };
    let before = engine.live().unwrap().digest(engine.registry());
    let error: RuntimeError = send(Duplicates::Refuse, &zeros).unwrap_err();
    assert!(error.to_string().contains("`model.norm.weight`") && error.to_string().contains("twice"), "{error}");
    assert_eq!(engine.live().unwrap().digest(engine.registry()), before);
    send(Duplicates::LastWins, &zeros).unwrap();
    assert_ne!(engine.live().unwrap().digest(engine.registry()), before);
    send(Duplicates::LastWins, &norm.data.load().unwrap()).unwrap();
    assert_eq!(engine.live().unwrap().digest(engine.registry()), before);
}

/// B15: an expert that another rank holds is no error.
#[test]
fn item_09_experts_of_other_ranks_are_skipped_and_counted() {
    let (_tmp, folder) = model("qwen3_moe");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let hooks = hooks(&["moe_loader", "fp8_block"]);
    let whole = engine(&folder);
    whole.refit(&checkpoint, &hooks, QUIET).unwrap();
    let whole = whole.live().unwrap();
    for (rank, size) in [(0, 2), (1, 2), (2, 4), (1, 3)] {
        let options =
            EngineOptions { expert_parallel: Some(ExpertParallel { rank, size }), ..EngineOptions::default() };
        let engine = Engine::open(&folder, options).unwrap();
        let report = engine.refit(&checkpoint, &hooks, QUIET).unwrap();
        let live = engine.live().unwrap();
        let local = live.local_experts().unwrap();
        // Two layers of four experts with three matrices each.
        assert_eq!(report.not_local, 2 * 3 * (4 - local.len()), "{rank}/{size}");
        let w13 = engine.registry().find("model.layers.0.mlp.experts.w13_weight").unwrap();
        for (i, part) in live.parts(w13).iter().enumerate() {
            let held = local.contains(&(i / 2));
            assert_eq!(part.matrix.bytes() > 0, held, "{rank}/{size}: part {i}");
            assert!(!held || part.matrix.bit_equal(&whole.parts(w13)[i].matrix), "{rank}/{size}: part {i}");
        }
        let mut cache = engine.model().new_cache();
        let mut batch = [Sequence { tokens: IDS, cache: &mut cache }];
        let error = engine.model().forward(&live, &mut batch, Rows::Last).unwrap_err().to_string();
        assert!(error.contains("expert parallelism"), "{error}");
    }
    // A missing expert of one's own is an error still.
    let options =
        EngineOptions { expert_parallel: Some(ExpertParallel { rank: 1, size: 2 }), ..EngineOptions::default() };
    for (expert, fails) in [(0, false), (3, true)] {
        let name = format!("model.layers.0.mlp.experts.{expert}.down_proj.weight");
        let some = Checkpoint::from_tensors(checkpoint.tensors().filter(|t| t.name != name).cloned()).unwrap();
        let result = Engine::open(&folder, options.clone()).unwrap().refit(&some, &hooks, QUIET);
        assert_eq!(result.is_err_and(|e| e.to_string().contains(&name)), fails, "{name}");
    }
}

/// H19: verl's sender cast everything, and the router bias became bf16.
#[test]
fn item_16_the_f32_router_bias_stays_f32() {
    let (_tmp, folder) = model("deepseek_v3");
    let name = "e_score_correction_bias";
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let engine = engine(&folder);
    let hooks = hooks(&["moe_loader", "fp8_block"]);
    engine.refit(&checkpoint, &hooks, QUIET).unwrap();
    let param = engine.registry().params().iter().position(|p| p.name.ends_with(name)).unwrap();
    let stored = checkpoint.tensors().find(|t| t.name.ends_with(name)).unwrap();
    let live = engine.live().unwrap();
    let Matrix::F32(values) = &live.plain_parts(param)[0].matrix else { panic!("not f32") };
    assert_eq!(f32_bytes(values), stored.data.load().unwrap()[..]);
    assert!(values.iter().any(|v| bf16::from_f32(*v).to_f32() != *v), "bf16 would have kept these values");

    let before = engine.live().unwrap().digest(engine.registry());
    edit_tensors(&folder, |tensors| {
        for t in tensors.iter_mut().filter(|t| t.0.ends_with(name)) {
            (t.1, t.3) = (Dtype::BF16, bf16_bytes(&read_f32(&t.3)));
        }
    });
    let narrowed = Checkpoint::open(&folder).unwrap();
    let error = engine.refit(&narrowed, &hooks, QUIET).unwrap_err().to_string();
    assert!(error.contains(name) && error.contains("bits would be lost"), "{error}");
    assert_eq!(engine.live().unwrap().digest(engine.registry()), before);
    let source = engine.arrivals(Begin { allow_narrowing: true, ..Begin::default() }).whole(narrowed).unwrap();
    engine.prepare(&source, &hooks, QUIET).unwrap().publish();
    assert!(matches!(&engine.live().unwrap().plain_parts(param)[0].matrix, Matrix::Bf16(_)));
}

#[test]
fn item_23_caches_of_old_weights_are_invalid_after_a_publish() {
    let (_tmp, folder) = model("qwen3_moe");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let engine = engine(&folder);
    let fp8 = hooks(&["moe_loader", "fp8_block"]);
    engine.refit(&checkpoint, &fp8, QUIET).unwrap();
    let run = |cache: &mut KvCache, tokens: &[u32]| {
        let mut batch = [Sequence { tokens, cache }];
        engine.model().forward(&engine.live().unwrap(), &mut batch, Rows::Last).map(|_| ())
    };
    let (mut cache, mut kept) = (engine.model().new_cache(), engine.model().new_cache());
    run(&mut cache, &IDS[..3]).unwrap();
    run(&mut kept, &IDS[..3]).unwrap();
    run(&mut cache, &IDS[3..4]).unwrap();
    engine.refit(&checkpoint, &fp8, QUIET).unwrap();
    // Even if the new weights are the same: the publish counts.
    let error = run(&mut cache, &IDS[4..]).unwrap_err().to_string();
    assert!(error.contains("weights version 1") && error.contains("2 is published"), "{error}");
    assert_eq!(cache.len(), 4, "a refused pass changes nothing");
    kept.keep_across_publishes();
    run(&mut kept, &IDS[3..]).unwrap();
    run(&mut engine.model().new_cache(), IDS).unwrap();
}

#[test]
fn item_24_fused_expert_names_equal_per_expert_names() {
    let set = |name: &str| {
        let (_tmp, folder) = model(name);
        let engine = engine(&folder);
        engine.refit(&Checkpoint::open(&folder).unwrap(), &hooks(&["moe_loader", "fp8_block"]), QUIET).unwrap();
        engine.live().unwrap()
    };
    assert_eq!(set("qwen3_moe").first_difference(&set("qwen3_moe_fused")), None);
}

/// The same for weights that arrive as FP8: bytes as stored, powers of two by requantizing only what needs it.
#[test]
fn a_refit_of_fp8_checkpoints_equals_a_fresh_load_in_every_layout() {
    let mut tried = 0;
    for entry in std::fs::read_dir(crate::support::data("fp8")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let tmp = tmp();
        let folder = crate::support::copy_folder(&crate::support::data("fp8").join(&name), &tmp.path().join("m"));
        std::fs::remove_file(folder.join("golden.safetensors")).unwrap();
        let ran = patchhost(["verify-refit", folder.to_str().unwrap(), "--format", "json"]).good().json();
        let of = |passes: &[&str]| {
            let all = ran["combinations"].as_array().unwrap();
            all.iter().find(|c| c["passes"] == serde_json::json!(passes)).unwrap()["sha256"].clone()
        };
        assert_ne!(of(&["col-major-align"]), of(&[]), "{name}");
        // Scales that are powers of two already are left alone, and so are their bytes.
        assert_eq!(of(&["ue8m0"]) == of(&[]), name.starts_with("ue8m0"), "{name}");
        tried += 1;
    }
    assert!(tried >= 5);
}
