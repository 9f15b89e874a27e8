//! The policy over a target without any model: a map of named bytes, whose refit asks the loader, the quantizer and the
//! observers of a generation.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex};

use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use patchhost_runtime::error::{Refusal, RuntimeError};
use patchhost_runtime::hooks::{Arrival, Blocks, Consumer, Decision, ModelInfo, Role, TensorInfo, Verdict as Vote};
use patchhost_runtime::refit::{Begin, RefitReport};
use serde_json::Value;

use super::*;
use crate::patch::{
    Actor, Attachments, Attempt, CanaryUnit, Candidate, Compared, Description, Generation, HookOptions, HostIdentity,
    Mode, OnFailure, Patch, Phase, Proved, Reviewing, Rules, Sandbox, ShadowPolicy, SwapRequest, TensorFinding, Terms,
    Verdict, When, resolve,
};

static SANDBOX: LazyLock<Sandbox> = LazyLock::new(|| Sandbox::new(2).expect("an engine"));
const BLOCK: usize = 128;

type Held = BTreeMap<String, Vec<u8>>;

/// Named buffers. What is quantized is the scales that the patch gave, and everything else the bytes as they came.
struct Buffers {
    to: Description,
    held: Mutex<Held>,
    canary: Option<CanaryUnit>,
    /// The candidate's buffers, for requests of a canary.
    other: Mutex<Option<(u8, Held)>>,
    /// The tensors cannot be read any more.
    gone: AtomicBool,
}

impl Buffers {
    fn make(&self, source: &Source, attempt: &Attempt<'_>) -> Result<Held, RuntimeError> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(RuntimeError::Checkpoint(Refusal::new("these buffers", "they changed meanwhile", "-")));
        }
        let hooks = attempt.hooks(|generation| generation.hooks(HookOptions::default()));
        let tensors: Vec<&CheckpointTensor> = source.checkpoint().tensors().collect();
        for observer in &hooks.observers {
            let arrival = |(t, sha256): (&&CheckpointTensor, &String)| Arrival {
                name: t.name.clone(),
                dtype: t.dtype(),
                shape: t.shape.iter().map(|d| *d as u64).collect(),
                sha256: sha256.clone(),
            };
            let all: Vec<Arrival> = tensors.iter().zip(source.sums()?).map(arrival).collect();
            let (first, mut watch) = observer.begin("buffers", None)?;
            for vote in [first, watch.tensors(&all)?, watch.finish(all.len() as u32)?] {
                if let Vote::Veto(why) = vote {
                    return Err(RuntimeError::Refit(Refusal::new("these buffers", format!("vetoes it: {why}"), "-")));
                }
            }
        }
        let infos: Vec<TensorInfo> = tensors.iter().map(|t| patchhost_runtime::refit::info(t, Role::Mlp)).collect();
        if let Some(loader) = &hooks.loader {
            loader.resolve(&model(), &infos, &infos)?;
        }
        let Some(quant) = &hooks.quant else {
            return tensors.iter().map(|t| Ok((t.name.clone(), t.data.load()?.to_vec()))).collect();
        };
        let reader = Consumer { engine: "buffers".into(), version: "2.1".into() };
        let decisions = quant.decide(&model(), &reader, &infos)?;
        tensors
            .iter()
            .zip(decisions)
            .map(|(t, decision)| {
                Ok((
                    t.name.clone(),
                    match decision {
                        Decision::Keep(_) => t.data.load()?.to_vec(),
                        Decision::Quantize(_) => {
                            let (rows, cols) = (t.shape[0], t.shape[1]);
                            let blocks = Blocks {
                                tensor: &t.name,
                                rows,
                                cols,
                                block_rows: BLOCK,
                                block_cols: BLOCK,
                                first_block: 0,
                            };
                            let data = t.data.load()?;
                            let values = data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b).abs());
                            let amax = values.fold(0.0, f32::max);
                            let scales = quant.scales(&blocks, &[amax])?;
                            scales.iter().flat_map(|s| s.to_le_bytes()).collect()
                        }
                    },
                ))
            })
            .collect()
    }

    fn held(&self) -> Held {
        self.held.lock().expect("held").clone()
    }
}

impl RefitTarget for Buffers {
    type Staged<'t> = Held;
    type Weights = Held;
    type Seen = Held;

    fn describe(&self) -> Description {
        self.to.clone()
    }

    fn attempt<'t>(&'t self, source: &Source, attempt: &Attempt<'_>) -> Result<Proved<Self::Staged<'t>>, RuntimeError> {
        let label = source.begin().version.clone().unwrap_or_else(|| "unnamed".into());
        Ok(Proved {
            label,
            report: RefitReport::default(),
            sha256: None,
            digests: None,
            staged: self.make(source, attempt)?,
        })
    }

    fn publish(&self, staged: Held) -> Result<Self::Weights, RuntimeError> {
        *self.held.lock().expect("held") = staged.clone();
        Ok(staged)
    }

    fn compare(&self, source: &Source, _: &Generation, to: &Generation, rules: &ShadowPolicy) -> Compared<Self::Seen> {
        let attempt = Attempt { generation: to, mixed: None, observed: false, progress: &|_, _, _| {} };
        let mut compared = Compared { findings: Vec::new(), differing_tensors: 0, seen: BTreeMap::new() };
        match self.make(source, &attempt) {
            Err(error) => compared.findings.push(TensorFinding::failed(error)),
            Ok(made) => {
                let held = self.held();
                let differing: Vec<&String> = made.keys().filter(|name| made[*name] != held[*name]).collect();
                compared.differing_tensors = differing.len();
                if rules.max_bytes_changed == 0.0 {
                    let finding = |tensor: &&String| TensorFinding {
                        tensor: (*tensor).clone(),
                        what: "its bytes differ, allowed is 0".into(),
                    };
                    compared.findings = differing.iter().map(finding).collect();
                }
                compared.seen = made;
            }
        }
        compared
    }

    fn judged(&self, verdict: &Verdict, seen: Self::Seen) -> Option<String> {
        *self.other.lock().expect("other") = verdict.serve.map(|percent| (percent, seen));
        None
    }

    fn canary(&self) -> Option<CanaryUnit> {
        self.canary
    }

    fn canary_ends(&self) {
        *self.other.lock().expect("other") = None;
    }
}

fn model() -> ModelInfo {
    ModelInfo {
        architecture: "Qwen3MoeForCausalLM".into(),
        model_type: "qwen3_moe".into(),
        layers: 1,
        experts: 0,
        config: "{}".into(),
    }
}

fn me() -> Actor {
    Actor::new("test")
}

/// One matrix of 128 × 128 whose largest value is `most`, and a vector.
fn source(most: f32) -> Checkpoint {
    let tensor = |name: &str, shape: Vec<usize>, value: f32| {
        let bytes: Vec<u8> = (0..shape.iter().product()).flat_map(|_| value.to_le_bytes()).collect();
        let len = bytes.len();
        let data = TensorBytes::new(Arc::new(bytes), 0..len).expect("whole");
        CheckpointTensor::new(name, safetensors::Dtype::F32, shape, data)
    };
    let matrix = tensor("model.layers.0.mlp.down_proj.weight", vec![BLOCK, BLOCK], most);
    Checkpoint::from_tensors([matrix, tensor("model.norm.weight", vec![BLOCK], 1.0)]).expect("two names")
}

fn started(name: &str, settings: &[(&str, &str)]) -> Arc<Patch> {
    let candidate = resolve(name).unwrap_or_else(|_| evil(name));
    let started = Reviewing::default().start(candidate, &Terms::settings(settings.iter().copied()), &*SANDBOX);
    started.unwrap_or_else(|error| panic!("{error}"))
}

fn rules(on_failure: OnFailure) -> Rules {
    let mut rules = Rules::default();
    rules.hooks.insert("block-quant".into(), crate::patch::HookPolicy { on_failure });
    rules.failure.restart_budget = 100;
    rules
}

/// In vLLM, as its Python package writes its version.
fn live(patches: &[Arc<Patch>], rules: Rules, canary: Option<CanaryUnit>) -> Live<Buffers> {
    live_in(HostIdentity::new("vllm", "0.32.0.post1"), patches, rules, canary)
}

fn live_in(host: HostIdentity, patches: &[Arc<Patch>], rules: Rules, canary: Option<CanaryUnit>) -> Live<Buffers> {
    let to = Description { host, architecture: "Qwen3MoeForCausalLM".into() };
    let target = Buffers { to, held: Mutex::default(), canary, other: Mutex::default(), gone: AtomicBool::new(false) };
    let mut start = Attachments::new(target.describe());
    for patch in patches {
        start.attach(patch.clone(), Phase::EngineUp).expect("attached");
    }
    let board = Arc::new(Board::new(&start, rules, Ledger::in_memory()));
    let live = Live::over(target, board, SANDBOX.clone(), Arc::default(), Pace::default()).expect("threads");
    live.load(source(1.0), &me(), &|_, _, _| {}).unwrap_or_else(|error| panic!("{error}"));
    live
}

impl Live<Buffers> {
    fn again(&self, step: Option<u64>) -> Result<Refitted<Held>, LiveError> {
        self.refit(source(1.0), Begin { step, ..Begin::default() }, &me(), &|_, _, _| {})
    }

    fn bring(&self, name: &str, settings: &[(&str, &str)], mode: Mode, when: When) -> SwapOutcome {
        let settings: Vec<_> = settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let staged = self.stage(resolve(name).expect("bundled"), None, &settings, &me());
        let to = staged.unwrap_or_else(|error| panic!("{error}")).generation;
        self.swap(&SwapRequest { mode, when, ..SwapRequest::to(to) }, &me()).unwrap_or_else(|error| panic!("{error}"))
    }

    fn last_event(&self, name: &str) -> Value {
        let entries = self.ledger().recent(1000);
        let found = entries.iter().rfind(|entry| entry.event == name);
        found.map(|entry| serde_json::json!(entry)).unwrap_or_default()
    }
}

const POW2: &[(&str, &str)] = &[("scale_format", "ue8m0")];

#[test]
fn a_swap_lands_with_a_refit_or_at_once_and_goes_back() {
    let live = live(&[started("fp8_block", &[])], Rules::default(), None);
    let before = live.target().held();
    assert_eq!(before["model.layers.0.mlp.down_proj.weight"].len(), 4, "one block, one scale");
    assert!(live.bring("fp8_block", POW2, Mode::Live, When::Refit).landed.is_none());
    assert_eq!(live.target().held(), before);
    assert!(live.again(None).expect("a refit").swap.is_some());
    assert_ne!(live.target().held(), before);
    assert!(live.rollback(When::Now, None, &me()).expect("a rollback").landed.is_some());
    assert_eq!(live.target().held(), before);
}

#[test]
fn what_is_refused_now_does_not_land_later() {
    let live = live(&[started("fp8_block", &[])], Rules::default(), None);
    let (before, active) = (live.target().held(), live.board().active().digest());
    let settings: Vec<_> = POW2.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let other = live
        .stage(resolve("fp8_block").expect("bundled"), None, &settings, &me())
        .unwrap_or_else(|error| panic!("{error}"));
    let now = SwapRequest { when: When::Now, ..SwapRequest::to(other.generation) };
    live.target().gone.store(true, Ordering::Relaxed);
    assert!(live.swap(&now, &me()).expect_err("refused").to_string().contains("they changed meanwhile"));
    live.target().gone.store(false, Ordering::Relaxed);
    assert!(live.again(None).expect("a refit").swap.is_none());
    assert_eq!((live.target().held(), live.board().active().digest()), (before, active));
    // The same for a way back.
    assert!(live.swap(&now, &me()).expect("asked").landed.is_some());
    let swapped = live.target().held();
    live.target().gone.store(true, Ordering::Relaxed);
    assert!(live.rollback(When::Now, None, &me()).is_err());
    live.target().gone.store(false, Ordering::Relaxed);
    assert!(live.again(None).expect("a refit").swap.is_none());
    assert_eq!(live.target().held(), swapped);
}

#[test]
fn what_is_prepared_is_live_when_it_is_committed() {
    let live = live(&[started("fp8_block", &[])], Rules::default(), None);
    let before = live.target().held();
    live.bring("fp8_block", POW2, Mode::Live, When::Refit);
    let source = |step| {
        let begin = Begin { step: Some(step), ..Begin::default() };
        live.target().arrivals(begin).whole(source(1.0)).expect("whole")
    };
    // Dropped, and given up with a reason: nothing landed, and the next one is free to begin.
    drop(live.prepare(source(1), &me(), &|_, _, _| {}).unwrap_or_else(|error| panic!("{error}")));
    let prepared = live.prepare(source(2), &me(), &|_, _, _| {}).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((prepared.staged().len(), prepared.patches().1.is_some()), (2, true));
    assert_eq!(live.target().held(), before);
    prepared.abandon("the trainer went away");
    assert_eq!((live.target().held(), live.last_refit().map(|last| last.refit)), (before.clone(), Some(1)));
    assert_eq!(live.last_event("refit.abandoned")["why"], "the trainer went away");
    let prepared = live.prepare(source(3), &me(), &|_, _, _| {}).unwrap_or_else(|error| panic!("{error}"));
    let (made_by, swap) = prepared.patches();
    let done = prepared.commit().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((done.refit, done.step, done.patch_set), (2, Some(3), made_by));
    assert_eq!(done.swap.map(|swap| swap.to), swap.map(|swap| swap.to));
    assert_ne!(live.target().held(), before);
}

#[test]
fn a_patch_for_another_engine_is_shown_and_not_asked() {
    let live = live(&[started("gpu_layout", &[]), started("fp8_block", &[])], Rules::default(), None);
    let not = live.board().status().not_applicable;
    assert_eq!(not, [("gpu_layout".to_owned(), "it targets patchhost, not vllm".to_owned())]);
    assert_eq!(live.board().active().members().len(), 1);
}

#[test]
fn a_failing_patch_ends_it_or_is_replaced_as_the_policy_says() {
    // It answers the load and fails in the refit. Guests that misbehave are for this host alone.
    let of =
        |on_failure| live_in(HostIdentity::patchhost(), &[started("trap_nth", &[("n", "2")])], rules(on_failure), None);
    let closed = of(OnFailure::Closed);
    let before = closed.target().held();
    let error = closed.again(None).err().expect("refused").to_string();
    assert!(error.contains("unreachable"), "{error}");
    assert_eq!((closed.target().held(), closed.last_event("refit.refused")["refit"].as_u64()), (before, Some(2)));

    let native = of(OnFailure::Native);
    let done = native.again(None).expect("native code answers");
    assert!(done.degraded.is_some_and(|why| why.contains("block-quant")));
    assert_eq!(native.last_event("patch.fallback")["policy"], "native");

    let last_good = live_in(HostIdentity::patchhost(), &[started("fp8_block", &[])], rules(OnFailure::LastGood), None);
    let good = last_good.board().active().digest();
    // Beyond what the probe of a candidate asks.
    let settings = [("n".to_owned(), "1500".to_owned())];
    let bad = last_good.stage(evil("trap_nth"), None, &settings, &me()).unwrap_or_else(|error| panic!("{error}"));
    let request = SwapRequest { when: When::Now, ..SwapRequest::to(bad.generation) };
    assert!(last_good.swap(&request, &me()).expect("asked").landed.is_some());
    let mut refits = (0..1500).map(|_| last_good.again(None).expect("the set before answers"));
    assert_eq!(refits.find(|done| done.degraded.is_some()).expect("it fails").patch_set, good);
}

fn evil(name: &str) -> Candidate {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../guests/evil/{name}.wasm"));
    Candidate::from_file(&path).expect("readable")
}

#[test]
fn a_finding_of_a_shadow_reverses_it() {
    let mut strict = Rules::default();
    strict.shadow.max_bytes_changed = 0.0;
    for (rules, stays) in [(Rules::default(), true), (strict, false)] {
        let live = live(&[started("fp8_block", &[])], rules, None);
        let before = live.target().held();
        // Rounded up to a power of two, the scale of 1.0 is another one.
        live.bring("fp8_block", POW2, Mode::Shadow, When::Refit);
        assert!(live.again(None).expect("a refit").swap.is_none());
        assert_eq!(live.target().held(), before, "nothing of it is used");
        let report = live.last_event("shadow.report");
        assert_eq!(
            (report["differing_tensors"].as_u64(), report["clean_refits"].as_u64()),
            (Some(1), Some(stays.into()))
        );
        assert_eq!(live.board().status().transition.is_some(), stays);
        assert_eq!(live.last_event("swap.reversed").is_null(), stays);
    }
}

#[test]
fn a_canary_is_where_the_target_has_one() {
    let without = live(&[started("fp8_block", &[])], Rules::default(), None);
    let to =
        without.stage(resolve("fp8_block").expect("bundled"), None, &[("scale_format".into(), "ue8m0".into())], &me());
    let request = SwapRequest { mode: Mode::Canary(30), ..SwapRequest::to(to.expect("staged").generation) };
    let error = without.swap(&request, &me()).expect_err("no canary").to_string();
    assert!(error.contains("vllm has no canary here"), "{error}");

    let requests = live(&[started("fp8_block", &[])], Rules::default(), Some(CanaryUnit::Request));
    requests.bring("fp8_block", POW2, Mode::Canary(30), When::Now);
    let taken = || requests.target().other.lock().expect("other").clone();
    assert!(taken().is_some_and(|(percent, made)| percent == 30 && made != requests.target().held()));
    assert!(requests.cancel("enough", &me()) && taken().is_none());

    let tensors = live(&[started("fp8_block", &[])], Rules::default(), Some(CanaryUnit::Tensor));
    tensors.bring("fp8_block", POW2, Mode::Canary(99), When::Refit);
    let done = tensors.again(None).expect("a refit");
    assert_ne!(done.patch_set, done.generation.digest(), "mixed weights have an identity of their own");
}

#[test]
fn state_goes_along_with_a_swap() {
    let live = live(&[started("refit_guard", &[("names", "same")])], Rules::default(), None);
    live.again(None).expect("the guard saw both names");
    live.bring("refit_guard", &[("names", "same"), ("forbid", "nothing.*")], Mode::Live, When::Now);
    let less = Checkpoint::from_tensors(source(1.0).tensors().take(1).cloned()).expect("one name");
    let error = live.refit(less, Begin::default(), &me(), &|_, _, _| {}).err().expect("vetoed").to_string();
    assert!(error.contains("vetoes it"), "{error}");
}

#[test]
fn a_step_of_the_trainer_is_what_a_swap_waits_for() {
    let live = live(&[started("fp8_block", &[])], Rules::default(), None);
    live.bring("fp8_block", POW2, Mode::Live, When::Step(1000));
    assert!(live.again(None).expect("a refit").swap.is_none(), "refit 2 of this process");
    assert!(live.again(Some(999)).expect("a refit").swap.is_none());
    let done = live.again(Some(1001)).expect("a refit");
    assert!(done.swap.is_some() && done.step == Some(1001));
    assert_eq!(live.last_event("swap.landed")["step"], 1001);
    assert_eq!(live.last_event("refit")["step"], 1001);
    // The trainer was started again from an earlier checkpoint: written down, and nothing lands a second time.
    let swaps = live.board().status().swaps;
    assert!(live.again(Some(500)).expect("a refit").swap.is_none());
    let refit = live.last_event("refit");
    assert_eq!((refit["step"].as_u64(), refit["step_before"].as_u64()), (Some(500), Some(1001)));
    assert!(live.again(Some(1001)).expect("a refit").swap.is_none());
    assert_eq!((live.board().status().swaps, live.last_refit().and_then(|last| last.step)), (swaps, Some(1001)));
    // Without a step the process's own count goes on as it did.
    live.bring("fp8_block", &[], Mode::Live, When::Step(7));
    assert!(live.again(None).expect("refit 7").swap.is_some());
}

#[test]
fn who_asks_is_told_what_was_done() {
    let live = live(&[], rules(OnFailure::Closed), None);
    let deeds: Arc<Mutex<Vec<Deed>>> = Arc::default();
    let to = Arc::clone(&deeds);
    assert!(live.tell(Arc::new(move |deed| to.lock().expect("deeds").push(deed))));
    assert!(!live.tell(Arc::new(|_| panic!("only the first is told"))));
    live.bring("fp8_block", &[], Mode::Live, When::Refit);
    live.again(Some(3)).unwrap_or_else(|error| panic!("{error}"));
    live.target.gone.store(true, Ordering::Relaxed);
    assert!(live.again(None).is_err());
    live.target.gone.store(false, Ordering::Relaxed);
    let prepared = live.prepare(
        live.target.arrivals(Begin::default()).whole(source(1.0)).expect("a source"),
        &me(),
        &|_, _, _| {},
    );
    drop(prepared.unwrap_or_else(|error| panic!("{error}")));
    let deeds = deeds.lock().expect("deeds");
    let names: Vec<_> = deeds.iter().map(|deed| (deed.name, deed.error.is_some())).collect();
    assert_eq!(names, [("stage", false), ("swap", false), ("refit", false), ("refit", true), ("refit", true)]);
    let fact = |deed: &Deed, name: &str| deed.facts.iter().find(|(n, _)| *n == name).map(|(_, fact)| fact.clone());
    let refit = &deeds[2];
    let active = Some(Fact::from(live.board().active().digest()));
    assert_eq!((fact(refit, "patch_set"), fact(refit, "swap.to")), (active.clone(), active));
    assert_eq!((fact(refit, "step"), fact(refit, "tensors.received")), (Some(3u64.into()), Some(2u64.into())));
    let steps: Vec<_> = refit.steps.iter().map(|step| step.name).collect();
    assert_eq!(steps, ["wait", "prove", "publish"]);
    assert!(refit.began <= refit.steps[0].began && refit.steps[2].ended <= refit.ended);
    assert!(deeds[3].error.as_deref().is_some_and(|why| why.contains("changed meanwhile")), "{:?}", deeds[3]);
    assert!(deeds[4].error.as_deref().is_some_and(|why| why.contains("given up")), "{:?}", deeds[4]);
}
