//! Block quantization for the failure policy `native`: the source that the patch `fp8_block` is made of, compiled natively.
//! It has the settings of the patch that it stands in for, where they are settings of `fp8_block`.

use kit::model_config::excluded_modules;
use kit::select;
use kit::settings::BlockSettings;
use kit::types as k;
use patchhost_runtime::hooks::{
    ActivationRule, BlockQuant, Blocks, CastRule, CastSpec, Consumer, Contract, Decision, Dtype, Edges, Floor,
    HookCause, HookError, ModelInfo, Needs, Role, RowPanel, ScaleFormat, Scheme, TensorInfo,
};

/// What reports show in the place of a patch's name: the value of the policy.
const NAME: &str = "native";

/// Answers as `fp8_block` would, without a sandbox.
pub struct OwnSource {
    settings: BlockSettings,
}

impl OwnSource {
    /// In the place of a patch with these settings. Settings that `fp8_block` does not know give its defaults.
    pub fn in_place_of(settings: &[(String, String)]) -> Self {
        let pairs = settings.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        Self { settings: BlockSettings::parse(pairs).unwrap_or_default() }
    }

    fn fail(call: &str, cause: HookCause, why: String) -> HookError {
        let next = "use weights that can be quantized, or another policy than `native`".to_owned();
        HookError { patch: NAME.to_owned(), call: format!("`{call}`"), cause, why, next }
    }

    fn answer(&self, call: &str, blocks: &Blocks<'_>, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        let first = u32::try_from(blocks.first_block).unwrap_or(u32::MAX);
        let scales = self.settings.recipe().scales(blocks.tensor, first, amax);
        scales.map_err(|why| Self::fail(call, HookCause::Refused, why))
    }
}

impl BlockQuant for OwnSource {
    fn name(&self) -> &str {
        NAME
    }

    fn decide(&self, model: &ModelInfo, _: &Consumer, tensors: &[TensorInfo]) -> Result<Vec<Decision>, HookError> {
        let listed = excluded_modules(&model.config).map_err(|why| Self::fail("decide", HookCause::Refused, why))?;
        let scheme = self.settings.scheme();
        let decide = |tensor: &TensorInfo| {
            let (name, dtype, shape, role) = (&*tensor.name, dtype(tensor.dtype), &*tensor.shape, role(tensor.role));
            let tensor = k::Tensor { name, dtype, shape, role };
            match select::decide(&self.settings.common.selection, &listed, &tensor) {
                k::Decision::Keep(reason) => Decision::Keep(reason),
                k::Decision::Quantize(rule) => Decision::Quantize(lift(&scheme, rule)),
            }
        };
        Ok(tensors.iter().map(decide).collect())
    }

    fn activation(&self, _: &ModelInfo) -> Result<Option<ActivationRule>, HookError> {
        let rule = self.settings.activation();
        Ok(Some(ActivationRule { eps: rule.eps, divisor: rule.divisor, pow2_up: rule.pow2_up }))
    }

    fn scales(&self, blocks: &Blocks<'_>, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.answer("scales", blocks, amax)
    }

    fn scales_with_moments(&self, blocks: &Blocks<'_>, amax: &[f32], _: &[f32]) -> Result<Vec<f32>, HookError> {
        self.answer("scales-with-moments", blocks, amax)
    }

    fn panel_scales(&self, blocks: &Blocks<'_>, _: &RowPanel, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.answer("panel-scales", blocks, amax)
    }

    fn activation_scales(&self, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        let scales = self.settings.activation().scales(amax);
        scales.map_err(|why| Self::fail("activation-scales", HookCause::Refused, why))
    }
}

fn dtype(dtype: Dtype) -> k::Dtype {
    match dtype {
        Dtype::F32 => k::Dtype::F32,
        Dtype::F16 => k::Dtype::F16,
        Dtype::Bf16 => k::Dtype::Bf16,
        Dtype::F8E4m3 => k::Dtype::F8E4m3,
        Dtype::F8E8m0 => k::Dtype::F8E8m0,
        Dtype::I64 => k::Dtype::I64,
        Dtype::U8 => k::Dtype::U8,
        Dtype::Other => k::Dtype::Other,
    }
}

fn role(role: Role) -> k::Role {
    match role {
        Role::Embedding => k::Role::Embedding,
        Role::Norm => k::Role::Norm,
        Role::Attention => k::Role::Attention,
        Role::Mlp => k::Role::Mlp,
        Role::Expert => k::Role::Expert,
        Role::SharedExpert => k::Role::SharedExpert,
        Role::Router => k::Role::Router,
        Role::LmHead => k::Role::LmHead,
        Role::Buffer => k::Role::Buffer,
        Role::Other => k::Role::Other,
    }
}

fn lift(scheme: &k::Scheme, rule: String) -> Scheme {
    let k::Floor { eps, zero_below, zero_scale } = scheme.floor;
    Scheme {
        block_rows: scheme.block_rows as usize,
        block_cols: scheme.block_cols as usize,
        scale_suffix: k::SCALE_SUFFIX.to_owned(),
        needs: match scheme.needs {
            k::Needs::Amax => Needs::Amax,
            k::Needs::Moments => Needs::Moments,
            k::Needs::Rows => Needs::Rows,
        },
        cast: CastSpec {
            format: match scheme.format {
                k::ScaleFormat::F32 => ScaleFormat::F32,
                k::ScaleFormat::Ue8m0 => ScaleFormat::Ue8m0,
            },
            cast: match scheme.cast {
                k::Cast::Divide => CastRule::Divide,
                k::Cast::Reciprocal => CastRule::Reciprocal,
                k::Cast::Multiply => CastRule::Multiply,
            },
            edges: match scheme.edges {
                k::Edges::Strict => Edges::Strict,
                k::Edges::PropagateNan => Edges::PropagateNan,
                k::Edges::IgnoreNan => Edges::IgnoreNan,
            },
            floor: Floor { eps, zero_below, zero_scale },
            contract: match scheme.contract {
                k::Contract::Amax => Contract::Amax,
                k::Contract::Pow2 => Contract::Pow2,
                k::Contract::Clip(share) => Contract::Clip(share),
            },
            round_bf16: scheme.round_bf16,
        },
        profile: scheme.profile.to_owned(),
        rule,
    }
}
