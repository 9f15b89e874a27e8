//! Real guests: the bundled ones, and the ones that misbehave on purpose (`guests/evil`).

use super::{Applicability, Candidate, Description, Limits, Patch, PatchSet, Sandbox, SetError, Stage, StageError};
use super::{Reviewing, Terms, bundled};
use crate::base::{Digest, Hook};
use half::bf16;
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::hooks::{
    Blocks, Consumer, Decision, Dtype, Elem, HookCause, ModelInfo, Placement, Role, RowPanel, TensorInfo,
};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

static SANDBOX: LazyLock<Sandbox> = LazyLock::new(|| Sandbox::new(2).expect("an engine"));

fn ready(candidate: Candidate, settings: &[(&str, &str)], limits: Limits) -> Result<Arc<Patch>, StageError> {
    let terms = Terms::settings(settings.iter().copied()).with_limits(limits);
    Reviewing::default().start(candidate, &terms, &*SANDBOX)
}

fn good(name: &str, settings: &[(&str, &str)]) -> Arc<Patch> {
    ready(bundled::bundled(name).expect("bundled"), settings, Limits::default())
        .unwrap_or_else(|error| panic!("{error}"))
}

fn evil_candidate(name: &str) -> Candidate {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../guests/evil/{name}.wasm"));
    Candidate::from_file(&path).unwrap_or_else(|error| panic!("{error}"))
}

fn evil(name: &str, settings: &[(&str, &str)]) -> Arc<Patch> {
    ready(evil_candidate(name), settings, Limits::default()).unwrap_or_else(|error| panic!("{error}"))
}

const BLOCKS: Blocks<'static> =
    Blocks { tensor: "model.layers.0.w", rows: 128, cols: 4096, block_rows: 128, block_cols: 128, first_block: 0 };

fn amax(count: usize) -> Vec<f32> {
    (0..count).map(|i| 0.5 + i as f32 / 7.0).collect()
}

fn model() -> ModelInfo {
    ModelInfo {
        architecture: "Qwen2MoeForCausalLM".into(),
        model_type: "qwen2_moe".into(),
        layers: 2,
        experts: 4,
        config: "{\"architectures\":[\"Qwen2MoeForCausalLM\"],\"num_experts\":4}".into(),
    }
}

fn consumer() -> Consumer {
    Consumer { engine: "patchhost".into(), version: "0.1.0".into() }
}

fn tensor(name: &str, shape: &[u64], role: Role) -> TensorInfo {
    TensorInfo { name: name.into(), dtype: Dtype::Bf16, shape: shape.to_vec(), role }
}

/// Asks for scales, expecting a failure, and an answer afterwards from nobody but a new instance.
#[track_caller]
fn fails(name: &str, cause: HookCause, why: &str) {
    let patch = evil(name, &[]);
    let quant = patch.block_quant().expect("a block quantizer");
    for round in 0..2 {
        let error = quant.scales(&BLOCKS, &amax(32)).expect_err(name);
        assert_eq!(error.cause, cause, "{name}: {error}");
        assert!(error.why.contains(why), "{name}, round {round}: {error}");
        assert!(error.to_string().len() < 2_000, "{name}");
        assert!(!error.to_string().contains('\u{1b}'), "{name}");
    }
}

#[test]
fn bundled_patches_get_ready() {
    for (name, hooks) in [
        ("moe_loader", vec![Hook::LoaderMap]),
        ("fp8_block", vec![Hook::BlockQuant]),
        ("fp8_block_mse", vec![Hook::BlockQuant, Hook::BlockQuantRows]),
    ] {
        let patch = good(name, &[]);
        assert_eq!(patch.info().name, name);
        assert_eq!(patch.hooks(), hooks);
        assert_eq!(patch.applies_to(&Description::patchhost("Qwen2MoeForCausalLM")), Applicability::Applies);
        assert_eq!(patch.stats().hook_calls(), 0);
        assert_eq!(patch.stats().instances_made, 1);
    }
}

#[test]
fn scales_are_asked_and_counted() {
    let patch = good("fp8_block", &[]);
    let quant = patch.block_quant().expect("a block quantizer");
    let few = amax(32);
    let scales = quant.scales(&BLOCKS, &few).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(scales.len(), 32);
    assert!(scales.iter().all(|scale| scale.is_finite() && *scale > 0.0));
    assert_eq!(quant.scales(&BLOCKS, &few).expect("again"), scales, "the same answer again");
    let stats = patch.stats();
    let counted = stats.functions["scales"];
    println!("scales, 32 blocks: fuel {} of {}", counted.fuel_max, Limits::default().fuel_scales_base);
    assert_eq!((counted.calls, counted.traps, stats.instances_made), (2, 0, 1));
    assert!(counted.fuel_max > 0);
    let many = quant.scales(&BLOCKS, &amax(65_536)).expect("the most there can be");
    assert_eq!(many.len(), 65_536);
    println!("scales, 65,536 blocks: fuel {}", patch.stats().functions["scales"].fuel_max);
    let error = quant.scales(&BLOCKS, &amax(65_537)).expect_err("one more");
    assert_eq!(error.cause, HookCause::Limit);
}

#[test]
fn activation_scales_are_asked() {
    let patch = good("fp8_block", &[("activation", "call")]);
    let quant = patch.block_quant().expect("a block quantizer");
    assert_eq!(quant.activation(&model()).expect("no rule"), None);
    assert_eq!(quant.activation_scales(&amax(32)).expect("scales").len(), 32);
    let patch = good("fp8_block", &[]);
    let rule = patch.block_quant().and_then(|quant| quant.activation(&model()).ok()).flatten().expect("a rule");
    assert!(rule.divisor == 448.0, "{rule:?}");
}

#[test]
fn decisions_are_made() {
    let patch = good("fp8_block", &[]);
    let quant = patch.block_quant().expect("a block quantizer");
    let tensors = [
        tensor("model.layers.0.mlp.down_proj.weight", &[256, 512], Role::Mlp),
        tensor("model.layers.0.mlp.gate.weight", &[4, 256], Role::Router),
        tensor("model.norm.weight", &[256], Role::Norm),
    ];
    let decisions = quant.decide(&model(), &consumer(), &tensors).unwrap_or_else(|error| panic!("{error}"));
    assert!(matches!(&decisions[0], Decision::Quantize(scheme) if scheme.block_rows == 128), "{decisions:?}");
    assert!(matches!(&decisions[1], Decision::Keep(_)), "{decisions:?}");
    let many: Vec<_> = (0..40_000)
        .map(|i| tensor(&format!("model.layers.{i}.mlp.down_proj.weight"), &[256, 512], Role::Mlp))
        .collect();
    let decided = quant.decide(&model(), &consumer(), &many).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(decided.len(), many.len());
    let stats = patch.stats().functions["decide"];
    println!(
        "decide, 40,000 tensors: fuel {} ({} a tensor), {} ms",
        stats.fuel_max,
        stats.fuel_max / 40_000,
        stats.wall_ns / 1_000_000
    );
}

#[test]
fn placements_are_made() {
    let patch = good("moe_loader", &[]);
    let loader = patch.loader_map().expect("a loader map");
    let registry = [
        tensor("model.layers.0.mlp.experts.w13_weight", &[4, 512, 256], Role::Expert),
        tensor("model.layers.0.mlp.experts.w2_weight", &[4, 256, 256], Role::Expert),
    ];
    let checkpoint = [
        tensor("model.layers.0.mlp.experts.0.gate_proj.weight", &[256, 256], Role::Expert),
        tensor("model.embed_tokens.weight", &[512, 256], Role::Embedding),
    ];
    let placed = loader.resolve(&model(), &registry, &checkpoint).unwrap_or_else(|error| panic!("{error}"));
    assert!(matches!(&placed[0], Placement::Place { target, .. } if target.contains("w13")), "{placed:?}");
    assert_eq!(placed[1], Placement::Native);
    let stats = patch.stats().functions["resolve"];
    println!("resolve, 4 tensors: fuel {}", stats.fuel_max);
}

#[test]
fn rows_are_lent() {
    let patch = good("fp8_block_mse", &[]);
    let quant = patch.block_quant().expect("a block quantizer");
    let (rows, cols) = (128, 1024);
    let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919 % 2003) as f32 - 1000.0) / 500.0).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
    let length = bytes.len();
    let data = TensorBytes::new(Arc::new(bytes), 0..length).expect("all of it");
    let panel = RowPanel { data, elem: Elem::Bf16, cols, first_row: 0, rows };
    let blocks = Blocks { rows, cols, ..BLOCKS };
    let amax = vec![2.0; cols / 128];
    let scales = quant.panel_scales(&blocks, &panel, &amax).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(scales.len(), 8);
    let stats = patch.stats().functions["panel-scales"];
    println!(
        "panel-scales: {} fuel an element, {} ns an element",
        stats.fuel_max / length as u64 * 2,
        stats.wall_ns / length as u64 * 2
    );
}

#[test]
fn what_misbehaves_ends_by_its_limit() {
    fails("spin", HookCause::Limit, "fuel");
    fails("recurse", HookCause::Limit, "stack");
    fails("grow", HookCause::Limit, "");
    fails("huge_list", HookCause::Limit, "memory");
    fails("huge_length", HookCause::BadOutput, "out of bounds");
    fails("error_spam", HookCause::Limit, "");
    fails("too_many", HookCause::BadOutput, "33 numbers for 32 blocks");
    fails("too_few", HookCause::BadOutput, "31 numbers for 32 blocks");
    fails("trap_nth", HookCause::Trap, "unreachable");
}

#[test]
fn a_list_within_its_memory_ends_by_the_size_of_the_answer() {
    let patch = evil("huge_list", &[("n", "100000")]);
    let quant = patch.block_quant().expect("a block quantizer");
    let error = quant.scales(&BLOCKS, &amax(32)).expect_err("400,000 bytes");
    assert_eq!(error.cause, HookCause::Limit, "{error}");
    assert!(error.why.contains("answer is larger"), "{error}");
}

#[test]
fn after_a_trap_a_new_instance_answers() {
    let patch = evil("trap_nth", &[("n", "3")]);
    let quant = patch.block_quant().expect("a block quantizer");
    let results: Vec<bool> = (0..7).map(|_| quant.scales(&BLOCKS, &amax(32)).is_ok()).collect();
    assert_eq!(results, [true, true, false, true, true, false, true]);
    let stats = patch.stats();
    assert_eq!((stats.instances_made, stats.instances_dropped), (3, 2));
    assert_eq!((stats.functions["scales"].calls, stats.functions["scales"].traps), (7, 2));
}

#[test]
fn fuel_is_the_same_every_time() {
    let fuel = || {
        let patch = good("fp8_block", &[]);
        let quant = patch.block_quant().expect("a block quantizer");
        quant.scales(&BLOCKS, &amax(32)).expect("scales");
        patch.stats().functions["scales"].fuel_max
    };
    assert_eq!(fuel(), fuel());
}

#[test]
fn many_threads_share_a_patch() {
    let patch = good("fp8_block", &[]);
    let quant = patch.block_quant().expect("a block quantizer");
    let expected = quant.scales(&BLOCKS, &amax(32)).expect("scales");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                (0..200).for_each(|_| assert_eq!(quant.scales(&BLOCKS, &amax(32)).expect("scales"), expected))
            });
        }
    });
    assert!(patch.stats().instances_made <= 9);
    assert_eq!(patch.stats().functions["scales"].calls, 1_601);
}

#[track_caller]
fn refused(result: Result<Arc<Patch>, StageError>, stage: Stage, why: &str) {
    let error = result.expect_err("it must be refused");
    assert_eq!(error.stage(), stage, "{error}");
    assert!(error.why().contains(why), "{error}");
    let text = error.to_string();
    assert!(text.starts_with("refused: ") && text.contains("\n  why: ") && text.contains("\n  next: "), "{text}");
    assert!(text.len() < 4_000, "{text}");
}

#[test]
fn bad_starts_are_refused() {
    let start = |name: &str| ready(evil_candidate(name), &[], Limits::default());
    refused(start("spin_describe"), Stage::Ready, "fuel");
    refused(start("trap_configure"), Stage::Ready, "`configure`");
    refused(start("long_name"), Stage::Ready, "");
    let unknown = ready(bundled::bundled("fp8_block").expect("bundled"), &[("colour", "red")], Limits::default());
    refused(unknown, Stage::Ready, "colour");
    let many = vec![("k", "v"); 65];
    refused(
        ready(bundled::bundled("fp8_block").expect("bundled"), &many, Limits::default()),
        Stage::Ready,
        "65 settings",
    );
    let tight = Limits { memory_bytes: 1 << 16, ..Limits::default() };
    refused(ready(bundled::bundled("fp8_block").expect("bundled"), &[], tight), Stage::Ready, "memory_bytes");
}

#[test]
fn other_bytes_are_refused() {
    let candidate = bundled::bundled("fp8_block.wasm").expect("bundled");
    let expected = Terms { sha256: Some(Digest::of(b"x")), ..Terms::default() };
    let error = candidate.admit(&Reviewing::default(), &expected).expect_err("another digest");
    assert_eq!(error.stage(), Stage::Verify);
    let mut bytes = bundled::BUNDLED[1].1.to_vec();
    bytes.push(0);
    let user = Candidate::from_bytes("fp8_block", bytes).expect("small enough");
    let note = user.admit(&Reviewing::default(), &Terms::default()).expect("unpinned").note().map(str::to_owned);
    assert!(note.is_some_and(|note| note.contains("name of a bundled patch")));
    let error = bundled::resolve("no_such_patch").expect_err("unknown");
    assert!(error.to_string().contains("moe_loader, fp8_block, fp8_block_mse"), "{error}");
}

#[test]
fn other_worlds_are_refused_before_compile() {
    let bytes = wat::parse_str(
        "(component (component $c) (instance $i (instantiate $c)) (export \"wasi:cli/run@0.2.6\" (instance $i)))",
    );
    let candidate = Candidate::from_bytes("cli", bytes.expect("valid text")).expect("small");
    refused(ready(candidate, &[], Limits::default()), Stage::Audit, "wasi:cli/run@0.2.6");
}

#[test]
fn two_patches_cannot_claim_one_hook() {
    let (first, second, loader) = (good("fp8_block", &[]), good("fp8_block_mse", &[]), good("moe_loader", &[]));
    let set = PatchSet::new([Arc::clone(&first), Arc::clone(&loader)]).expect("two hooks");
    assert!(set.loader_map().is_some() && set.block_quant().is_some());
    let SetError::Conflict { hook, first: a, second: b } =
        PatchSet::new([first.clone(), second]).expect_err("conflict");
    assert_eq!((hook, a.as_str(), b.as_str()), (Hook::BlockQuant, "fp8_block", "fp8_block_mse"));
    let other = PatchSet::new([loader, first]).expect("two hooks");
    assert_ne!(set.digest(), other.digest(), "the order counts");
}

#[test]
fn every_evil_guest_passes_or_is_refused_without_harm() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests/evil");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).expect("guests/evil") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "wasm") {
            continue;
        }
        seen += 1;
        let started = Instant::now();
        let outcome = ready(Candidate::from_file(&path).expect("readable"), &[], Limits::default());
        let outcome = outcome.map(|patch| {
            let scales = patch.block_quant().map(|quant| quant.scales(&BLOCKS, &amax(32)).err());
            let tensors = [tensor("model.layers.0.mlp.down_proj.weight", &[256, 512], Role::Mlp)];
            let decided = patch.block_quant().map(|quant| quant.decide(&model(), &consumer(), &tensors).err());
            let placed = patch.loader_map().map(|loader| loader.resolve(&model(), &tensors, &tensors).err());
            (scales, decided, placed)
        });
        println!("{} {:?}: {outcome:#?}", path.display(), started.elapsed());
    }
    assert!(seen > 20, "{seen}");
}

/// With fuel for much more than a call has, other limits end it, or `fuel_max`.
#[test]
fn other_limits_end_it_where_fuel_is_plenty() {
    let limits = Limits { fuel_scales_base: u64::MAX, fuel_max: 200_000_000, ..Limits::default() };
    for (name, cause, why) in [
        ("spin", HookCause::Limit, "fuel_max"),
        ("recurse", HookCause::Limit, "stack"),
        ("error_spam", HookCause::Limit, ""),
        ("grow", HookCause::Limit, "memory"),
    ] {
        let patch = ready(evil_candidate(name), &[], limits.clone()).unwrap_or_else(|error| panic!("{error}"));
        let quant = patch.block_quant().expect("a block quantizer");
        let started = Instant::now();
        let error = quant.scales(&BLOCKS, &amax(32)).expect_err(name);
        println!("{name} with all the fuel there is: {:?}: {error}", started.elapsed());
        assert_eq!(error.cause, cause, "{error}");
        assert!(error.why.contains(why), "{error}");
    }
}

#[test]
fn wall_time_ends_what_fuel_does_not() {
    let limits = Limits { fuel_scales_base: u64::MAX, fuel_max: u64::MAX, wall_scales_ms: 50, ..Limits::default() };
    let patch = ready(evil_candidate("spin"), &[], limits).unwrap_or_else(|error| panic!("{error}"));
    let quant = patch.block_quant().expect("a block quantizer");
    let error = quant.scales(&BLOCKS, &amax(32)).expect_err("no end");
    assert_eq!(error.cause, HookCause::Limit, "{error}");
    assert!(error.why.contains("50 ms"), "{error}");
}
