//! Decode and prefill of models of believable shapes with random weights: tokens per second in FP8 and bf16, how decode
//! scales with the batch, what calls to a patch cost, and where the time of a token goes. One run; figures that are
//! compared were measured in turn. `cargo bench -p patchhost --bench decode`, `-- table` for the tables alone,
//! `-- table dense` or `-- table moe` for one of the shapes.

use criterion::{Criterion, Throughput};
use half::bf16;
use patchhost::patch::{Patch, Reviewing, Sandbox, Terms, bundled};
use patchhost_kernels::team::Team;
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::kv::KvCache;
use patchhost_runtime::model::{Logits, Rows, Sequence};
use patchhost_runtime::refit::RefitHooks;
use patchhost_runtime::weights::WeightSet;
use safetensors::tensor::Dtype as StDtype;
use std::sync::Arc;
use std::time::Instant;

/// Positions before the tokens that are measured.
const PAST: usize = 64;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` only wants to know that it runs.
    if args.iter().any(|arg| arg == "--test") {
        return;
    }
    let shapes = [("moe", MOE), ("dense", DENSE)];
    let named = |name: &str| args.iter().any(|arg| arg == name);
    let all = !shapes.iter().any(|(name, _)| named(name));
    for (name, config) in shapes.into_iter().filter(|(name, _)| all || named(name)) {
        let rig = Rig::new(config);
        if !named("table") {
            criterion(name, &rig);
        }
        table(name, &rig);
    }
}

/// About 165 million parameters, 25 million of them at work in each token.
const MOE: &str = r#"{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 512,
"num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "num_experts": 32,
"num_experts_per_tok": 4, "moe_intermediate_size": 384, "intermediate_size": 1536, "norm_topk_prob": true,
"vocab_size": 8192, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
"tie_word_embeddings": false, "torch_dtype": "bfloat16"}"#;

/// About 200 million.
const DENSE: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024,
"num_hidden_layers": 12, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 3584,
"vocab_size": 16384, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
"tie_word_embeddings": false, "torch_dtype": "bfloat16"}"#;

/// One model with several sets of weights.
struct Rig {
    engine: Engine,
    bf16: Arc<WeightSet>,
    fp8: Arc<WeightSet>,
    /// FP8 with activation scales by a call for each product.
    call: Arc<WeightSet>,
    /// Patches run in it.
    _sandbox: Sandbox,
}

impl Rig {
    fn new(config: &str) -> Self {
        let sandbox = Sandbox::new(2).expect("an engine");
        let ready = |name: &str, settings: &[(&str, &str)]| -> Arc<Patch> {
            let candidate = bundled::bundled(name).expect("bundled");
            let started = Reviewing::default().start(candidate, &Terms::settings(settings.iter().copied()), &sandbox);
            started.unwrap_or_else(|error| panic!("{error}"))
        };
        let loader = ready("moe_loader", &[]).loader_map();
        let engine = Engine::new(config, EngineOptions::default()).expect("a model");
        let checkpoint = random_checkpoint(&engine);
        let publish = |quant: Option<Arc<Patch>>| {
            let quant = quant.and_then(|q| q.block_quant());
            let hooks = RefitHooks { loader: loader.clone(), quant, ..RefitHooks::default() };
            engine.refit(&checkpoint, &hooks, &|_, _, _| {}).expect("a refit");
            engine.live().expect("weights")
        };
        let bf16 = publish(None);
        let fp8 = publish(Some(ready("fp8_block", &[])));
        let call = publish(Some(ready("fp8_block", &[("activation", "call")])));
        Self { engine, bf16, fp8, call, _sandbox: sandbox }
    }

    /// Caches of `batch` sequences of [`PAST`] positions.
    fn caches(&self, weights: &WeightSet, batch: usize) -> Vec<KvCache> {
        let prompt: Vec<u32> = (0..PAST as u32).map(|i| i * 37 % 8000).collect();
        let mut caches: Vec<KvCache> = (0..batch).map(|_| self.engine.model().new_cache()).collect();
        for cache in &mut caches {
            let mut sequence = [Sequence { tokens: &prompt, cache }];
            self.engine.model().forward(weights, &mut sequence, Rows::Last).expect("a pass");
        }
        caches
    }

    /// Seconds for `steps` decode steps of a batch; the caches are made anew.
    fn decode(&self, weights: &WeightSet, batch: usize, steps: usize) -> f64 {
        let mut caches = self.caches(weights, batch);
        let mut logits = Logits::default();
        let mut tokens = vec![[7u32]; batch];
        let begun = Instant::now();
        for _ in 0..steps {
            let mut sequences: Vec<Sequence<'_>> =
                caches.iter_mut().zip(&tokens).map(|(cache, tokens)| Sequence { tokens, cache }).collect();
            self.engine.model().forward_into(weights, &mut sequences, Rows::Last, &mut logits).expect("a pass");
            for (token, row) in tokens.iter_mut().zip(logits.rows()) {
                *token = [patchhost_runtime::sampling::argmax(row)];
            }
        }
        begun.elapsed().as_secs_f64()
    }

    /// Seconds for a prompt.
    fn prefill(&self, weights: &WeightSet, tokens: usize) -> f64 {
        let prompt: Vec<u32> = (0..tokens as u32).map(|i| i * 37 % 8000).collect();
        let mut cache = self.engine.model().new_cache();
        let begun = Instant::now();
        let mut sequence = [Sequence { tokens: &prompt, cache: &mut cache }];
        self.engine.model().forward(weights, &mut sequence, Rows::Last).expect("a pass");
        begun.elapsed().as_secs_f64()
    }
}

/// Random normal weights in bf16 for every tensor that the model takes.
fn random_checkpoint(engine: &Engine) -> Checkpoint {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut tensors = Vec::new();
    for (param, decl) in engine.registry().params().iter().enumerate() {
        for part in 0..decl.part_count() {
            let Some(name) = engine.registry().checkpoint_name_of(param, part) else { continue };
            let rows = decl.part(part).rows;
            let shape = decl.cols.map_or(vec![rows], |cols| vec![rows, cols]);
            let values = (0..shape.iter().product()).flat_map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let sum: u32 = (0..4).map(|i| (state >> (16 * i)) as u32 & 0xffff).sum();
                let value = if decl.cols.is_none() { 1.0 } else { (sum as f32 / 65536.0 - 2.0) * 0.035 };
                bf16::from_f32(value).to_le_bytes()
            });
            let bytes: Vec<u8> = values.collect();
            let len = bytes.len();
            let data = TensorBytes::new(Arc::new(bytes), 0..len).expect("all of it");
            tensors.push(CheckpointTensor::new(name, StDtype::BF16, shape, data));
        }
    }
    Checkpoint::from_tensors(tensors).expect("names once each")
}

fn criterion(name: &str, rig: &Rig) {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group(format!("{name}, {} threads", Team::global().threads()));
    group.sample_size(10);
    for (dtype, weights) in [("fp8", &rig.fp8), ("bf16", &rig.bf16)] {
        for batch in [1, 8] {
            group.throughput(Throughput::Elements(16 * batch as u64));
            group.bench_function(format!("decode {dtype}, batch {batch}"), |b| {
                b.iter_custom(|n| {
                    let seconds = (0..n).map(|_| rig.decode(weights, batch, 16)).sum();
                    std::time::Duration::from_secs_f64(seconds)
                });
            });
        }
        for tokens in [16, 512] {
            group.throughput(Throughput::Elements(tokens as u64));
            group.bench_function(format!("prefill {dtype}, {tokens} tokens"), |b| {
                b.iter_custom(|n| {
                    let seconds = (0..n).map(|_| rig.prefill(weights, tokens)).sum();
                    std::time::Duration::from_secs_f64(seconds)
                });
            });
        }
    }
    group.finish();
    criterion.final_summary();
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// Medians of several figures, measured in turn.
fn in_turn<const N: usize>(rounds: usize, measure: [&dyn Fn() -> f64; N]) -> [f64; N] {
    let mut figures = [(); N].map(|()| Vec::new());
    for _ in 0..rounds {
        for (figures, measure) in figures.iter_mut().zip(measure) {
            figures.push(measure());
        }
    }
    figures.map(median)
}

fn table(name: &str, rig: &Rig) {
    let (fp8, bf16, call) = (&*rig.fp8, &*rig.bf16, &*rig.call);
    println!("\n{name}: {:.0} MB in bf16, {:.0} MB in FP8", bf16.bytes() as f64 / 1e6, fp8.bytes() as f64 / 1e6);
    println!("{} threads, {}\n", Team::global().threads(), patchhost_kernels::Isa::detect().name());
    println!("| {:<22} | {:>10} | {:>10} | {:>10} |", "tokens per second", "fp8", "bf16", "fp8 / bf16");
    println!("|{}|{}|{}|{}|", "-".repeat(24), "-".repeat(12), "-".repeat(12), "-".repeat(12));
    let mut alone = 0.0;
    for batch in [1, 2, 4, 8, 16, 32] {
        let steps = (64 / batch).max(8);
        let [f, b] = in_turn(7, [&|| rig.decode(fp8, batch, steps), &|| rig.decode(bf16, batch, steps)])
            .map(|seconds| (batch * steps) as f64 / seconds);
        if batch == 1 {
            alone = f;
        }
        let times = format!("({:.2} x batch 1)", f / alone);
        println!("| decode, batch {batch:<8} | {f:>10.0} | {b:>10.0} | {:>10.2} | {times}", f / b);
    }
    for tokens in [16, 128, 512] {
        let [f, b] = in_turn(5, [&|| rig.prefill(fp8, tokens), &|| rig.prefill(bf16, tokens)])
            .map(|seconds| tokens as f64 / seconds);
        println!("| prefill, {tokens:<3} tokens    | {f:>10.0} | {b:>10.0} | {:>10.2} |", f / b);
    }

    // What calls cost: the same weights, scales by the rule or by a call for each product.
    let [rule, asked] = in_turn(15, [&|| rig.decode(fp8, 1, 32), &|| rig.decode(call, 1, 32)]);
    println!("\nactivation scales by calls: {:+.2} % of decode time per token, batch 1", (asked / rule - 1.0) * 100.0);
    println!("(by the rule, the default: no call is made)\n");

    for (what, weights, batch) in
        [("fp8", fp8, 1), ("fp8", fp8, 8), ("fp8, scales by calls", call, 1), ("bf16", bf16, 1)]
    {
        let model = rig.engine.model();
        // The prompts of the caches are no decode steps.
        let mut caches = rig.caches(weights, batch);
        model.profiled(true);
        let mut logits = Logits::default();
        for _ in 0..100 {
            let mut sequences: Vec<Sequence<'_>> =
                caches.iter_mut().map(|cache| Sequence { tokens: &[7], cache }).collect();
            model.forward_into(weights, &mut sequences, Rows::Last, &mut logits).expect("a pass");
        }
        let profile = model.profiled(false).expect("it was on");
        let total: f64 = profile.spent().map(|(_, d)| d.as_secs_f64()).sum();
        println!("a decode step of {what}, batch {batch}: {:.0} us", total / profile.passes() as f64 * 1e6);
        for (op, spent) in profile.spent().filter(|(_, d)| !d.is_zero()) {
            let seconds = spent.as_secs_f64();
            let each = seconds / profile.passes() as f64 * 1e6;
            println!("  {:<10} {each:>8.1} us {:>6.1} %", format!("{op:?}").to_lowercase(), seconds / total * 100.0);
        }
    }
}
