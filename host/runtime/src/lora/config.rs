//! adapter_config.json as the host itself reads it, whatever the patch that admits the adapter makes of it.
//!
//! Every field of PEFT's `LoraConfig` (0.21) has one of three fates: it is applied ([`Config`]), it asks for nothing here
//! ([`HARMLESS`]), or it changes what the adapter computes and is refused by name ([`REFUSED`]). A field that is none of
//! these is refused too where it says anything: what it would do is not known.

use regex::Regex;
use serde_json::{Map, Value};

use crate::error::{Refusal, Result, RuntimeError};
use crate::hooks::LoraPlan;

/// What is applied.
pub(super) struct Config {
    pub(super) rank: u64,
    pub(super) scaling: f32,
    pub(super) targets: Targets,
    /// Modules that are left out although they are targets.
    pub(super) exclude: Targets,
    /// Only these layers; all, where it is none.
    pub(super) layers: Option<Vec<u64>>,
}

/// Which modules are meant.
pub(super) enum Targets {
    /// By name, or the end of it.
    Names(Vec<String>),
    /// By a pattern that must match the whole name, as PEFT's `re.fullmatch`.
    Pattern(Regex),
    /// `all-linear`, or a pattern that only Python understands: the adapter itself must be consistent.
    Unknown,
}

/// Fields that [`Config::read`] applies, or checks by themselves.
const APPLIED: &[&str] = &[
    "r",
    "lora_alpha",
    "use_rslora",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "peft_type",
    "task_type",
    "bias",
    "init_lora_weights",
];

/// Fields that ask for nothing when an adapter is used: where it came from, and how it was trained and made.
const HARMLESS: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "peft_version",
    "lora_dropout",
    // How weights are initialized is judged by `init_lora_weights`.
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    // What training keeps of activations.
    "velora_config",
    // Where tensors lie while it is trained, and which core Megatron's layers come from.
    "runtime_config",
    "megatron_core",
    // A number for `use_qalora`, which is refused.
    "qalora_group_size",
    // What Unsloth notes about itself.
    "unsloth_fixed",
    "unsloth_version",
];

/// Fields that change what an adapter computes, with the reason why they are not applied here. `null`, `false` and what is
/// empty ask for nothing.
const REFUSED: &[(&str, &str)] = &[
    // PEFT sets it by itself for gate, up and down of most mixtures, whose experts transformers 5 stacks.
    (
        "target_parameters",
        "PEFT adapted stacked experts as one parameter, which no module of the model is; target modules only (attention, \
         shared experts), or send experts one by one",
    ),
    ("use_dora", "DoRA scales the columns of the merged weight; only low-rank sums are served"),
    ("fan_in_fan_out", "only plain linear layers can be adapted"),
    ("modules_to_save", "fully trained modules are no LoRA; send them in a refit"),
    ("rank_pattern", "one rank for all modules can be served"),
    ("alpha_pattern", "one alpha for all modules can be served"),
    ("lora_bias", "a bias beside lora_B is not added"),
    ("trainable_token_indices", "rows of the embedding are no LoRA; send them in a refit"),
    ("layer_replication", "the model would need layers that it does not have"),
    (
        "alora_invocation_tokens",
        "the adapter would work only behind these tokens of the prompt, and here it works everywhere",
    ),
    ("alora_invocation_string", "the adapter would work only behind this text, and here it works everywhere"),
    ("use_qalora", "QALoRA pools the input of lora_A, which is not done here"),
    ("use_bdlora", "the halves of BD-LoRA are block-diagonal"),
    ("arrow_config", "Arrow chooses among adapters for each token; here a sequence has one"),
    ("monteclora_config", "MonteCLoRA samples its weights; only plain low-rank sums are served"),
    ("kasa_config", "KaSA changes the base weights that the adapter belongs to"),
    ("ensure_weight_tying", "embeddings and heads that are trained as one are no LoRA of a linear layer"),
    ("megatron_config", "the layers of Megatron's core have other modules than the model"),
];

/// Ways of initializing that leave the base weights as they are; all others belong to a base that was changed.
const PLAIN_INIT: &[&str] = &["gaussian", "eva", "orthogonal", "mica"];

/// Tasks of an adapter that has a head of its own.
const HEADS: &[&str] = &["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"];

/// Longest value that a message shows.
const SHOWN: usize = 120;

impl Config {
    pub(super) fn read(text: &str) -> Result<Self> {
        let json: Value = serde_json::from_str(text).map_err(|e| refuse_config(format!("it is not JSON: {e}")))?;
        let Value::Object(fields) = &json else {
            return Err(refuse_config("it is no JSON object".to_string()));
        };
        kind(fields)?;
        for (name, value) in fields.iter().filter(|(_, value)| says_something(value)) {
            known(name, value)?;
        }
        let number = |name: &str| fields.get(name).filter(|v| !v.is_null());
        let rank = number("r").and_then(Value::as_u64).filter(|r| *r > 0);
        let rank = rank.ok_or_else(|| refuse_config("`r` is missing or not above 0".to_string()))?;
        let alpha = number("lora_alpha").and_then(Value::as_f64);
        let alpha = alpha.ok_or_else(|| refuse_config("`lora_alpha` is missing or no number".to_string()))?;
        let rslora = match fields.get("use_rslora") {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Bool(true)) => true,
            Some(other) => {
                return Err(refuse_config(format!("`use_rslora` is {}; it must be true or false", shown(other))));
            }
        };
        let scaling = if rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 };
        if !(scaling as f32).is_finite() {
            let why = format!("`lora_alpha` is {alpha:e} and `r` is {rank}: their scaling does not fit an f32");
            return Err(refuse_config(why));
        }
        let targets = Targets::read(fields.get("target_modules"));
        let exclude = Targets::read(fields.get("exclude_modules"));
        Ok(Self { rank, scaling: scaling as f32, targets, exclude, layers: layers(fields)? })
    }

    /// Refuses a plan whose rank or scaling is not what the config says.
    pub(super) fn agree(&self, plan: &LoraPlan, patch: &str) -> Result<()> {
        let near = (plan.scaling - self.scaling).abs() <= self.scaling.abs() * 1e-6;
        if u64::from(plan.rank) == self.rank && near {
            return Ok(());
        }
        Err(refuse_config(format!(
            "patch `{patch}` says rank {} and scaling {}; the config says {} and {}",
            plan.rank, plan.scaling, self.rank, self.scaling
        )))
    }
}

/// Refuses what is no LoRA adapter of a language model.
fn kind(fields: &Map<String, Value>) -> Result<()> {
    let field = |name: &str| fields.get(name).filter(|v| !v.is_null());
    if let Some(kind) = field("peft_type").filter(|v| !v.as_str().is_some_and(|t| t.eq_ignore_ascii_case("LORA"))) {
        return Err(refuse_config(format!("`peft_type` is {}; only LORA is served", shown(kind))));
    }
    if let Some(task) = field("task_type").filter(|v| v.as_str().is_none_or(|t| HEADS.contains(&t))) {
        let why = "the adapter has a head of its own, and here the model writes text";
        return Err(refuse_config(format!("`task_type` is {}: {why}", shown(task))));
    }
    if let Some(bias) = field("bias").filter(|b| b.as_str() != Some("none")) {
        return Err(refuse_config(format!("`bias` is {}; only `none` can be served", shown(bias))));
    }
    match field("init_lora_weights") {
        None | Some(Value::Bool(_)) => Ok(()),
        Some(Value::String(way)) if PLAIN_INIT.contains(&way.to_lowercase().as_str()) => Ok(()),
        Some(way) => Err(RuntimeError::Refit(Refusal::new(
            "adapter_config.json",
            format!(
                "`init_lora_weights` is {}: it changes the base weights, and the adapter belongs to the changed ones",
                shown(way)
            ),
            "convert it to plain LoRA: save_pretrained(…, path_initial_model_for_weight_conversion=…) of PEFT",
        ))),
    }
}

/// Refuses a field that is not applied, and is not known to ask for nothing. It says something.
fn known(name: &str, value: &Value) -> Result<()> {
    if APPLIED.contains(&name) || HARMLESS.contains(&name) {
        return Ok(());
    }
    let (is, why, next) = match REFUSED.iter().find(|(refused, _)| *refused == name) {
        Some((_, why)) if value.is_array() || value.is_object() => {
            ("not empty", *why, "train and save the adapter without it")
        }
        Some((_, why)) => ("set", *why, "train and save the adapter without it"),
        None => (
            "set",
            "no version of PEFT that this host knows has this field, so what it does is not known",
            "remove it if it changes nothing about what the adapter computes, else train the adapter without it",
        ),
    };
    let name = crate::words::shown(name);
    Err(RuntimeError::Refit(Refusal::new(
        "adapter_config.json",
        format!("`{name}` is {is} ({}): {why}", shown(value)),
        next,
    )))
}

/// Whether a value is another than those that stand for nothing.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => true,
    }
}

/// `layers_to_transform`; an empty list is all layers, as PEFT has it. `layers_pattern` must be how the layers of all models
/// here are called.
fn layers(fields: &Map<String, Value>) -> Result<Option<Vec<u64>>> {
    let pattern = fields.get("layers_pattern").filter(|v| says_something(v));
    let ours = |v: &Value| v == "layers" || v.as_array().is_some_and(|list| list.iter().all(|p| p == "layers"));
    if let Some(pattern) = pattern.filter(|v| !ours(v)) {
        let why = "the model's layers are called `layers`";
        return Err(refuse_config(format!("`layers_pattern` is {}: {why}", shown(pattern))));
    }
    let Some(given) = fields.get("layers_to_transform").filter(|v| says_something(v)) else { return Ok(None) };
    let list = match given {
        Value::Array(list) => list.iter().map(Value::as_u64).collect(),
        one => one.as_u64().map(|n| vec![n]),
    };
    let bad = || refuse_config(format!("`layers_to_transform` is {}; it must be numbers of layers", shown(given)));
    list.map(Some).ok_or_else(bad)
}

impl Targets {
    fn read(value: Option<&Value>) -> Self {
        match value {
            Some(Value::Array(list)) => {
                Self::Names(list.iter().filter_map(Value::as_str).map(str::to_string).collect())
            }
            Some(Value::String(text)) if text != "all-linear" => {
                Regex::new(&format!("^(?:{text})$")).map_or(Self::Unknown, Self::Pattern)
            }
            Some(Value::String(_)) => Self::Unknown,
            _ => Self::Names(Vec::new()),
        }
    }

    /// Whether a module is meant; none where that cannot be known.
    pub(super) fn has(&self, module: &str) -> Option<bool> {
        match self {
            Self::Names(list) => Some(list.iter().any(|m| module == m || module.ends_with(&format!(".{m}")))),
            Self::Pattern(pattern) => Some(pattern.is_match(module)),
            Self::Unknown => None,
        }
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    let short: String = text.chars().take(SHOWN).collect();
    if short.len() < text.len() { format!("{short}…") } else { short }
}

pub(super) fn refuse_config(why: String) -> RuntimeError {
    RuntimeError::Refit(Refusal::new("adapter_config.json", why, "use the adapter as PEFT saved it"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn base() -> Value {
        json!({ "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "bias": "none",
            "target_modules": ["q_proj"], "init_lora_weights": true })
    }

    fn read(name: &str, value: Value) -> Result<Config> {
        let mut config = base();
        config[name] = value;
        Config::read(&config.to_string())
    }

    #[track_caller]
    fn refused(name: &str, value: Value) -> String {
        let text = read(name, value.clone()).map(|_| ()).unwrap_err().to_string();
        assert!(text.contains(&format!("`{name}`")), "{name} {value}: {text}");
        assert!(text.contains("\n  why: ") && text.contains("\n  next: "), "{text}");
        text
    }

    #[test]
    fn fields_that_change_what_is_computed_are_refused_by_name() {
        for (name, _) in REFUSED {
            for value in [json!(true), json!([[0, 1]]), json!({ "a": 1 }), json!("x"), json!(1)] {
                refused(name, value);
            }
            for nothing in [json!(null), json!(false), json!([]), json!({}), json!("")] {
                assert!(read(name, nothing.clone()).is_ok(), "{name} {nothing}");
            }
        }
        for (name, value) in [
            ("peft_type", json!("IA3")),
            ("peft_type", json!("LOHA")),
            ("peft_type", json!(1)),
            ("task_type", json!("SEQ_CLS")),
            ("bias", json!("lora_only")),
            ("bias", json!(true)),
            ("init_lora_weights", json!("pissa")),
            ("init_lora_weights", json!("pissa_niter_16")),
            ("init_lora_weights", json!("corda")),
            ("init_lora_weights", json!("olora")),
            ("init_lora_weights", json!("loftq")),
            ("init_lora_weights", json!("lora_ga")),
            ("init_lora_weights", json!("something new")),
            ("layers_pattern", json!("blocks")),
            ("layers_pattern", json!(["layers", "h"])),
            ("layers_to_transform", json!("all")),
            ("layers_to_transform", json!([0, -1])),
            ("use_rslora", json!("yes")),
            ("r", json!(0)),
            ("r", json!(true)),
            ("lora_alpha", json!("8")),
            ("lora_alpha", json!(1e300)),
            ("lora_alpha", json!(-4e39)),
            ("some_field_of_tomorrow", json!({ "scale": 2 })),
            ("UPPER\u{1b}[2J", json!(1)),
        ] {
            let shown = crate::words::shown(name);
            let text = read(name, value.clone()).map(|_| ()).unwrap_err().to_string();
            assert!(text.contains(&format!("`{shown}`")) && !text.contains('\u{1b}'), "{name} {value}: {text}");
        }
    }

    #[test]
    fn what_asks_for_nothing_is_taken() {
        for name in HARMLESS {
            assert!(read(name, json!("anything")).is_ok() && read(name, json!({ "a": 1 })).is_ok(), "{name}");
        }
        for (name, value) in [
            ("init_lora_weights", json!("gaussian")),
            ("init_lora_weights", json!(false)),
            ("task_type", json!(null)),
            ("layers_pattern", json!(["layers"])),
            ("some_field_of_tomorrow", json!(null)),
            ("peft_type", json!("lora")),
        ] {
            assert!(read(name, value.clone()).is_ok(), "{name} {value}");
        }
        assert_eq!(read("layers_to_transform", json!([])).unwrap().layers, None, "an empty list is all layers");
        assert_eq!(read("layers_to_transform", json!(1)).unwrap().layers, Some(vec![1]));
    }

    #[test]
    fn every_field_has_one_fate() {
        let all: Vec<&str> =
            APPLIED.iter().chain(HARMLESS).copied().chain(REFUSED.iter().map(|(name, _)| *name)).collect();
        let unique: std::collections::BTreeSet<&str> = all.iter().copied().collect();
        assert_eq!(unique.len(), all.len());
    }
}
