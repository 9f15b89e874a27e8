//! Patches: phases, attaching and detaching, other models, failures, swaps.

use super::*;

/// B2: patches attach only when the engine is up, and not while a refit runs.
#[test]
fn item_01_a_patch_in_the_wrong_phase_is_refused() {
    let (_tmp, folder) = model("qwen3_moe");
    let engine = engine(&folder);
    let mut attached = Attachments::new(Description::patchhost("Qwen3MoeForCausalLM"));
    let moe_loader = || patch("moe_loader", &[]);
    let early = attached.attach(moe_loader(), Phase::of(None)).unwrap_err();
    assert!(
        matches!(&early, AttachError::WrongPhase { patch, is: Phase::Built, .. } if patch == "moe_loader"),
        "{early}"
    );
    assert!(attached.entries().is_empty() && attached.set().loader_map().is_none());
    assert_eq!(attached.attach(moe_loader(), Phase::of(Some(&engine))), Ok(Attached::Now));

    let hooks = RefitHooks { loader: attached.set().loader_map(), ..RefitHooks::default() };
    engine.refit(&Checkpoint::open(&folder).unwrap(), &hooks, QUIET).unwrap();
    let before = engine.live().unwrap().digest(engine.registry());
    let source = engine.arrivals(Begin::default()).whole(Checkpoint::open(&folder).unwrap()).unwrap();
    let refit = engine.prepare(&source, &hooks, QUIET).unwrap();
    let during = attached.attach(patch("fp8_block", &[]), Phase::of(Some(&engine))).unwrap_err();
    assert!(matches!(during, AttachError::WrongPhase { is: Phase::Refitting, .. }), "{during}");
    let generation = moe_loader().generation();
    assert!(attached.detach(&generation, Phase::of(Some(&engine))).is_err());
    drop(refit);
    assert_eq!(engine.live().unwrap().digest(engine.registry()), before);
    assert_eq!(attached.attach(patch("fp8_block", &[]), Phase::of(Some(&engine))), Ok(Attached::Now));

    let ran = patchhost(["run", "--simulate", "wrong-phase", "--component", "fp8_block"]);
    insta::assert_snapshot!("wrong_phase", ran.refused(1, std::path::Path::new("/nowhere")));
    assert_eq!(ran.stdout, "");
}

#[test]
fn item_02_attaching_twice_is_once_and_detaching_restores_every_bit() {
    let (_tmp, folder) = model("qwen3_moe");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let engine = engine(&folder);
    let mut attached = Attachments::new(Description::patchhost(&engine.info().architecture));
    let refit = |attached: &Attachments| {
        let set = attached.set();
        let hooks = RefitHooks { loader: set.loader_map(), quant: set.block_quant(), ..RefitHooks::default() };
        engine.refit(&checkpoint, &hooks, QUIET).unwrap();
        (engine.live().unwrap().digest(engine.registry()), logits(&engine, &[IDS]))
    };
    attached.attach(patch("moe_loader", &[]), Phase::of(Some(&engine))).unwrap();
    let plain = refit(&attached);
    let fp8 = patch("fp8_block", &[]);
    attached.attach(fp8.clone(), Phase::of(Some(&engine))).unwrap();
    let quantized = refit(&attached);
    assert_ne!(quantized, plain);
    assert_eq!(attached.attach(patch("fp8_block", &[]), Phase::of(Some(&engine))), Ok(Attached::Already));
    assert_eq!(attached.entries().len(), 2);
    assert_eq!(refit(&attached), quantized);
    // Other settings are another generation, and the hook is taken.
    let other = attached.attach(patch("fp8_block", &[("profile", "hf")]), Phase::of(Some(&engine)));
    assert!(matches!(other, Err(AttachError::Conflict(_))), "{other:?}");
    assert_eq!(attached.detach(&fp8.generation(), Phase::of(Some(&engine))), Ok(true));
    assert_eq!(attached.detach(&fp8.generation(), Phase::of(Some(&engine))), Ok(false));
    assert_eq!(refit(&attached), plain);
}

/// H2: a patch that does not know the model does nothing and says nothing. Here it says so.
#[test]
fn item_03_a_patch_for_other_models_is_visibly_not_applicable() {
    let mut attached = Attachments::new(Description::patchhost("LlamaForCausalLM"));
    let answer = attached.attach(patch("moe_loader", &[]), Phase::EngineUp).unwrap();
    assert!(matches!(&answer, Attached::NotApplicable { reason } if reason.contains("LlamaForCausalLM")), "{answer:?}");
    assert!(attached.set().loader_map().is_none());
    let (_tmp, folder) = model("llama");
    let args = ["explain", folder.to_str().unwrap(), "--component", "moe_loader", "--format", "json"];
    let ran = patchhost(args.iter()).good().json();
    let row = &ran["patches"][0];
    assert_eq!((row["name"].as_str(), row["state"].as_str()), (Some("moe_loader"), Some("not applicable")));
    assert!(row["reason"].as_str().unwrap().contains("LlamaForCausalLM"), "{row}");
}

#[test]
fn item_21_a_guest_that_fails_in_a_refit_rolls_it_back() {
    let (_tmp, folder) = model("qwen3_moe");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let engine = engine(&folder);
    engine.refit(&checkpoint, &hooks(&["moe_loader", "fp8_block"]), QUIET).unwrap();
    let (before, says) = (engine.live().unwrap().digest(engine.registry()), logits(&engine, &[IDS]));
    let evil = |name: &str| crate::support::evil(name);
    for (name, settings, word) in [
        ("trap_nth", &[("n", "3")][..], "unreachable"),
        ("spin", &[], "fuel"),
        ("grow", &[], "memory"),
        ("saturating", &[], "contract"),
    ] {
        let hooks = hooks_with(&[("moe_loader", &[]), (&evil(name), settings)]);
        let error = engine.refit(&checkpoint, &hooks, QUIET).unwrap_err().to_string();
        assert!(error.contains(word), "{name}: {error}");
        assert_eq!(engine.live().unwrap().digest(engine.registry()), before, "{name}");
        assert_eq!(logits(&engine, &[IDS]), says, "{name}");
        assert_eq!(engine.version(), 1, "{name}");
    }
    engine.refit(&checkpoint, &hooks(&["moe_loader", "fp8_block"]), QUIET).unwrap();
    assert_eq!(engine.live().unwrap().digest(engine.registry()), before);
}

#[test]
fn item_22_another_quantizer_changes_only_later_refits() {
    let (_tmp, folder) = model("qwen3_moe");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let engine = engine(&folder);
    engine.refit(&checkpoint, &hooks(&["moe_loader", "fp8_block"]), QUIET).unwrap();
    let (first, says) = (engine.live().unwrap(), logits(&engine, &[IDS]));
    // A request that runs meanwhile holds the weights that it began with.
    let held = engine.live().unwrap();
    let pow2 = hooks_with(&[("moe_loader", &[]), ("fp8_block", &[("scale_format", "ue8m0")])]);
    assert_eq!(logits(&engine, &[IDS]), says, "staging a patch changes nothing");
    engine.refit(&checkpoint, &pow2, QUIET).unwrap();
    assert_ne!(logits(&engine, &[IDS]), says);
    assert_eq!(held.first_difference(&first), None);
    assert!(engine.live().unwrap().first_difference(&first).is_some());
    engine.refit(&checkpoint, &hooks(&["moe_loader", "fp8_block"]), QUIET).unwrap();
    assert_eq!(logits(&engine, &[IDS]), says);
}

#[test]
fn item_25_a_second_model_in_one_process_gets_its_own_decisions() {
    let hooks = hooks(&["moe_loader", "fp8_block"]);
    let ((_a, moe), (_b, dense)) = (model("qwen3_moe"), model("qwen3"));
    let alone = engine(&dense);
    alone.refit(&Checkpoint::open(&dense).unwrap(), &crate::oracle::hooks(&["fp8_block"]), QUIET).unwrap();
    let first = engine(&moe);
    first.refit(&Checkpoint::open(&moe).unwrap(), &hooks, QUIET).unwrap();
    let second = engine(&dense);
    second.refit(&Checkpoint::open(&dense).unwrap(), &hooks, QUIET).unwrap();
    assert_eq!(second.live().unwrap().first_difference(&alone.live().unwrap()), None);
}

/// B46: `is_version_ge`. The bundled loader map with another version range in its bytes.
#[test]
fn a_patch_for_other_versions_is_visibly_not_applicable() {
    let tmp = tmp();
    let mut bytes = std::fs::read(crate::support::repo().join("guests/moe_loader.wasm")).unwrap();
    let (ours, other) = (b">=0.1, <0.2", b">=7.1, <7.2");
    let at = bytes.windows(ours.len()).position(|w| w == ours).expect("the range stands in the component");
    bytes[at..at + ours.len()].copy_from_slice(other);
    let file = tmp.path().join("later.wasm");
    std::fs::write(&file, bytes).unwrap();
    let (_model, folder) = model("qwen3_moe");
    let args = ["explain", folder.to_str().unwrap(), "--component", file.to_str().unwrap(), "--no-default-patches"];
    // It is not used, so the experts have no loader: never silence.
    let ran = patchhost(args);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("has no loader"), "{}", ran.stderr);
    let dense = model("llama");
    let args = ["explain", dense.1.to_str().unwrap(), "--component", file.to_str().unwrap(), "--format", "json"];
    let row = patchhost(args).good().json()["patches"][0].clone();
    assert_eq!(row["state"], "not applicable");
    assert!(row["reason"].as_str().unwrap().contains("it is for patchhost >=7.1, <7.2, this is 0.1.0"), "{row}");
}
