//! What a trainer says about the bytes that it sends.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{BodyError, malformed, pickle};

/// Most tensors of one request.
const MAX_TENSORS: usize = 200_000;

/// One tensor, or a part of one, in a bucket of bytes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
pub struct BucketEntry {
    /// Name of the tensor; not needed where the bucket is a map by name.
    #[serde(default)]
    pub name: String,
    /// Element type: `bfloat16`, `torch.bfloat16`, `BF16`, …
    pub dtype: String,
    /// Dimensions of the whole tensor.
    pub shape: Vec<usize>,
    /// The first byte within the bucket.
    pub offset: usize,
    /// Bytes in the bucket; all of the tensor if absent.
    #[serde(default)]
    pub nbytes: Option<usize>,
    /// The first byte within the tensor, for a part of one.
    #[serde(default)]
    pub tensor_offset: usize,
}

/// verl's `bucket_meta`: a list, or a map by name.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum BucketMeta {
    /// In any order.
    List(Vec<BucketEntry>),
    /// By name.
    Map(BTreeMap<String, BucketEntry>),
}

impl BucketMeta {
    /// The entries, each with its name.
    pub fn entries(self) -> Result<Vec<BucketEntry>, BodyError> {
        let entries = match self {
            Self::List(list) => list,
            Self::Map(map) => map.into_iter().map(|(name, entry)| BucketEntry { name, ..entry }).collect(),
        };
        bounded("bucket_meta", entries.len())?;
        if let Some(i) = entries.iter().position(|e| e.name.is_empty()) {
            return Err(malformed(format!("entry {i} of bucket_meta"), "it has no name", "name every tensor"));
        }
        Ok(entries)
    }
}

/// vLLM's `update_info`, without the transports that need a GPU or a pickle.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct UpdateInfo {
    /// Names of the tensors, in the order of their bytes.
    #[serde(default)]
    pub names: Vec<String>,
    /// Element types.
    #[serde(default, alias = "dtypes")]
    pub dtype_names: Vec<String>,
    /// Dimensions.
    #[serde(default)]
    pub shapes: Vec<Vec<usize>>,
    /// Bytes (or elements) of each tensor; checked where given.
    #[serde(default)]
    pub tensor_sizes: Option<Vec<usize>>,
    /// Where each tensor begins; one after the other if absent.
    #[serde(default)]
    pub offsets: Option<Vec<usize>>,
    /// vLLM packs tensors into one buffer; here they always are.
    #[serde(default)]
    pub packed: Option<bool>,
    /// verl's form, in place of names, dtypes and shapes.
    #[serde(default)]
    pub bucket_meta: Option<BucketMeta>,
    /// Base64 of the raw bytes that the lists describe.
    #[serde(default)]
    pub data: Option<String>,
    /// Base64 of safetensors bytes; needs no lists.
    #[serde(default)]
    pub safetensors: Option<String>,
    /// A file or folder inside a `--root`. With lists: the raw bytes that they describe.
    #[serde(default)]
    pub path: Option<String>,
    /// False where only a part of the tensors comes, and the rest stays as it is. Also beside `update_info`.
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    pub complete: Option<Value>,
    /// What the names become: {FROM: TO}. Also beside `update_info`.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub rename: Option<Value>,
}

impl UpdateInfo {
    /// From JSON: one, or a list of them (vLLM sends one per rank or per bucket).
    pub fn all(value: Value) -> Result<Vec<Self>, BodyError> {
        let values = match value {
            Value::Array(list) => list,
            other => vec![other],
        };
        values.into_iter().map(Self::one).collect()
    }

    fn one(value: Value) -> Result<Self, BodyError> {
        pickle::refuse_fields(&value)?;
        let info: Self = serde_json::from_value(value).map_err(|e| {
            let next = "give {names, dtype_names, shapes} or {bucket_meta}, and the bytes as the body or as `data`; or {safetensors}, or {path}";
            malformed("update_info", e.to_string(), next)
        })?;
        bounded("names", info.names.len())?;
        for (field, n) in [("dtype_names", info.dtype_names.len()), ("shapes", info.shapes.len())] {
            if n != info.names.len() {
                let why = format!("{n} {field} for {} names", info.names.len());
                return Err(malformed("update_info", why, "give one of each for each tensor"));
            }
        }
        Ok(info)
    }

    /// Whether it says where tensors stand in raw bytes.
    pub fn describes(&self) -> bool {
        !self.names.is_empty() || self.bucket_meta.is_some()
    }
}

fn bounded(what: &str, n: usize) -> Result<(), BodyError> {
    if n <= MAX_TENSORS {
        return Ok(());
    }
    Err(malformed(what, format!("{n} tensors; a request has at most {MAX_TENSORS}"), "send them in several requests"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn one_or_many() {
        let one = json!({"names": ["w"], "dtype_names": ["bfloat16"], "shapes": [[2, 3]], "packed": true});
        assert_eq!(UpdateInfo::all(one.clone()).unwrap().len(), 1);
        assert_eq!(UpdateInfo::all(json!([one, one])).unwrap().len(), 2);
    }

    #[test]
    fn pickles_and_handles_are_refused_by_name() {
        for field in pickle::FIELDS {
            let error = UpdateInfo::all(json!({ field: ["gASV"] })).unwrap_err();
            assert!(matches!(error, BodyError::Pickle(r) if r.what.contains(field)));
        }
        assert!(UpdateInfo::all(json!({"ipc_handles": null})).is_ok());
    }

    #[test]
    fn lists_must_agree() {
        for bad in [
            json!({"names": ["w"]}),
            json!({"names": ["w"], "dtype_names": ["bf16"], "shapes": []}),
            json!({"names": "w"}),
            json!({"shapes": [[-1]]}),
            json!(7),
            json!({"names": ["w"], "dtype_names": ["bf16"], "shapes": [[18446744073709551616.0]]}),
        ] {
            assert!(matches!(UpdateInfo::all(bad.clone()), Err(BodyError::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn a_bucket_is_a_list_or_a_map() {
        let entry = json!({"dtype": "torch.bfloat16", "shape": [2], "offset": 4});
        let map: BucketMeta = serde_json::from_value(json!({ "w": entry })).unwrap();
        assert_eq!(map.entries().unwrap()[0].name, "w");
        let list: BucketMeta = serde_json::from_value(json!([entry])).unwrap();
        assert!(list.entries().is_err(), "no name");
    }
}
