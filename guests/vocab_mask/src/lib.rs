//! Keeps token ids from being sampled that no tokenizer knows: rows with which the vocabulary was padded (verl's
//! `monkey_patch_compute_logits`), and those that the user bans.

/// Generated from the WIT.
#[allow(missing_docs, unused, clippy::all)]
mod bindings {
    wit_bindgen::generate!({ path: "../../wit/patch/0.1.0", world: "mask-patch" });
}

use bindings::exports::patchhost::patch::identity::{self, Info, Target};
use bindings::exports::patchhost::patch::logits_mask::{self, Model, Range};
use kit::engines::{PATCHHOST, VLLM};
use std::sync::OnceLock;

static BANNED: OnceLock<Vec<u32>> = OnceLock::new();

struct VocabMask;

impl identity::Guest for VocabMask {
    fn describe() -> Info {
        Info {
            name: "vocab_mask".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Never samples ids that the tokenizer does not know".into(),
            reason:
                "models pad their vocabulary to a round number; a padding row that is sampled cannot be decoded and \
                     ends a training run"
                    .into(),
            upstream: Some("volcengine/verl: vllm_rollout/utils.py, monkey_patch_compute_logits".into()),
            remove_when: Some("the engine masks padding rows itself".into()),
            // vLLM has a documented place for it (logits processors); of SGLang none is known that a mask of ids could take.
            targets: [PATCHHOST, VLLM]
                .map(|(engine, versions)| Target {
                    engine: engine.into(),
                    versions: versions.into(),
                    architectures: vec![],
                })
                .into(),
        }
    }

    fn configure(settings: Vec<(String, String)>) -> Result<(), String> {
        for (key, value) in settings {
            if key != "banned" {
                return Err(format!("unknown setting `{key}`; known is: banned"));
            }
            let ids = value.split(',').map(|id| id.trim().parse()).collect::<Result<Vec<u32>, _>>();
            let ids = ids.map_err(|_| format!("banned={value}: give token ids, for example banned=151643,151644"))?;
            BANNED.set(ids).map_err(|_| "banned is given twice".to_string())?;
        }
        Ok(())
    }
}

impl logits_mask::Guest for VocabMask {
    fn masked(_: Model, rows: u32, vocabulary: u32) -> Result<Vec<Range>, String> {
        let banned = BANNED.get().map_or(&[][..], Vec::as_slice);
        if let Some(id) = banned.iter().find(|id| **id >= rows) {
            return Err(format!("banned id {id} is not below the model's {rows} rows"));
        }
        Ok(ranges(rows, vocabulary, banned).into_iter().map(|(first, end)| Range { first, end }).collect())
    }
}

/// Ascending, disjoint ranges: the banned ids and the rows from `vocabulary` on.
fn ranges(rows: u32, vocabulary: u32, banned: &[u32]) -> Vec<(u32, u32)> {
    let mut ids: Vec<(u32, u32)> = banned.iter().map(|id| (*id, id + 1)).collect();
    if vocabulary < rows {
        ids.push((vocabulary, rows));
    }
    ids.sort_unstable();
    let mut out: Vec<(u32, u32)> = Vec::new();
    for (first, end) in ids {
        match out.last_mut() {
            Some(last) if first <= last.1 => last.1 = last.1.max(end),
            _ => out.push((first, end)),
        }
    }
    out
}

bindings::export!(VocabMask with_types_in bindings);

#[cfg(test)]
mod tests {
    use super::ranges;

    #[test]
    fn padding_and_banned_ids_merge() {
        assert_eq!(ranges(128, 100, &[]), [(100, 128)]);
        assert_eq!(ranges(100, 100, &[]), []);
        assert_eq!(ranges(100, 120, &[7, 5, 6, 7]), [(5, 8)]);
        assert_eq!(ranges(128, 100, &[99, 3, 110]), [(3, 4), (99, 128)]);
    }
}
