//! Model families. Each file is a short declaration over the shared blocks of [`crate::model`]: which parts a layer has
//! and what they are called. A new family is a new file and a line in [`FAMILIES`].

mod arch;
mod common;
mod deepseek_v2;
mod deepseek_v3;
mod fields;
mod kimi_vl;
mod llama;
mod mixtral;
mod olmoe;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod qwen3_next;
mod qwen3_vl_moe;

pub use arch::{
    Arch, Attention, Common, DeltaNet, GroupScore, Groups, Ignored, Latent, Mixer, Mlp, Moe, Names, QkNorm, Scoring,
    Shared,
};
use common::{qwen_layers, routed};
pub use fields::{DefaultValue, Field};
use fields::{count, flag, number, optional, shape, text};

use crate::config::{RawConfig, refuse};
use crate::error::Result;

/// Most tensors of a checkpoint: the bound that the interface promises patches (DeepSeek-V3 has 46,000).
const MAX_TENSORS: usize = 131_072;

/// A family: the names under which config.json may announce it, and its declaration.
pub struct Family {
    /// `architectures[0]`.
    pub architecture: &'static str,
    /// `model_type`.
    pub model_type: &'static str,
    /// The fields that it reads, with the defaults of its config class in transformers.
    pub fields: &'static [Field],
    /// Other names of its fields: (other name, name).
    aliases: &'static [(&'static str, &'static str)],
    /// Its fields stand below `text_config`.
    nested: bool,
    declare: fn(&RawConfig, Common) -> Result<Arch>,
}

/// Every family this runtime knows.
pub const FAMILIES: &[Family] = &[
    Family {
        architecture: "DeepseekV2ForCausalLM",
        model_type: "deepseek_v2",
        fields: deepseek_v2::FIELDS,
        aliases: &[("num_experts", "n_routed_experts")],
        nested: false,
        declare: deepseek_v2::declare,
    },
    Family {
        architecture: "DeepseekV3ForCausalLM",
        model_type: "deepseek_v3",
        fields: deepseek_v3::FIELDS,
        aliases: deepseek_v3::ALIASES,
        nested: false,
        declare: deepseek_v3::declare,
    },
    Family {
        architecture: "KimiVLForConditionalGeneration",
        model_type: "kimi_vl",
        fields: kimi_vl::FIELDS,
        aliases: deepseek_v3::ALIASES,
        nested: true,
        declare: kimi_vl::declare,
    },
    Family {
        architecture: "LlamaForCausalLM",
        model_type: "llama",
        fields: llama::FIELDS,
        aliases: &[],
        nested: false,
        declare: llama::declare,
    },
    Family {
        architecture: "MixtralForCausalLM",
        model_type: "mixtral",
        fields: mixtral::FIELDS,
        aliases: &[("num_experts", "num_local_experts")],
        nested: false,
        declare: mixtral::declare,
    },
    Family {
        architecture: "OlmoeForCausalLM",
        model_type: "olmoe",
        fields: olmoe::FIELDS,
        aliases: &[("num_local_experts", "num_experts")],
        nested: false,
        declare: olmoe::declare,
    },
    Family {
        architecture: "Qwen2ForCausalLM",
        model_type: "qwen2",
        fields: qwen2::FIELDS,
        aliases: &[],
        nested: false,
        declare: qwen2::declare,
    },
    Family {
        architecture: "Qwen2MoeForCausalLM",
        model_type: "qwen2_moe",
        fields: qwen2_moe::FIELDS,
        aliases: &[],
        nested: false,
        declare: qwen2_moe::declare,
    },
    Family {
        architecture: "Qwen3ForCausalLM",
        model_type: "qwen3",
        fields: qwen3::FIELDS,
        aliases: &[],
        nested: false,
        declare: qwen3::declare,
    },
    Family {
        architecture: "Qwen3MoeForCausalLM",
        model_type: "qwen3_moe",
        fields: qwen3_moe::FIELDS,
        aliases: &[("num_local_experts", "num_experts")],
        nested: false,
        declare: qwen3_moe::declare,
    },
    Family {
        architecture: "Qwen3NextForCausalLM",
        model_type: "qwen3_next",
        fields: qwen3_next::FIELDS,
        aliases: &[],
        nested: false,
        declare: qwen3_next::declare,
    },
    Family {
        architecture: "Qwen3VLMoeForConditionalGeneration",
        model_type: "qwen3_vl_moe",
        fields: qwen3_vl_moe::FIELDS,
        aliases: &[("num_local_experts", "num_experts")],
        nested: true,
        declare: qwen3_vl_moe::declare,
    },
];

impl Arch {
    /// Finds the family and declares the model.
    pub fn from_config(config: &RawConfig) -> Result<Self> {
        let family = FAMILIES
            .iter()
            .find(|f| f.architecture == config.architecture())
            .or_else(|| {
                FAMILIES.iter().find(|f| config.architecture().is_empty() && f.model_type == config.model_type())
            })
            .ok_or_else(|| {
                let known: Vec<&str> = FAMILIES.iter().map(|f| f.architecture).collect();
                let name = if config.architecture().is_empty() { config.model_type() } else { config.architecture() };
                refuse("config.json", format!("family `{name}` is not supported; supported are {}", known.join(", ")))
            })?;
        let config = config.of_family(family.nested, family.aliases, family.fields)?;
        let mut arch = (family.declare)(&config, Common::read(&config)?)?;
        arch.architecture = family.architecture;
        arch.model_type = family.model_type;
        arch.assumed = config.assumed_shapes();
        let matrices: usize = arch.mlps.iter().map(|m| if let Mlp::Moe(moe) = m { 3 * moe.experts } else { 3 }).sum();
        if matrices > MAX_TENSORS {
            return Err(refuse(
                "config.json",
                format!(
                    "layers times experts make {matrices} feed-forward matrices, more than the limit of {MAX_TENSORS}"
                ),
            ));
        }
        Ok(arch)
    }
}
