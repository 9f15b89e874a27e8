//! Between the WIT bindings of `block-quant` and the plain types of `kit`. Both quantization patches include this file
//! (`#[path]`), because each has bindings of its own.

use crate::bindings::exports::patchhost::patch::block_quant as wit;
use kit::types as plain;

/// One decision per tensor, in order.
pub fn decide(
    scheme: &plain::Scheme,
    selection: &kit::settings::Selection,
    model: &wit::Model,
    tensors: &[wit::Tensor],
) -> Result<Vec<wit::Decision>, String> {
    let listed = kit::model_config::excluded_modules(&model.config)?;
    let one = |t: &wit::Tensor| match kit::select::decide(selection, &listed, &tensor(t)) {
        plain::Decision::Keep(reason) => wit::Decision::Keep(reason),
        plain::Decision::Quantize(rule) => wit::Decision::Quantize(to_wit(scheme, rule)),
    };
    Ok(tensors.iter().map(one).collect())
}

/// The rule for activations, if the host shall apply it itself.
pub fn activation(rule: plain::ActivationRule) -> wit::ActivationRule {
    let rounding = if rule.pow2_up { wit::Rounding::Pow2Up } else { wit::Rounding::None };
    wit::ActivationRule { eps: rule.eps, divisor: rule.divisor, rounding }
}

fn tensor(t: &wit::Tensor) -> plain::Tensor<'_> {
    plain::Tensor { name: &t.name, dtype: dtype(t.dtype), shape: &t.shape, role: role(t.role) }
}

fn dtype(d: wit::Dtype) -> plain::Dtype {
    match d {
        wit::Dtype::F32 => plain::Dtype::F32,
        wit::Dtype::F16 => plain::Dtype::F16,
        wit::Dtype::Bf16 => plain::Dtype::Bf16,
        wit::Dtype::F8E4m3 => plain::Dtype::F8E4m3,
        wit::Dtype::F8E8m0 => plain::Dtype::F8E8m0,
        wit::Dtype::I64 => plain::Dtype::I64,
        wit::Dtype::U8 => plain::Dtype::U8,
        wit::Dtype::Other => plain::Dtype::Other,
    }
}

fn role(r: wit::Role) -> plain::Role {
    match r {
        wit::Role::Embedding => plain::Role::Embedding,
        wit::Role::Norm => plain::Role::Norm,
        wit::Role::Attention => plain::Role::Attention,
        wit::Role::Mlp => plain::Role::Mlp,
        wit::Role::Expert => plain::Role::Expert,
        wit::Role::SharedExpert => plain::Role::SharedExpert,
        wit::Role::Router => plain::Role::Router,
        wit::Role::LmHead => plain::Role::LmHead,
        wit::Role::Buffer => plain::Role::Buffer,
        wit::Role::Other => plain::Role::Other,
    }
}

fn to_wit(s: &plain::Scheme, rule: String) -> wit::Scheme {
    wit::Scheme {
        block_rows: s.block_rows,
        block_cols: s.block_cols,
        format: match s.format {
            plain::ScaleFormat::F32 => wit::ScaleFormat::F32,
            plain::ScaleFormat::Ue8m0 => wit::ScaleFormat::Ue8m0,
        },
        scale_suffix: plain::SCALE_SUFFIX.into(),
        needs: match s.needs {
            plain::Needs::Amax => wit::Needs::Amax,
            plain::Needs::Moments => wit::Needs::Moments,
            plain::Needs::Rows => wit::Needs::Rows,
        },
        cast: match s.cast {
            plain::Cast::Divide => wit::Cast::Divide,
            plain::Cast::Reciprocal => wit::Cast::Reciprocal,
            plain::Cast::Multiply => wit::Cast::Multiply,
        },
        edges: match s.edges {
            plain::Edges::Strict => wit::Edges::Strict,
            plain::Edges::PropagateNan => wit::Edges::PropagateNan,
            plain::Edges::IgnoreNan => wit::Edges::IgnoreNan,
        },
        floor: wit::Floor { eps: s.floor.eps, zero_below: s.floor.zero_below, zero_scale: s.floor.zero_scale },
        contract: match s.contract {
            plain::Contract::Amax => wit::Contract::Amax,
            plain::Contract::Pow2 => wit::Contract::Pow2,
            plain::Contract::Clip(share) => wit::Contract::Clip(share),
        },
        round_bf16: s.round_bf16,
        profile: s.profile.into(),
        rule,
    }
}
