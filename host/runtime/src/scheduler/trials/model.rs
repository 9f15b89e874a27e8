//! Tiny models of every kind of memory, several sets of weights of each, adapters, and patches that fail when they meet certain
//! tokens.

use std::ops::Range;
use std::sync::{Arc, LazyLock};

use half::bf16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::tensor::Dtype;

use crate::bytes::TensorBytes;
use crate::checkpoint::{Checkpoint, CheckpointTensor};
use crate::engine::{Engine, EngineOptions};
use crate::grammar::{Grammar, Grammars, Source};
use crate::hooks::{
    ActivationRule, BlockQuant, Blocks, CastRule, CastSpec, Consumer, Contract, Decision, Edges, Floor, HookCause,
    HookError, LogitsMask, Lora, LoraPlace, LoraPlan, LoraSide, ModelInfo, Needs, RowPanel, ScaleFormat, Scheme, Slot,
    TensorInfo,
};
use crate::lora::{Adapter, AdapterBuilder};
use crate::refit::{MaskHook, Origin, Planned, RefitHooks};
use crate::tokenizer::{Tokenizer, TokenizerFiles};
use crate::weights::WeightSet;

/// Rows of the output; the tokenizer knows [`KNOWN`] of them.
pub(super) const VOCAB: usize = 40;
pub(super) const KNOWN: u32 = 36;
/// Ends a text.
pub(super) const END: u32 = 0;
/// In models with FP8: who computes it panics.
pub(super) const POISON: u32 = 3;
/// In models with FP8: who computes it gets an error of the patch.
pub(super) const SOUR: u32 = 4;

/// Width of the residual stream.
const HIDDEN: usize = 16;

/// Sets of weights of each model.
const SETS: u64 = 4;

/// One model.
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) engine: Arc<Engine>,
    /// Of different refits, labels `w0`, `w1`, …
    pub(super) sets: Vec<Arc<WeightSet>>,
    /// Two names, two versions of each.
    pub(super) adapters: Vec<Arc<Adapter>>,
    /// It has an FP8 matrix, and a patch that fails at some tokens.
    pub(super) fails: bool,
}

const COMMON: &str = r#""hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24, "vocab_size": 40,
"rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": false, "torch_dtype": "bfloat16""#;

const LLAMA: &str = r#""architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_attention_heads": 2,
"num_key_value_heads": 1, "head_dim": 8"#;

const FULL: &str = r#""max_position_embeddings": 56, "rope_theta": 10000.0"#;

/// Beyond 14 positions it matters how a text is split into steps.
const DYNAMIC: &str = r#""max_position_embeddings": 14,
"rope_parameters": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 10000.0}"#;

const WINDOW: &str = r#""architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_attention_heads": 2,
"num_key_value_heads": 1, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5"#;

const LATENT: &str = r#""architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "n_routed_experts": 4,
"num_experts_per_tok": 2, "moe_intermediate_size": 12, "n_shared_experts": 1, "first_k_dense_replace": 1,
"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 10, "kv_lora_rank": 8, "qk_nope_head_dim": 8,
"qk_rope_head_dim": 4, "v_head_dim": 8, "topk_method": "greedy", "n_group": 1, "topk_group": 1,
"routed_scaling_factor": 1.0, "norm_topk_prob": false, "moe_layer_freq": 1, "scoring_func": "softmax""#;

const RECURRENT: &str = r#""architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next",
"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
"linear_conv_kernel_dim": 3, "linear_key_head_dim": 6, "linear_num_key_heads": 1, "linear_num_value_heads": 2,
"linear_value_head_dim": 5, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
"shared_expert_intermediate_size": 8, "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [],
"attention_bias": false, "partial_rotary_factor": 0.25"#;

/// All of them, made once.
pub(super) fn kinds() -> &'static [Kind] {
    static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| {
        [
            ("plain", LLAMA, FULL),
            ("dynamic", LLAMA, DYNAMIC),
            ("window", WINDOW, FULL),
            ("latent", LATENT, FULL),
            ("recurrent", RECURRENT, FULL),
        ]
        .map(|(name, family, positions)| Kind::new(name, &format!("{{{family}, {positions}, {COMMON}}}")))
        .into()
    });
    &KINDS
}

impl Kind {
    fn new(name: &'static str, config: &str) -> Self {
        // The host's own loaders of experts: no patch is needed here.
        let options = EngineOptions { simulate_loader_loss: true, ..EngineOptions::default() };
        let engine = Arc::new(Engine::new(config, options).unwrap());
        let fails = ["plain", "recurrent"].contains(&name);
        let mut kind = Self { name, engine, sets: Vec::new(), adapters: Vec::new(), fails };
        kind.sets = (0..SETS).map(|seed| kind.weights(seed, &format!("w{seed}"))).collect();
        if name != "recurrent" {
            kind.adapters = (0..4).map(|seed| kind.adapter(["first", "second"][seed % 2], seed as u64)).collect();
        }
        kind
    }

    /// New weights, as a refit makes them.
    pub(super) fn weights(&self, seed: u64, label: &str) -> Arc<WeightSet> {
        let mask: (Arc<dyn LogitsMask>, u32) = (Arc::new(Masks(seed)), KNOWN);
        let hooks = RefitHooks {
            quant: self.fails.then(|| Arc::new(Fails) as Arc<dyn BlockQuant>),
            mask: Some(MaskHook { patch: mask.0, vocabulary: mask.1 }),
            origin: Origin { patches: format!("patches{}", seed % 2), pin: None },
            ..RefitHooks::default()
        };
        let checkpoint = self.checkpoint(seed);
        let planned = Planned::new(self.engine.setup(), &checkpoint, &hooks).unwrap();
        Arc::new(planned.stage(seed + 1, label, &hooks, &|_, _, _| {}).unwrap().0)
    }

    fn checkpoint(&self, seed: u64) -> Checkpoint {
        let mut rng = StdRng::seed_from_u64(seed);
        let registry = self.engine.registry();
        let mut tensors = Vec::new();
        for (param, decl) in registry.params().iter().enumerate() {
            for part in 0..decl.part_count() {
                let Some(name) = registry.checkpoint_name_of(param, part) else { continue };
                let rows = decl.part(part).rows;
                let shape = decl.stored.clone().unwrap_or_else(|| [rows].into_iter().chain(decl.cols).collect());
                let mut values: Vec<f32> =
                    (0..shape.iter().product()).map(|_| rng.random_range(-0.5..0.5f32)).collect();
                if name.ends_with("norm.weight") {
                    let one = if decl.plus_one { 0.0 } else { 1.0 };
                    values.iter_mut().for_each(|v| *v = one + *v / 8.0);
                }
                if self.fails {
                    mark(name, decl.plus_one, &mut values);
                }
                tensors.push(tensor(name, shape, &values));
            }
        }
        Checkpoint::from_tensors(tensors).unwrap()
    }

    /// Of the output projections of attention.
    fn adapter(&self, name: &str, seed: u64) -> Arc<Adapter> {
        let mut rng = StdRng::seed_from_u64(1000 + seed);
        let config = r#"{"r": 2, "lora_alpha": 4, "target_modules": ["o_proj"]}"#;
        let mut builder = AdapterBuilder::new(name, config);
        let outputs = |p: &&crate::registry::ParamDecl| p.name.ends_with("o_proj.weight");
        for decl in self.engine.registry().params().iter().filter(outputs) {
            for (side, shape) in [("A", [2, decl.cols.unwrap()]), ("B", [decl.part(0).rows, 2])] {
                let mut values: Vec<f32> =
                    (0..shape.iter().product()).map(|_| rng.random_range(-0.5..0.5f32)).collect();
                if side == "B" {
                    values[..2 * 2].fill(0.0);
                }
                let name = decl.name.replace(".weight", &format!(".lora_{side}.weight"));
                builder.tensor(&tensor(&name, shape.to_vec(), &values)).unwrap();
            }
        }
        self.engine.load_adapter(builder, &ByName).unwrap()
    }
}

/// Two dimensions of the residual stream are zero but for one token each, and the norm before the queries of the second layer makes
/// those plain.
fn mark(name: &str, plus_one: bool, values: &mut [f32]) {
    let writes = ["o_proj.weight", "out_proj.weight", "down_proj.weight"].iter().any(|end| name.ends_with(end));
    if writes {
        let columns = values.len() / HIDDEN;
        values[..2 * columns].fill(0.0);
    }
    for (token, dimension, plain) in [(POISON, 0, 4.0), (SOUR, 1, 2.0)] {
        if name.ends_with("embed_tokens.weight") {
            values.chunks_exact_mut(HIDDEN).for_each(|row| row[dimension] = 0.0);
            values[token as usize * HIDDEN..][..HIDDEN].fill(0.0);
            values[token as usize * HIDDEN + dimension] = 64.0;
        }
        if name.ends_with("layers.1.input_layernorm.weight") {
            values[dimension] = if plus_one { plain - 1.0 } else { plain };
        }
    }
}

fn tensor(name: &str, shape: Vec<usize>, values: &[f32]) -> CheckpointTensor {
    let bytes: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    let len = bytes.len();
    CheckpointTensor::new(name, Dtype::BF16, shape, TensorBytes::new(Arc::new(bytes), 0..len).unwrap())
}

/// Never samples what the tokenizer does not know, and one token more that depends on the weights.
struct Masks(u64);

impl LogitsMask for Masks {
    fn name(&self) -> &str {
        "masks"
    }

    fn masked(&self, _: &ModelInfo, rows: u32, vocabulary: u32) -> Result<Vec<Range<u32>>, HookError> {
        let more = 10 + self.0 as u32 % 8;
        Ok(vec![more..more + 1, vocabulary..rows])
    }
}

/// The names say it.
struct ByName;

impl Lora for ByName {
    fn name(&self) -> &str {
        "by-name"
    }

    fn admit(&self, _: &ModelInfo, _: &str, _: &[TensorInfo], adapter: &[TensorInfo]) -> Result<LoraPlan, HookError> {
        let place = |t: &TensorInfo| {
            let side = if t.name.contains(".lora_A.") { LoraSide::A } else { LoraSide::B };
            let target = t.name.replace(".lora_A.", ".").replace(".lora_B.", ".");
            LoraPlace { target, slot: Slot::Whole, expert: None, side }
        };
        Ok(LoraPlan { rank: 2, scaling: 2.0, places: adapter.iter().map(place).collect() })
    }
}

/// Quantizes the queries of the second layer: keys and values of the first are written when it is asked for the scales of
/// activations, and fails.
struct Fails;

impl Fails {
    fn error(&self, why: &str) -> HookError {
        let (patch, call) = ("fails".to_string(), "`activation-scales`".to_string());
        HookError { patch, call, cause: HookCause::Trap, why: why.to_string(), next: "send no sour token".to_string() }
    }
}

impl BlockQuant for Fails {
    fn name(&self) -> &str {
        "fails"
    }

    fn decide(&self, _: &ModelInfo, _: &Consumer, tensors: &[TensorInfo]) -> Result<Vec<Decision>, HookError> {
        let scheme = Scheme {
            block_rows: 128,
            block_cols: 128,
            scale_suffix: "_scale_inv".to_string(),
            needs: Needs::Amax,
            cast: CastSpec {
                format: ScaleFormat::F32,
                cast: CastRule::Divide,
                edges: Edges::Strict,
                floor: Floor { eps: 1e-10, zero_below: 0.0, zero_scale: 1.0 },
                contract: Contract::Amax,
                round_bf16: false,
            },
            profile: "trial".to_string(),
            rule: "queries of the second layer".to_string(),
        };
        let decide = |t: &TensorInfo| match t.name.as_str() {
            "model.layers.1.self_attn.q_proj.weight" => Decision::Quantize(scheme.clone()),
            _ => Decision::Keep("not asked for".to_string()),
        };
        Ok(tensors.iter().map(decide).collect())
    }

    fn activation(&self, _: &ModelInfo) -> Result<Option<ActivationRule>, HookError> {
        Ok(None)
    }

    fn scales(&self, _: &Blocks<'_>, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        Ok(amax.iter().map(|a| a / 448.0).collect())
    }

    fn scales_with_moments(&self, blocks: &Blocks<'_>, amax: &[f32], _: &[f32]) -> Result<Vec<f32>, HookError> {
        self.scales(blocks, amax)
    }

    fn panel_scales(&self, blocks: &Blocks<'_>, _: &RowPanel, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.scales(blocks, amax)
    }

    /// The amax of a row that is alone in one dimension is four times the norm's weight there; of any other it is less than five.
    fn activation_scales(&self, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        if amax.iter().any(|a| *a > 12.0) {
            // Not `panic!`: its message would be on the terminal thousands of times.
            std::panic::resume_unwind(Box::new("a poisoned token"));
        }
        if amax.iter().any(|a| *a > 6.0) {
            return Err(self.error("a sour token"));
        }
        Ok(amax.iter().map(|a| a.max(1e-10) / 448.0).collect())
    }
}

/// Letters, halves of characters, an end token and another special one.
pub(super) fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
        let bytes = ["Ã", "©", "â", "Ģ", "Ķ", "Ġ", "Ġab", "Ã©", "ca"];
        let letters = (b'a'..=b'z').map(|b| char::from(b).to_string());
        let special = ["<end>", "<other>"].map(str::to_string);
        let tokens: Vec<String> =
            special.into_iter().chain(bytes.map(str::to_string)).chain(letters).take(KNOWN as usize).collect();
        let vocab: serde_json::Map<String, serde_json::Value> =
            tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
        let added = |id: u32| {
            serde_json::json!({ "id": id, "content": tokens[id as usize], "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true })
        };
        let level = serde_json::json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": false });
        let json = serde_json::json!({ "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [added(0), added(1)], "pre_tokenizer": level, "decoder": level, "post_processor": null,
            "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocab, "merges": [] } });
        let generation = Some(format!(r#"{{"eos_token_id": [{END}]}}"#));
        Arc::new(
            Tokenizer::new(&TokenizerFiles { tokenizer: json.to_string(), generation, ..Default::default() }).unwrap(),
        )
    });
    TOKENIZER.clone()
}

/// Grammars of texts that the tokenizer can write.
pub(super) fn grammars() -> &'static [Arc<Grammar>] {
    static GRAMMARS: LazyLock<Vec<Arc<Grammar>>> = LazyLock::new(|| {
        let grammars = Grammars::new(tokenizer());
        let sources = ["[a-f]{1,5}", "(ab|ca| |é)+x?", "(—|é|a)+", "[a-z ]{8,}"]
            .map(|pattern| Source::Regex(pattern.to_string()));
        sources.iter().map(|source| grammars.compile(source).unwrap()).collect()
    });
    &GRAMMARS
}
