//! The element type that each part of a model is declared in, and what a refit makes of tensors that come in another.
//!
//! A part's types are those that it had at the first load and that config.json names (`dtype`, `torch_dtype`). What comes more
//! precise than both is rounded to the more precise of the two, as `copy_` of PyTorch does; what comes less precise than both
//! has lost bits on its way, and is refused unless the sender allows it. Routers, the head, vectors (norms, biases) and
//! buffers may never come less precise than they were at the first load, whatever config.json names; buffers are never
//! rounded. The last push counts for nothing here: a model is not locked out of its own files by one.

use std::sync::Arc;

use half::{bf16, f16};
use rayon::prelude::*;

use crate::bytes::TensorBytes;
use crate::checkpoint::{Checkpoint, CheckpointTensor};
use crate::config::RawConfig;
use crate::error::{Refusal, Result, RuntimeError};
use crate::hooks::{Dtype, Elem, Role};
use crate::plan::{Action, Dest};
use crate::registry::Registry;

/// What config.json says about element types.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OfConfig {
    /// Its `dtype` or `torch_dtype`, where it names one that weights are computed in.
    pub(crate) elem: Option<Elem>,
    /// Whether its matrices may be block FP8.
    pub(crate) fp8: bool,
}

impl OfConfig {
    pub(crate) fn read(config: &RawConfig, fp8: bool) -> Self {
        let named = config.get("dtype").or(config.get("torch_dtype")).and_then(serde_json::Value::as_str);
        let elem = match named.map(|name| name.strip_prefix("torch.").unwrap_or(name)) {
            Some("float32" | "float") => Some(Elem::F32),
            Some("float16" | "half") => Some(Elem::F16),
            Some("bfloat16") => Some(Elem::Bf16),
            _ => None,
        };
        Self { elem, fp8 }
    }
}

/// The declared types of one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    /// Less precise than this is narrowed.
    least: Dtype,
    /// More precise than this is rounded to it.
    most: Elem,
}

/// The declared types of every part of a model, known from the first load on.
#[derive(Debug, Clone)]
pub(crate) struct Declared(Vec<Vec<Option<Span>>>);

impl Declared {
    /// Those of a first load.
    pub(crate) fn new(registry: &Registry, config: OfConfig, checkpoint: &Checkpoint, actions: &[Action]) -> Self {
        let mut spans: Vec<Vec<Option<Span>>> = registry.params().iter().map(|p| vec![None; p.part_count()]).collect();
        for (tensor, action) in checkpoint.tensors().zip(actions) {
            let Action::Load { dests, .. } = action else { continue };
            for d in dests {
                let decl = &registry.params()[d.param];
                let exact = matches!(decl.role, Role::Router | Role::LmHead | Role::Buffer)
                    || decl.cols.is_none()
                    || registry.is_tied_head(d.param);
                spans[d.param][d.part] = Some(Span::new(tensor, config, exact, decl.role == Role::Buffer));
            }
        }
        Self(spans)
    }

    fn span(&self, d: &Dest) -> Option<Span> {
        *self.0.get(d.param)?.get(d.part)?
    }

    /// Refuses the first tensor that comes less precise than it is declared; says how many more there are. What did not come
    /// now was allowed before.
    pub(crate) fn refuse_narrowed(
        &self,
        registry: &Registry,
        checkpoint: &Checkpoint,
        actions: &[Action],
        came: &dyn Fn(&str) -> bool,
    ) -> Result<()> {
        let narrowed = self.narrowed(checkpoint, actions, came);
        let Some((tensor, dest, least)) = narrowed.first() else { return Ok(()) };
        let more = match narrowed.len() - 1 {
            0 => String::new(),
            n => format!(" ({n} more tensors came so)"),
        };
        Err(RuntimeError::Refit(Refusal::new(
            format!("tensor `{}`", tensor.name),
            format!(
                "it came as {:?}, and `{}` is declared {least:?} (as the model was loaded first): bits would be lost{more}",
                tensor.dtype(),
                registry.params()[dest.param].name
            ),
            "send it in its declared type (the sender casts everything?), or say that you want this: \
             `allow_narrowing` in the update, --allow-narrowing on the command line",
        )))
    }

    /// What a refit with these tensors does about their types, in words.
    pub(crate) fn notes(
        &self,
        checkpoint: &Checkpoint,
        actions: &[Action],
        came: &dyn Fn(&str) -> bool,
    ) -> Vec<String> {
        let all = checkpoint.tensors().zip(actions).filter(|(t, _)| came(&t.name));
        let wider: Vec<_> = all.filter_map(|(t, a)| self.rounds(t, a)).collect();
        let narrowed = self.narrowed(checkpoint, actions, came);
        let said = |n: usize, name: &str, what: String| {
            let tensors = if n == 1 { "1 tensor".to_string() } else { format!("{n} tensors, the first of them") };
            format!("{tensors} `{name}`, {what}")
        };
        let wider = wider.first().map(|(t, from, to)| {
            said(wider.len(), &t.name, format!("came as {from:?} and was rounded to {to:?}, its declared type"))
        });
        let narrowed = narrowed.first().map(|(t, _, least)| {
            said(
                narrowed.len(),
                &t.name,
                format!("came as {:?} though it is declared {least:?}: narrowing is allowed", t.dtype()),
            )
        });
        wider.into_iter().chain(narrowed).collect()
    }

    fn rounds<'c>(&self, tensor: &'c CheckpointTensor, action: &Action) -> Option<(&'c CheckpointTensor, Elem, Elem)> {
        let (Action::Load { dests, .. }, Some(elem)) = (action, tensor.elem()) else { return None };
        let to = dests.iter().map(|d| self.stored(d, elem)).find(|to| *to != elem)?;
        Some((tensor, elem, to))
    }

    /// The tensors that come less precise than they are declared.
    fn narrowed<'c>(
        &self,
        checkpoint: &'c Checkpoint,
        actions: &[Action],
        came: &dyn Fn(&str) -> bool,
    ) -> Vec<(&'c CheckpointTensor, Dest, Dtype)> {
        let of = |(tensor, action): (&'c CheckpointTensor, &Action)| {
            let Action::Load { dests, .. } = action else { return None };
            dests.iter().find_map(|d| {
                let least = self.span(d)?.least;
                (precision(tensor.dtype()) < precision(least)).then_some((tensor, *d, least))
            })
        };
        checkpoint.tensors().zip(actions).filter(|(t, _)| came(&t.name)).filter_map(of).collect()
    }

    /// What the elements of a part become that come as `elem`.
    pub(crate) fn stored(&self, dest: &Dest, elem: Elem) -> Elem {
        match self.span(dest) {
            Some(span) if precision(dtype(span.most)) < precision(dtype(elem)) => span.most,
            _ => elem,
        }
    }
}

impl Span {
    /// `exact`: config.json does not lower it. `buffer`: it is computed in f32, whatever it was stored as.
    fn new(tensor: &CheckpointTensor, config: OfConfig, exact: bool, buffer: bool) -> Self {
        let first = tensor.dtype();
        // An FP8 weight stands for a model of this type.
        let wide = tensor.elem().or(config.elem).unwrap_or(Elem::Bf16);
        let named = [config.elem.map(dtype), (config.fp8).then_some(Dtype::F8E4m3)];
        let least = match exact {
            true => first,
            false => named.into_iter().flatten().chain([first]).min_by_key(|d| precision(*d)).unwrap_or(first),
        };
        let most = match buffer {
            true => Elem::F32,
            false => config.elem.into_iter().chain([wide]).max_by_key(|e| precision(dtype(*e))).unwrap_or(wide),
        };
        Self { least, most }
    }
}

/// Significant bits of a float.
fn precision(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 24,
        Dtype::F16 => 11,
        Dtype::Bf16 => 8,
        Dtype::F8E4m3 => 4,
        _ => 0,
    }
}

/// The words of the hooks for an element type.
pub(crate) fn dtype(elem: Elem) -> Dtype {
    match elem {
        Elem::F32 => Dtype::F32,
        Elem::F16 => Dtype::F16,
        Elem::Bf16 => Dtype::Bf16,
    }
}

/// The less precise of two types.
pub(crate) fn least_precise(a: Elem, b: Elem) -> Elem {
    if precision(dtype(a)) <= precision(dtype(b)) { a } else { b }
}

/// A value as it is in a type.
pub(crate) fn in_type(value: f32, elem: Elem) -> f32 {
    match elem {
        Elem::F32 => value,
        Elem::F16 => f16::from_f32(value).to_f32(),
        Elem::Bf16 => bf16::from_f32(value).to_f32(),
    }
}

/// Elements rounded to nearest even. Where one of them is finite and beyond the new type: its index and value.
pub fn rounded(bytes: &TensorBytes, from: Elem, to: Elem) -> std::result::Result<TensorBytes, (usize, f32)> {
    /// Elements of a piece of work.
    const PIECE: usize = 1 << 16;
    if from == to {
        return Ok(bytes.clone());
    }
    let (old, new) = (from.size(), to.size());
    let mut out = vec![0u8; bytes.len() / old * new];
    let piece = |(i, (out, bytes)): (usize, (&mut [u8], &[u8]))| {
        for (j, (out, bytes)) in out.chunks_exact_mut(new).zip(bytes.chunks_exact(old)).enumerate() {
            let value = value(bytes, from);
            let stays = match to {
                Elem::F32 => {
                    out.copy_from_slice(&value.to_le_bytes());
                    true
                }
                Elem::Bf16 => {
                    let new = bf16::from_f32(value);
                    out.copy_from_slice(&new.to_le_bytes());
                    new.is_finite()
                }
                Elem::F16 => {
                    let new = f16::from_f32(value);
                    out.copy_from_slice(&new.to_le_bytes());
                    new.is_finite()
                }
            };
            if value.is_finite() && !stays {
                return Some((i * PIECE + j, value));
            }
        }
        None
    };
    let pieces = out.par_chunks_mut(PIECE * new).zip(bytes.par_chunks(PIECE * old)).enumerate();
    if let Some(beyond) = pieces.filter_map(piece).min_by_key(|(i, _)| *i) {
        return Err(beyond);
    }
    let len = out.len();
    Ok(TensorBytes::new(Arc::new(out), 0..len).unwrap_or_else(|| bytes.clone()))
}

/// One element in f32; zero where there are too few bytes.
pub(crate) fn value(bytes: &[u8], elem: Elem) -> f32 {
    match (elem, bytes) {
        (Elem::F32, [a, b, c, d]) => f32::from_le_bytes([*a, *b, *c, *d]),
        (Elem::Bf16, [a, b]) => bf16::from_le_bytes([*a, *b]).to_f32(),
        (Elem::F16, [a, b]) => f16::from_le_bytes([*a, *b]).to_f32(),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tensor(elem: Elem) -> CheckpointTensor {
        use safetensors::tensor::Dtype as Stored;
        let stored = match elem {
            Elem::F32 => Stored::F32,
            Elem::F16 => Stored::F16,
            Elem::Bf16 => Stored::BF16,
        };
        CheckpointTensor::new("w", stored, vec![0], TensorBytes::new(Arc::new(Vec::new()), 0..0).unwrap())
    }

    #[test]
    fn the_first_load_and_the_config_span_what_may_come() {
        let config = |elem| OfConfig { elem, fp8: false };
        let span = |first, elem, exact, buffer| {
            let Span { least, most } = Span::new(&tensor(first), config(elem), exact, buffer);
            (least, most)
        };
        use Elem::{Bf16, F16, F32};
        assert_eq!(span(Bf16, Some(Bf16), false, false), (Dtype::Bf16, Bf16));
        assert_eq!(span(Bf16, None, false, false), (Dtype::Bf16, Bf16));
        assert_eq!(span(Bf16, Some(F32), false, false), (Dtype::Bf16, F32));
        assert_eq!(span(F32, Some(Bf16), false, false), (Dtype::Bf16, F32));
        assert_eq!(span(F32, Some(Bf16), true, false), (Dtype::F32, F32), "a router");
        assert_eq!(span(Bf16, Some(Bf16), true, true), (Dtype::Bf16, F32), "a buffer");
        assert_eq!(span(F16, None, true, false), (Dtype::F16, F16));
        let fp8 = OfConfig { elem: Some(Bf16), fp8: true };
        assert_eq!(Span::new(&tensor(Bf16), fp8, false, false).least, Dtype::F8E4m3);
        assert_eq!(Span::new(&tensor(Bf16), fp8, true, false).least, Dtype::Bf16);
    }

    #[test]
    fn config_names_a_type_in_either_field() {
        let read = |fields: &str| {
            OfConfig::read(&RawConfig::parse(&format!(r#"{{"model_type":"llama"{fields}}}"#)).unwrap(), false).elem
        };
        assert_eq!(read(""), None);
        assert_eq!(read(r#","torch_dtype":"float16""#), Some(Elem::F16));
        assert_eq!(read(r#","torch_dtype":"float16","dtype":"torch.bfloat16""#), Some(Elem::Bf16));
        assert_eq!(read(r#","dtype":null,"torch_dtype":"float32""#), Some(Elem::F32));
        assert_eq!(read(r#","torch_dtype":"auto""#), None);
    }

    #[test]
    fn values_are_rounded_to_nearest_even_and_never_to_infinity() {
        let bytes = |values: &[f32]| {
            let all: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let len = all.len();
            TensorBytes::new(Arc::new(all), 0..len).unwrap()
        };
        let tie = f32::from_bits(0x3f80_8000);
        let got = rounded(&bytes(&[1.0, tie, -0.0, f32::INFINITY]), Elem::F32, Elem::Bf16).unwrap();
        assert_eq!(got[..], [0x80, 0x3f, 0x80, 0x3f, 0, 0x80, 0x80, 0x7f]);
        assert_eq!(rounded(&bytes(&[1.0, f32::MAX]), Elem::F32, Elem::Bf16).unwrap_err(), (1, f32::MAX));
        assert_eq!(rounded(&bytes(&[65520.0]), Elem::F32, Elem::F16).unwrap_err(), (0, 65520.0));
        let halves = rounded(&bytes(&[0.1]), Elem::F32, Elem::F16).unwrap();
        let back = rounded(&halves, Elem::F16, Elem::F32).unwrap();
        assert_eq!(value(&back, Elem::F32), f16::from_f32(0.1).to_f32());
        assert_eq!(rounded(&halves, Elem::F16, Elem::F16).unwrap()[..], halves[..]);
    }
}
