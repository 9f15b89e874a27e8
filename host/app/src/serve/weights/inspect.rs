//! Looking at the live weights: checksums and values by name, and what the weight checkers of vLLM and SGLang do.

use std::collections::BTreeMap;

use patchhost_runtime::engine::Engine;
use patchhost_runtime::weights::{Part, WeightSet};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::base::text::clean;
use crate::serve::error::{ApiError, ApiResult};

/// Most values of one answer.
const MOST_VALUES: usize = 4 << 20;

/// What the weight checker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Give the SHA-256 of every tensor.
    Checksum,
    /// Remember the checksums as they are now, to compare with later.
    #[serde(alias = "snapshot", alias = "reset_tensors")]
    Reset,
    /// Compare the checksums with the baseline.
    Compare,
}

/// What the weight checker found.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Checked {
    /// SHA-256 of every runtime tensor as it lies in memory, scales included.
    Checksums {
        /// By name.
        checksums: BTreeMap<String, String>,
        /// One digest of all weights.
        digest: String,
    },
    /// The baseline is set.
    Status {
        /// `reset`.
        status: &'static str,
    },
    /// The comparison.
    Compared {
        /// Whether all are equal.
        r#match: bool,
        /// Names of those that are not.
        mismatches: Vec<String>,
    },
}

/// SHA-256 of every runtime tensor as it lies in memory, scales included, by name.
pub fn checksums(engine: &Engine, weights: &WeightSet) -> BTreeMap<String, String> {
    weights.digests(engine.registry()).into_iter().map(|d| (d.name, d.sha256_runtime)).collect()
}

/// Names whose checksums differ, or that only one side has.
pub fn differences(now: &BTreeMap<String, String>, baseline: &BTreeMap<String, String>) -> Vec<String> {
    let mut names: Vec<String> = now
        .iter()
        .filter(|(name, sum)| !baseline.get(*name).is_some_and(|b| b.eq_ignore_ascii_case(sum)))
        .map(|(name, _)| name.clone())
        .collect();
    names.extend(baseline.keys().filter(|name| !now.contains_key(*name)).map(|name| clean(name, 200)));
    names.sort();
    names
}

/// The values of a tensor as nested lists, by its name in the checkpoint or in the runtime, FP8 widened; only the first
/// `truncate` entries of the first dimension.
pub fn values(engine: &Engine, weights: &WeightSet, name: &str, truncate: usize) -> ApiResult<Value> {
    let registry = engine.registry();
    let place = registry.native(name).or_else(|| registry.expert_names(name));
    let (parts, shape) = match (place, registry.find(name)) {
        (Some(place), _) => {
            let decl = &registry.params()[place.param];
            let index = decl.part_index(place.expert.unwrap_or(0), place.slot);
            let part = index.and_then(|i| weights.checkpoint_parts(place.param).into_iter().nth(i));
            let part = part.ok_or_else(|| missing(engine, name))?;
            let shape = decl.cols.map_or_else(|| vec![part.rows], |cols| vec![part.rows, cols]);
            (vec![part], shape)
        }
        (None, Some(param)) => (weights.checkpoint_parts(param), registry.params()[param].shape()),
        (None, None) => return Err(missing(engine, name)),
    };
    nested(&parts, &shape, truncate)
}

/// The rows of all parts, one after the other: the first `truncate` of them, as nested lists of the given shape.
fn nested(parts: &[Part], shape: &[usize], truncate: usize) -> ApiResult<Value> {
    let first = shape.first().copied().unwrap_or(1).min(truncate);
    let inner: usize = shape.iter().skip(1).product();
    let wanted = first.saturating_mul(inner);
    if wanted > MOST_VALUES {
        return Err(ApiError::bad(
            "`truncate_size`",
            format!("{first} of the tensor's {shape:?} are {wanted} values; an answer has at most {MOST_VALUES}"),
            "give a smaller truncate_size",
        )
        .param("truncate_size"));
    }
    let mut values: Vec<f32> = Vec::with_capacity(wanted);
    'parts: for part in parts {
        // A vector's part is one row of its length.
        let (rows, cols) = if shape.len() == 1 { (1, part.rows) } else { (part.rows, part.cols) };
        let mut row = vec![0.0; cols];
        for r in 0..rows {
            if values.len() >= wanted {
                break 'parts;
            }
            part.matrix.row(r, cols, &mut row);
            values.extend_from_slice(&row);
        }
    }
    values.truncate(wanted);
    let mut dims = shape.to_vec();
    if let Some(d) = dims.first_mut() {
        *d = first;
    }
    Ok(fold(&values, &dims))
}

fn fold(values: &[f32], dims: &[usize]) -> Value {
    match dims {
        [] => values.first().map_or(Value::Null, |v| number(*v)),
        [_] => Value::Array(values.iter().map(|v| number(*v)).collect()),
        [n, rest @ ..] => {
            let each = rest.iter().product::<usize>().max(1);
            Value::Array(values.chunks(each).take(*n).map(|part| fold(part, rest)).collect())
        }
    }
}

fn number(value: f32) -> Value {
    // Weights are finite: a refit with others was refused.
    serde_json::Number::from_f64(f64::from(value)).map_or(Value::Null, Value::Number)
}

fn missing(engine: &Engine, name: &str) -> ApiError {
    let registry = engine.registry();
    let known = registry.checkpoint_names().chain(registry.params().iter().map(|p| p.name.as_str()));
    let near = patchhost_runtime::words::nearest(name, known);
    let hint = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
    ApiError::not_found(
        format!("tensor `{}`", clean(name, 200)),
        format!("the model has no tensor of this name, as the checkpoint or as the runtime calls it{hint}"),
        "see POST /weight_checker {\"action\": \"checksum\"} for the names of the runtime",
    )
    .param("name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_folded_and_cut() {
        let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
        assert_eq!(fold(&values, &[2, 2, 3])[1][0], serde_json::json!([6.0, 7.0, 8.0]));
        assert_eq!(fold(&values[..6], &[2, 3]), serde_json::json!([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]));
        assert_eq!(fold(&[], &[0, 3]), serde_json::json!([]));
    }

    #[test]
    fn differences_are_named() {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let now: BTreeMap<String, String> = map(&[("a", "1f"), ("b", "2"), ("c", "3")]);
        assert_eq!(differences(&now, &map(&[("a", "1F"), ("b", "9"), ("d", "4")])), ["b", "c", "d"]);
    }
}
