//! Which tokens end a text. Three files may say it, and fine-tunes often change one of them only: a base model's
//! generation_config.json names `<|endoftext|>`, the tokenizer of its chat fine-tune `<|im_end|>`. A text ends at any token
//! that any of them names.
//!
//! What a file says is judged by one rule. A number or a list of numbers is a token or several; nothing, `null` and an empty
//! list are none. A negative number (some exporters write -1 for "none") and an id that the model does not have name no token:
//! they are left out with a warning, as transformers does. Anything else is refused.

use serde_json::Value;
use tokenizers::Tokenizer as HfTokenizer;

use crate::error::{Refusal, Result, RuntimeError};

/// The tokens of all sources: `texts` are the tokenizer's own, `generation` and `model` what generation_config.json and
/// config.json say.
pub(super) fn union(
    tokenizer: &HfTokenizer,
    texts: impl Iterator<Item = String>,
    generation: &Value,
    model: &Value,
) -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for text in texts {
        match tokenizer.token_to_id(&text) {
            Some(id) => all.push(id),
            None => {
                let token = crate::words::shown(&text);
                tracing::warn!(%token, "the tokenizer's eos_token is not in its vocabulary; it ends no text");
            }
        }
    }
    let text_model = &model["text_config"];
    let rows = [model, text_model].into_iter().filter_map(|config| config["vocab_size"].as_u64()).max().unwrap_or(0);
    let exists = |id: u32| {
        u64::from(id) < rows || (id as usize) < tokenizer.get_vocab_size(true) || tokenizer.id_to_token(id).is_some()
    };
    for (place, value) in [
        ("`eos_token_id` of generation_config.json", &generation["eos_token_id"]),
        ("`eos_token_id` of config.json", &model["eos_token_id"]),
        ("`text_config.eos_token_id` of config.json", &text_model["eos_token_id"]),
    ] {
        let values = match value {
            Value::Null => continue,
            Value::Array(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in values {
            match token(place, value)?.filter(|id| exists(*id)) {
                Some(id) => all.push(id),
                None => tracing::warn!(%place, id = %value, "this end token does not exist; it ends no text"),
            }
        }
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// The token that a number names; none where no model has it.
fn token(place: &str, value: &Value) -> Result<Option<u32>> {
    match (value.as_u64(), value.as_i64()) {
        (Some(id), _) => Ok(u32::try_from(id).ok()),
        (None, Some(_)) => Ok(None),
        (None, None) => {
            let shown = crate::words::shown(&value.to_string());
            let why = format!("it says {shown}, which is not the id of a token");
            let next = "give the id of the token that ends a text, or a list of them, or remove it";
            Err(RuntimeError::Tokenizer(Refusal::new(place, why, next)))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use crate::tokenizer::{Tokenizer, TokenizerFiles};

    /// Eight words, one of them special and none of the vocabulary proper.
    fn tokenizer_json() -> String {
        let vocabulary: serde_json::Map<String, Value> = ["a", "b", "c", "d", "e", "f", "[unk]"]
            .iter()
            .enumerate()
            .map(|(i, w)| (w.to_string(), json!(i)))
            .collect();
        let end = json!({ "id": 7, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true });
        json!({ "version": "1.0", "added_tokens": [end], "normalizer": null, "pre_tokenizer": { "type": "Whitespace" },
            "post_processor": null, "decoder": null,
            "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[unk]" } })
        .to_string()
    }

    fn files(config: Value, map: Value, generation: Value, model: Value) -> TokenizerFiles {
        let text = |value: Value| (!value.is_null()).then(|| value.to_string());
        TokenizerFiles {
            tokenizer: tokenizer_json(),
            config: text(config),
            special_tokens: text(map),
            generation: text(generation),
            model: text(model),
            ..TokenizerFiles::default()
        }
    }

    fn ends(config: Value, map: Value, generation: Value, model: Value) -> Vec<u32> {
        Tokenizer::new(&files(config, map, generation, model)).unwrap().eos().to_vec()
    }

    fn id(value: Value) -> Value {
        json!({ "eos_token_id": value })
    }

    #[test]
    fn every_source_alone_ends_a_text() {
        let none = || Value::Null;
        assert_eq!(ends(none(), none(), none(), none()), [] as [u32; 0]);
        for token in [json!("<end>"), json!({ "content": "<end>", "lstrip": false })] {
            assert_eq!(ends(json!({ "eos_token": token }), none(), none(), none()), [7]);
            assert_eq!(ends(none(), json!({ "eos_token": token }), none(), none()), [7]);
        }
        for (value, expected) in
            [(json!(3), vec![3]), (json!([3, 1, 3]), vec![1, 3]), (json!([]), vec![]), (json!(null), vec![])]
        {
            assert_eq!(ends(none(), none(), id(value.clone()), none()), expected);
            assert_eq!(ends(none(), none(), none(), id(value.clone())), expected);
            assert_eq!(ends(none(), none(), none(), json!({ "text_config": id(value) })), expected);
        }
    }

    #[test]
    fn sources_that_disagree_are_all_heard() {
        let model = json!({ "eos_token_id": 3, "text_config": { "eos_token_id": [4, 5] } });
        let all = ends(json!({ "eos_token": "<end>" }), json!({ "eos_token": "a" }), id(json!([1, 2])), model);
        assert_eq!(all, [0, 1, 2, 3, 4, 5, 7]);
    }

    #[test]
    fn tokens_that_do_not_exist_end_nothing() {
        let config = json!({ "eos_token": "</s>" });
        let ids = json!([-1, 2, 4_294_967_298_u64, 1e3 as u64, i64::MIN, u64::MAX]);
        assert_eq!(ends(config, Value::Null, id(ids), Value::Null), [2], "2 + 2^32 must not become 2 either way");
        // Rows of the model that no text makes are tokens too.
        let padded = json!({ "vocab_size": 16, "eos_token_id": [12, 16] });
        assert_eq!(ends(Value::Null, Value::Null, Value::Null, padded), [12]);
        let nested = json!({ "text_config": { "vocab_size": 16, "eos_token_id": 12 } });
        assert_eq!(ends(Value::Null, Value::Null, Value::Null, nested), [12]);
    }

    #[test]
    fn what_is_no_token_is_refused_by_file() {
        for value in [json!("<end>"), json!(1.5), json!(2.0), json!(true), json!({}), json!([[1]]), json!([1, null])] {
            for (generation, model, place) in [
                (id(value.clone()), Value::Null, "`eos_token_id` of generation_config.json"),
                (Value::Null, id(value.clone()), "`eos_token_id` of config.json"),
                (Value::Null, json!({ "text_config": id(value.clone()) }), "`text_config.eos_token_id` of config.json"),
            ] {
                let error =
                    Tokenizer::new(&files(Value::Null, Value::Null, generation, model)).err().unwrap().to_string();
                assert!(
                    error.contains(place) && error.contains("\n  why: ") && error.contains("\n  next: "),
                    "{error}"
                );
            }
        }
    }
}
