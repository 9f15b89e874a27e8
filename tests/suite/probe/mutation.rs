//! The mutation score of the probe: of operator mutants of the real guests whose numbers are others, how many it finds; and
//! that what it does not find the native cast refuses. Whether numbers are others is judged on inputs that the probe does
//! not have: other seeds, other shapes, whole matrices as a refit casts them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use half::bf16;
use patchhost::patch::{Candidate, Patch, Reviewing, Sandbox, Terms, resolve};
use patchhost::probe::{ProbeOptions, run};
use patchhost_runtime::activation::Activation;
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::hooks::{
    ActivationRule, BlockQuant, Consumer, Decision, Dtype, Elem, ModelInfo, Role, Scheme, TensorInfo,
};
use patchhost_runtime::quantize::{Input, Measure, quantize};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

use super::mutants::{Mutant, Source};

/// Of its own: mutants are compiled once and never again.
static SANDBOX: LazyLock<Sandbox> = LazyLock::new(|| Sandbox::new(8).unwrap());

/// What became of a mutant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// A static rule refuses it.
    RefusedByAudit,
    /// `describe` or `configure` fails.
    DoesNotStart,
    /// Every answer is the original's.
    NothingChanged,
    /// Only words are others: reasons, names of rules.
    OtherWords,
    /// It declares other decisions, schemes or rules, and the probe finds it.
    OtherDeclarationFound,
    /// It declares others, openly: they stand in `explain`, in the file that it writes and in `compare`.
    OtherDeclaration,
    /// Its numbers are others, or there are none, and the probe finds it.
    FoundByProbe,
    /// Only the native cast refuses it.
    RefusedByCast,
    /// Nobody finds it.
    Silent,
}

use Fate::{FoundByProbe, RefusedByCast, Silent};

fn start(bytes: &[u8], settings: &[(&str, &str)]) -> Result<Arc<Patch>, Fate> {
    let terms = Terms::settings(settings.iter().copied());
    let candidate = Candidate::from_bytes("mutant", bytes.to_vec());
    let admitted = candidate.and_then(|candidate| candidate.admit(&Reviewing::default(), &terms));
    let audited = admitted.and_then(|admitted| admitted.audit()).map_err(|_| Fate::RefusedByAudit)?;
    let compiled = audited.compile(&*SANDBOX).expect("a mutant is valid");
    compiled.ready().map_err(|_| Fate::DoesNotStart)
}

/// How a mutant is probed: as before activation, but by counts and not by time, so that a figure is the same everywhere.
fn options() -> ProbeOptions {
    ProbeOptions { calls: 64, layers: 4, budget: Duration::from_secs(300), ..ProbeOptions::quick() }
}

/// What the original answers to the judge's questions.
struct Judge {
    declared: Declared,
    /// By scheme, in the order of `declared.schemes`.
    matrices: Vec<(Scheme, Vec<Matrix>)>,
    cast: Vec<Result<Cast, String>>,
    activations: Result<Vec<u32>, String>,
}

/// Everything that a patch says before it is asked for numbers.
#[derive(Debug, PartialEq)]
struct Declared {
    decisions: Result<Vec<Option<Scheme>>, String>,
    words: Vec<String>,
    rule: Result<Option<ActivationRule>, String>,
}

struct Matrix {
    data: TensorBytes,
    elem: Elem,
    rows: usize,
    cols: usize,
}

type Cast = (Vec<u8>, Vec<u32>);

const NAME: &str = "model.layers.17.mlp.experts.11.up_proj.weight";

fn model() -> ModelInfo {
    let config = r#"{"architectures":["Qwen2MoeForCausalLM"],"model_type":"qwen2_moe","num_experts":60}"#.to_owned();
    let architecture = "Qwen2MoeForCausalLM".to_owned();
    ModelInfo { architecture, model_type: "qwen2_moe".into(), layers: 24, experts: 60, config }
}

/// Names and shapes as a Qwen2-MoE and a Llama have them: not the probe's.
fn tensors() -> Vec<TensorInfo> {
    let mut all = Vec::new();
    let mut add = |name: &str, shape: &[u64], role, dtype| {
        all.push(TensorInfo { name: name.to_owned(), dtype, shape: shape.to_vec(), role });
    };
    add("model.embed_tokens.weight", &[1000, 640], Role::Embedding, Dtype::Bf16);
    add(NAME, &[1408, 640], Role::Expert, Dtype::Bf16);
    add("model.layers.3.mlp.shared_expert_gate.weight", &[1, 640], Role::Router, Dtype::Bf16);
    add("model.layers.3.mlp.shared_expert.down_proj.weight", &[640, 1408], Role::SharedExpert, Dtype::F32);
    add("model.layers.9.mlp.gate.weight", &[60, 640], Role::Router, Dtype::F32);
    add("model.layers.9.self_attn.k_proj.weight", &[128, 640], Role::Attention, Dtype::F16);
    add("model.layers.9.self_attn.k_proj.bias", &[128], Role::Attention, Dtype::Bf16);
    add("model.layers.10.mlp.down_proj.weight", &[640, 129], Role::Mlp, Dtype::Bf16);
    add("model.layers.10.input_layernorm.weight", &[640], Role::Norm, Dtype::Bf16);
    add("model.layers.10.mlp.experts.gate_up_proj", &[60, 640, 256], Role::Expert, Dtype::Bf16);
    add("model.norm.weight", &[640], Role::Norm, Dtype::F32);
    add("lm_head.weight", &[1000, 640], Role::LmHead, Dtype::Bf16);
    add("model.visual.patch.weight", &[640, 512], Role::Other, Dtype::Bf16);
    add("model.rotary.inv_freq", &[64], Role::Buffer, Dtype::F32);
    all
}

fn declared(quant: &dyn BlockQuant) -> Declared {
    let mut words = Vec::new();
    let mut decisions = Vec::new();
    let engines = [("patchhost", "0.1.0"), ("vllm", "0.11.0")];
    let asked = engines.map(|(engine, version)| {
        quant.decide(&model(), &Consumer { engine: engine.into(), version: version.into() }, &tensors())
    });
    let asked: Result<Vec<_>, _> = asked.into_iter().collect();
    for decision in asked.iter().flatten().flatten() {
        decisions.push(match decision {
            Decision::Keep(reason) => {
                words.push(reason.clone());
                None
            }
            Decision::Quantize(scheme) => {
                words.push(scheme.rule.clone());
                Some(Scheme { rule: String::new(), ..scheme.clone() })
            }
        });
    }
    let decisions = asked.map(|_| decisions).map_err(|e| format!("{:?}", e.cause));
    let rule = quant.activation(&model()).map_err(|e| format!("{:?}", e.cause));
    Declared { decisions, words, rule }
}

/// At least 64, of every kind of value and shape that weights have.
fn matrices(scheme: &Scheme, rows_are_read: bool) -> Vec<Matrix> {
    let (h, w) = (scheme.block_rows, scheme.block_cols);
    let mut rng = StdRng::seed_from_u64(0x5eed_0b5e);
    let shapes = [
        (h, w),
        (1, 7 * w),
        (3 * h + 1, w),
        (h - h / 3, 2 * w + 1),
        (2 * h, 5 * w),
        (5, 3),
        (h, 17 * w - 5),
        (7 * h, 2),
    ];
    let mut all = Vec::new();
    for i in 0..72 {
        let (rows, cols) = shapes[i % shapes.len()];
        // Reading rows costs a guest more than anything else here.
        let cols = if rows_are_read { cols.min(3 * w) } else { cols };
        let kind = i / shapes.len();
        let block = |r: usize, c: usize| (r / h) * cols.div_ceil(w) + c / w;
        let blocks = rows.div_ceil(h) * cols.div_ceil(w);
        let sizes: Vec<f32> = (0..blocks)
            .map(|b| match kind {
                0 => rng.random_range(0.01..0.1),
                1 => 2f32.powi(rng.random_range(-40..20)),
                2 => [0.0, 1e-3, 1e-12, 1e-38][b % 4],
                3 => rng.random_range(1.0..448.0),
                4 => 448.0 * 2f32.powi(rng.random_range(-30..30)),
                5 => 1e-41,
                6 => 1e30 * rng.random_range(0.5f32..2.0),
                _ => 2f32.powi(rng.random_range(-120..100)) * rng.random_range(1.0f32..2.0),
            })
            .collect();
        let (elem, mut bytes) = (if kind == 8 { Elem::F32 } else { Elem::Bf16 }, Vec::new());
        for r in 0..rows {
            for c in 0..cols {
                let spread = if rng.random_ratio(1, 50) { 1.0 } else { 0.2 };
                let value = sizes[block(r, c)] * spread * rng.random_range(-1.0f32..1.0);
                match elem {
                    Elem::F32 => bytes.extend(value.to_le_bytes()),
                    _ => bytes.extend(bf16::from_f32(value).to_le_bytes()),
                }
            }
        }
        let length = bytes.len();
        let data = TensorBytes::new(Arc::new(bytes), 0..length).unwrap();
        all.push(Matrix { data, elem, rows, cols });
    }
    all
}

fn cast(quant: &dyn BlockQuant, scheme: &Scheme, matrix: &Matrix) -> Result<Cast, String> {
    let &Matrix { ref data, elem, rows, cols } = matrix;
    let input = Input { name: NAME, data: data.clone(), elem, rows, cols };
    let made = quantize(&input, scheme, quant, Measure::Nothing).map_err(|e| e.to_string())?;
    Ok((made.q.to_vec(), made.scales.iter().map(|s| s.to_bits()).collect()))
}

/// Scales of activations where they are a call.
fn activations(quant: &Arc<dyn BlockQuant>, rule: bool) -> Result<Vec<u32>, String> {
    if rule {
        return Ok(Vec::new());
    }
    let mut rng = StdRng::seed_from_u64(0xac71);
    let mut all = Vec::new();
    for round in 0..16 {
        let size = 2f32.powi(rng.random_range(-20..20));
        let x: Vec<f32> =
            (0..3 * 384).map(|_| if round == 3 { 0.0 } else { size * rng.random_range(-1.0f32..1.0) }).collect();
        let made = Activation::Call(quant.clone()).quantized(&x, 3, 384).map_err(|e| e.to_string())?;
        all.extend(made.into_iter().flatten().map(f32::to_bits));
    }
    Ok(all)
}

impl Declared {
    /// The first decision that is another one.
    fn apart(&self, other: &Self) -> String {
        match (&self.decisions, &other.decisions) {
            (Ok(a), Ok(b)) => match a.iter().zip(b).position(|(a, b)| a != b) {
                Some(at) => format!("`{}`: {:?} -> {:?}", tensors()[at % tensors().len()].name, a[at], b[at]),
                None => format!("{:?} -> {:?}", self.rule, other.rule),
            },
            (_, Err(error)) => format!("decide: {error}"),
            (Err(error), _) => error.clone(),
        }
    }
}

impl Judge {
    fn of(original: &Arc<Patch>) -> Self {
        let quant = original.block_quant().unwrap();
        let declared = declared(&*quant);
        let mut schemes: Vec<Scheme> = Vec::new();
        for scheme in declared.decisions.as_ref().unwrap().iter().flatten() {
            if !schemes.contains(scheme) {
                schemes.push(scheme.clone());
            }
        }
        assert!(!schemes.is_empty());
        let rows = original.hooks().contains(&patchhost::patch::Hook::BlockQuantRows);
        let matrices: Vec<_> = schemes.into_iter().map(|s| (s.clone(), matrices(&s, rows))).collect();
        let rule = matches!(declared.rule, Ok(Some(_)));
        let mut judge = Self { declared, matrices, cast: Vec::new(), activations: activations(&quant, rule) };
        judge.cast = judge.questions().map(|(scheme, matrix)| cast(&*quant, scheme, matrix)).collect();
        let good = judge.cast.iter().filter(|c| c.is_ok()).count();
        assert!(good >= 64, "{good} of {}: {:?}", judge.cast.len(), judge.cast.iter().find(|c| c.is_err()));
        assert!(judge.activations.is_ok());
        judge
    }

    fn questions(&self) -> impl Iterator<Item = (&Scheme, &Matrix)> {
        self.matrices.iter().flat_map(|(scheme, matrices)| matrices.iter().map(move |m| (scheme, m)))
    }

    /// What is other about a mutant; and whether the host refuses it by itself.
    fn judge(&self, mutant: &Arc<Patch>) -> Verdict {
        let quant = mutant.block_quant().unwrap();
        let said = declared(&*quant);
        let mut numbers = false;
        for ((scheme, matrix), expected) in self.questions().zip(&self.cast) {
            let got = cast(&*quant, scheme, matrix);
            if got != *expected {
                numbers = true;
                if got.is_err() && expected.is_ok() {
                    return Verdict::Numbers { refused: true };
                }
            }
        }
        match activations(&quant, matches!(self.declared.rule, Ok(Some(_)))) {
            Err(_) => return Verdict::Numbers { refused: true },
            got if got != self.activations => numbers = true,
            _ => {}
        }
        if numbers {
            return Verdict::Numbers { refused: false };
        }
        match (said.decisions == self.declared.decisions && said.rule == self.declared.rule, said == self.declared) {
            (false, _) => Verdict::Declaration(self.declared.apart(&said)),
            (true, false) => Verdict::Words,
            (true, true) => Verdict::Same,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Verdict {
    Same,
    Words,
    /// And which.
    Declaration(String),
    Numbers {
        refused: bool,
    },
}

/// What became of it; and for who declares something else, what.
fn fate(mutant: &Mutant, settings: &[(&str, &str)], judge: &Judge) -> (Fate, String) {
    let patch = match start(&mutant.bytes, settings) {
        Ok(patch) => patch,
        Err(fate) => return (fate, String::new()),
    };
    let verdict = judge.judge(&patch);
    let found = || {
        // The judge has asked; the probe gets a patch that nobody has.
        let fresh = start(&mutant.bytes, settings).expect("it started before");
        !run(&fresh, &options()).passed()
    };
    let fate = match &verdict {
        Verdict::Same => Fate::NothingChanged,
        Verdict::Words => Fate::OtherWords,
        Verdict::Declaration(_) if found() => Fate::OtherDeclarationFound,
        Verdict::Declaration(_) => Fate::OtherDeclaration,
        Verdict::Numbers { .. } if found() => FoundByProbe,
        Verdict::Numbers { refused: true } => RefusedByCast,
        Verdict::Numbers { refused: false } => Silent,
    };
    match verdict {
        Verdict::Declaration(what) => (fate, what),
        _ => (fate, String::new()),
    }
}

/// Counts of one campaign.
#[derive(Default)]
struct Score {
    fates: BTreeMap<Fate, usize>,
    /// Whoever the probe did not find.
    missed: Vec<String>,
}

impl Score {
    fn of(guest: &str, settings: &[(&str, &str)], count: usize, seed: u64) -> Self {
        let bytes = resolve(guest).unwrap().bytes().to_vec();
        let judge = Judge::of(&start(&bytes, settings).unwrap());
        // A fifth of them anywhere that a hook reaches: most of that never runs. The rest where the numbers are made: in
        // functions without which there are none.
        let mut mutants = Source::new(&bytes).sample(count / 5, seed);
        let numbers = Source::of_numbers(&bytes);
        let needed = numbers.trapped().into_par_iter().filter(|(_, trapped)| {
            start(trapped, settings).is_ok_and(|patch| matches!(judge.judge(&patch), Verdict::Numbers { .. }))
        });
        let needed: BTreeSet<usize> = needed.map(|(body, _)| body).collect();
        mutants.extend(numbers.only(&needed).sample(count - count / 5, seed));
        let fates: Vec<(Fate, String)> = mutants.par_iter().map(|mutant| fate(mutant, settings, &judge)).collect();
        let mut score = Self::default();
        for (mutant, (fate, detail)) in mutants.iter().zip(fates) {
            *score.fates.entry(fate).or_insert(0) += 1;
            if matches!(fate, RefusedByCast | Silent | Fate::OtherDeclaration) {
                score.missed.push(format!("{guest} {settings:?} {fate:?}: {} ({}) {detail}", mutant.what, mutant.kind));
            }
        }
        score
    }

    fn count(&self, fate: Fate) -> usize {
        self.fates.get(&fate).copied().unwrap_or(0)
    }

    /// Mutants whose numbers are others, and the share of them that the probe finds.
    fn killed(&self) -> (usize, f64) {
        let changed = self.count(FoundByProbe) + self.count(RefusedByCast) + self.count(Silent);
        (changed, self.count(FoundByProbe) as f64 / changed.max(1) as f64)
    }
}

#[test]
fn the_probe_finds_mutants_and_the_cast_the_rest() {
    let score = Score::of("fp8_block", &[], 150, 7);
    println!("{:?}\n{}", score.fates, score.missed.join("\n"));
    let (changed, killed) = score.killed();
    assert!(changed >= 10, "too few to judge: {:?}", score.fates);
    assert!(killed >= 0.95, "{:?}\n{}", score.fates, score.missed.join("\n"));
    assert_eq!(score.count(Silent), 0, "{}", score.missed.join("\n"));
}

/// The published figures (docs/probe.md): `cargo test --release --workspace --test suite -- --ignored mutation --nocapture`.
#[test]
#[ignore = "3,000 mutants take minutes"]
fn the_mutation_score() {
    type Settings = &'static [(&'static str, &'static str)];
    let campaigns: &[(&str, Settings, usize)] = &[
        ("fp8_block", &[], 600),
        ("fp8_block", &[("profile", "verl-triton")], 400),
        ("fp8_block", &[("profile", "deepseek"), ("activation", "call")], 400),
        ("fp8_block", &[("profile", "deepgemm"), ("scale_format", "ue8m0")], 400),
        ("fp8_block", &[("profile", "hf"), ("block", "64x64")], 300),
        ("fp8_block_mse", &[], 600),
        ("fp8_block_mse", &[("block", "64x64"), ("candidates", "8")], 300),
    ];
    let (mut all, mut changed, mut silent) = (0, 0, 0);
    for (i, (guest, settings, count)) in campaigns.iter().enumerate() {
        let score = Score::of(guest, settings, *count, 100 + i as u64);
        let (n, killed) = score.killed();
        // Fewer than asked for, where there are no more.
        let count: usize = score.fates.values().sum();
        println!("{guest} {settings:?}: {count} mutants, {n} with other numbers, {:.2} % found", 100.0 * killed);
        score.fates.iter().for_each(|(fate, n)| println!("  {n:5} {fate:?}"));
        score.missed.iter().for_each(|missed| println!("  missed: {missed}"));
        all += count;
        changed += n;
        silent += score.count(Silent);
    }
    println!("{all} mutants, {changed} with other numbers, {silent} silent");
}
