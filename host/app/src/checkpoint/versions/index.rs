//! The index of a version: what it is, what it builds on, which file holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use patchhost_runtime::checkpoint::CheckpointTensor;
use patchhost_runtime::files;
use patchhost_runtime::size::check_index;
use serde_json::{Map, Value, json};

use super::checksum::Checksum;
use super::codec::Encoding;
use super::error::{Result, format, unreadable};
use super::version::{Version, number};
use crate::checkpoint::layout::INDEX;

/// Ends the key of a tensor's stamp in the base of a delta.
pub(super) const AT_BASE: &str = "@base";

/// Ends the key of a tensor's stamp in a full version.
pub(super) const AT_FULL: &str = "@full";

/// What an index says.
pub(super) struct Index {
    /// Its number, if it says one.
    pub version: Option<Version>,
    /// How tensors are checked.
    pub checksum: Option<Checksum>,
    /// What makes it a delta.
    pub delta: Option<(Version, Encoding)>,
    /// The names of the tensors in each file.
    pub files: BTreeMap<String, BTreeSet<String>>,
}

/// Reads the index of a folder; `None` where there is none.
pub(super) fn read(folder: &Path) -> Result<Option<Index>> {
    let path = folder.join(INDEX);
    let bad = |why: String| {
        format(format!("`{}`", path.display()), why, "publish the version again, in a form that is known here")
    };
    match files::read_text_if_any(&path, files::INDEX) {
        Ok(None) => Ok(None),
        Ok(Some(text)) => {
            let parsed = check_index(&text).and_then(|()| parse(text.as_bytes()));
            parsed.map(Some).map_err(bad)
        }
        Err(e) if e.kind() == std::io::ErrorKind::FileTooLarge => Err(bad(e.to_string())),
        Err(e) => Err(unreadable(&path, &e)),
    }
}

fn parse(text: &[u8]) -> std::result::Result<Index, String> {
    #[derive(serde::Deserialize)]
    struct Raw {
        metadata: Option<Map<String, Value>>,
        weight_map: BTreeMap<String, String>,
    }
    let raw: Raw = serde_json::from_slice(text).map_err(|e| format!("not an index of shards: {e}"))?;
    let metadata = raw.metadata.unwrap_or_default();
    let mut files: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (tensor, file) in raw.weight_map {
        if !is_file_name(&file) {
            return Err(format!(
                "it names the file `{}`; a shard must be a safetensors file in the folder of the index, not a path",
                file.escape_debug()
            ));
        }
        files.entry(file).or_default().insert(tensor);
    }
    let text = |key: &str| metadata.get(key).and_then(Value::as_str);
    let checksum = match metadata.get("checksum_format") {
        None => None,
        Some(name) => Some(name.as_str().and_then(Checksum::named).ok_or_else(|| {
            let known = Checksum::ALL.map(Checksum::name).join(", ");
            format!("checksum_format {name} cannot be computed here; known are {known}")
        })?),
    };
    if !metadata.contains_key("delta_encoding") {
        if let Some(key) = ["base_version", "compression_format"].into_iter().find(|k| metadata.contains_key(*k)) {
            return Err(format!("it has {key} like a delta, but no delta_encoding"));
        }
        return Ok(Index { version: metadata.get("version").and_then(number), checksum, delta: None, files });
    }
    let need = |key: &str| metadata.get(key).and_then(number).ok_or_else(|| format!("a delta needs {key}, a number"));
    let (version, base) = (need("version")?, need("base_version")?);
    if base >= version {
        return Err(format!("version {version} cannot build on version {base}"));
    }
    let encoding = text("delta_encoding").and_then(Encoding::named).ok_or_else(|| {
        format!("delta_encoding {} is unknown; known are xor and overwrite", metadata["delta_encoding"])
    })?;
    if text("compression_format") != Some("zstd") {
        let found = metadata.get("compression_format").unwrap_or(&Value::Null);
        return Err(format!("compression_format {found} is unknown; known is zstd"));
    }
    if checksum.is_none() {
        return Err("a delta needs checksum_format".to_string());
    }
    Ok(Index { version: Some(version), checksum, delta: Some((base, encoding)), files })
}

/// A name that cannot lead out of the folder.
fn is_file_name(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.starts_with('.') && !name.contains(['/', '\\', '\0', ':'])
}

/// The text of an index.
pub(super) fn text(metadata: Map<String, Value>, weight_map: &BTreeMap<String, String>) -> Result<String> {
    let index = json!({ "metadata": metadata, "weight_map": weight_map });
    let text = serde_json::to_string_pretty(&index);
    text.map(|t| t + "\n").map_err(|e| format("the index", e.to_string(), "please report this"))
}

/// Dtype, shape and checksum of a tensor, in one line.
pub(super) fn stamp(tensor: &CheckpointTensor, checksum: Checksum) -> Result<String> {
    Ok(stamp_of(tensor, &tensor.data.load()?, checksum))
}

/// The same of bytes that are in memory.
pub(super) fn stamp_of(tensor: &CheckpointTensor, bytes: &[u8], checksum: Checksum) -> String {
    format!("{} {}", layout(tensor), checksum.of(bytes))
}

/// Dtype and shape: `BF16[64,32]`.
pub(super) fn layout(tensor: &CheckpointTensor) -> String {
    let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
    format!("{}[{}]", tensor.stored, shape.join(","))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = r#"{"metadata": {"version": "000002", "base_version": "000001", "delta_encoding": "xor",
        "compression_format": "zstd", "checksum_format": "adler32"}, "weight_map": {"a": "m.safetensors"}}"#;

    fn why(text: &str) -> String {
        parse(text.as_bytes()).err().unwrap()
    }

    #[test]
    fn a_delta_and_a_full_index_are_told_apart() {
        let delta = parse(GOOD.as_bytes()).unwrap();
        assert_eq!(delta.delta, Some((Version(1), Encoding::Xor)));
        assert_eq!(delta.version, Some(Version(2)));
        assert!(delta.files["m.safetensors"].contains("a"));
        let numbers = GOOD.replace("\"000002\"", "2").replace("\"000001\"", "1");
        assert_eq!(parse(numbers.as_bytes()).unwrap().delta, delta.delta);
        let full = parse(br#"{"metadata": {"total_size": 4.0}, "weight_map": {}}"#).unwrap();
        assert!(full.delta.is_none() && full.version.is_none());
        assert!(parse(br#"{"metadata": null, "weight_map": {}}"#).unwrap().delta.is_none());
        assert!(parse(br#"{"weight_map": {}}"#).unwrap().delta.is_none());
    }

    #[test]
    fn what_it_cannot_be_is_said() {
        for (from, to, part) in [
            ("\"xor\"", "\"add\"", "known are xor and overwrite"),
            ("\"zstd\"", "\"lz4\"", "known is zstd"),
            ("\"adler32\"", "\"md5\"", "\"md5\" cannot be computed"),
            ("\"000001\"", "\"000002\"", "cannot build on"),
            ("\"000001\"", "\"one\"", "needs base_version"),
            ("\"delta_encoding\": \"xor\",", "", "no delta_encoding"),
            (", \"checksum_format\": \"adler32\"", "", "needs checksum_format"),
            ("m.safetensors", "../m.safetensors", "not a path"),
            ("m.safetensors", "/m.safetensors", "not a path"),
            ("m.safetensors", "..\\\\m.safetensors", "not a path"),
            ("m.safetensors", ".m.safetensors", "not a path"),
            ("m.safetensors", "m.bin", "safetensors file"),
            ("weight_map", "weights", "not an index"),
            ("{\"metadata\"", "[", "not an index"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let why = why(&GOOD.replacen(from, to, 1));
            assert!(why.contains(part), "{why}");
        }
    }
}
