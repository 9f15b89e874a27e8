//! Tensors that are not loaded because they say again what the model has from elsewhere: they are compared with it, whoever
//! ignores them. A head that differs from the embedding to which config.json ties it is another model, and refused.

use rayon::prelude::*;
use serde_json::{Map, Value};

use crate::checkpoint::{Checkpoint, CheckpointTensor};
use crate::error::{Refusal, Result, RuntimeError};
use crate::fp8;
use crate::hooks::Elem;
use crate::plan::{Action, Dest};
use crate::refit::{Setup, declared};
use crate::registry::{ParamId, Spare};

/// What is done with a head of its own in a checkpoint whose config.json ties the head to the embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TiedHead {
    /// It is refused where it differs from the embedding.
    #[default]
    Refuse,
    /// The model is not tied: the checkpoint's head is used, and must be there.
    File,
    /// The embedding is used, whatever the checkpoint's head is.
    Embedding,
}

/// The text of a config.json that does not tie the head, wherever its family reads that. What is no JSON object stays as it is.
pub(crate) fn untied(config: &str) -> String {
    let Ok(Value::Object(mut root)) = serde_json::from_str(config) else { return config.to_string() };
    let untie = |fields: &mut Map<String, Value>| fields.insert("tie_word_embeddings".into(), Value::Bool(false));
    if let Some(Value::Object(text)) = root.get_mut("text_config") {
        untie(text);
    }
    untie(&mut root);
    Value::Object(root).to_string()
}

/// Compares every ignored tensor that repeats something with what it repeats; says what is worth knowing.
pub(crate) fn check(setup: &Setup<'_>, checkpoint: &Checkpoint, actions: &mut [Action]) -> Result<Vec<String>> {
    let ignored =
        |(i, (tensor, action)): (usize, (_, &Action))| matches!(action, Action::Ignore(_)).then_some((i, tensor));
    let ignored: Vec<_> = checkpoint.tensors().zip(&*actions).enumerate().filter_map(ignored).collect();
    let mut notes = Vec::new();
    for (i, tensor) in ignored {
        let note = match setup.registry.spare(&tensor.name) {
            Some(Spare::TiedHead(embed)) => {
                let Some((source, dest)) = writer(checkpoint, actions, embed) else { continue };
                tied(setup, tensor, source, &dest)?
            }
            Some(Spare::Frequencies(known)) => other_frequencies(tensor, known)?,
            Some(Spare::Outside(_) | Spare::CacheScale | Spare::ActivationScale) | None => None,
        };
        let (Some(note), Some(Action::Ignore(reason))) = (note, actions.get_mut(i)) else { continue };
        reason.push_str("; ");
        reason.push_str(&note);
        notes.push(format!("tensor `{}` is ignored: {reason}", tensor.name));
    }
    notes.extend(scales(setup, checkpoint, actions));
    Ok(notes)
}

/// One line for each kind of scale that is not used.
fn scales(setup: &Setup<'_>, checkpoint: &Checkpoint, actions: &[Action]) -> Vec<String> {
    let mut kinds: Vec<(&'static str, &str, usize)> = Vec::new();
    for (tensor, action) in checkpoint.tensors().zip(actions) {
        if !matches!(action, Action::Ignore(_)) {
            continue;
        }
        let Some(reason) = setup.registry.spare(&tensor.name).and_then(|spare| spare.of_scale()) else { continue };
        match kinds.iter_mut().find(|(known, ..)| *known == reason) {
            Some((_, _, count)) => *count += 1,
            None => kinds.push((reason, &tensor.name, 1)),
        }
    }
    let said = |(reason, first, count): (&str, &str, usize)| match count {
        1 => format!("tensor `{first}` is ignored: {reason}"),
        _ => format!("{count} tensors, the first of them `{first}`, are ignored: {reason}"),
    };
    kinds.into_iter().map(said).collect()
}

/// The checkpoint tensor that writes a runtime tensor of one part.
fn writer<'c>(checkpoint: &'c Checkpoint, actions: &[Action], param: ParamId) -> Option<(&'c CheckpointTensor, Dest)> {
    checkpoint.tensors().zip(actions).find_map(|(tensor, action)| match action {
        Action::Load { dests, .. } => dests.iter().find(|d| d.param == param).map(|d| (tensor, *d)),
        Action::Ignore(_) | Action::Elsewhere(_) => None,
    })
}

/// A head must be the embedding that it is tied to.
fn tied(setup: &Setup<'_>, head: &CheckpointTensor, embed: &CheckpointTensor, dest: &Dest) -> Result<Option<String>> {
    let Some(why) = difference(setup, head, embed, dest)? else { return Ok(None) };
    let why = format!("it differs from `{}`: {why}", embed.name);
    if setup.tied_head == TiedHead::Embedding {
        return Ok(Some(format!("{why}; the embedding is used, as --tied-head says")));
    }
    Err(RuntimeError::Refit(Refusal::new(
        format!("tensor `{}`", head.name),
        format!("{why}; but config.json says that they are one (`tie_word_embeddings`)"),
        "to use this head, as transformers does, set `tie_word_embeddings` to false in config.json or start with \
         --tied-head file; to use the embedding, leave the head out or start with --tied-head embedding",
    )))
}

/// The first element that differs in the less precise of both types and in the one that is stored, or what else is not the
/// same.
fn difference(
    setup: &Setup<'_>,
    head: &CheckpointTensor,
    embed: &CheckpointTensor,
    dest: &Dest,
) -> Result<Option<String>> {
    if head.shape != embed.shape {
        return Ok(Some(format!("its shape is {:?}, not {:?}", head.shape, embed.shape)));
    }
    if head.stored == embed.stored && head.scale.is_none() && head.data.load()?[..] == embed.data.load()?[..] {
        return Ok(None);
    }
    let (head, embed) = (fp8::dequantized(head)?, fp8::dequantized(embed)?);
    let (Some(a), Some(b)) = (head.elem(), embed.elem()) else {
        return Ok(Some(format!("it is stored as {:?}, not {:?}", head.stored, embed.stored)));
    };
    let (head_bytes, embed_bytes) = (head.data.load()?, embed.data.load()?);
    let common = declared::least_precise(a, b);
    let stored = declared::least_precise(common, setup.stored(dest, b));
    let at = |i: usize, to: Elem| {
        let of = |bytes: &[u8], elem: Elem| {
            let bytes = bytes.get(i * elem.size()..(i + 1) * elem.size()).unwrap_or_default();
            declared::in_type(declared::value(bytes, elem), to)
        };
        (of(&head_bytes, a), of(&embed_bytes, b))
    };
    let same = |(x, y): (f32, f32)| x == y || (x.is_nan() && y.is_nan());
    let differs = |i: &usize| !same(at(*i, common)) && !same(at(*i, stored));
    let elements = head.shape.iter().product::<usize>();
    let first = (0..elements).into_par_iter().with_min_len(1 << 14).find_first(differs);
    Ok(first.map(|i| {
        let ((x, y), cols) = (at(i, common), head.shape.last().copied().unwrap_or(1).max(1));
        format!("the first value is at [{}, {}], where it is {x} and not {y}", i / cols, i % cols)
    }))
}

/// How rotary frequencies differ from those of config.json. Files have them before or after they were stretched, in any type,
/// so that they are compared in the precision of bf16. They are never used (transformers does not use them either), so this is
/// said and not refused.
fn other_frequencies(tensor: &CheckpointTensor, known: &[Vec<f32>; 2]) -> Result<Option<String>> {
    let Some(of_config) = known.last() else { return Ok(None) };
    let Some(elem) = tensor.elem() else { return Ok(Some(format!("it is stored as {:?}", tensor.stored))) };
    let values: Vec<f32> = tensor.data.load()?.chunks_exact(elem.size()).map(|b| declared::value(b, elem)).collect();
    if values.len() != of_config.len() {
        return Ok(Some(format!("it has {} values, config.json gives {}", values.len(), of_config.len())));
    }
    let near = |a: f32, b: f32| (a - b).abs() <= 0.01 * b.abs() + 1e-7;
    let odd = |known: &Vec<f32>| values.iter().zip(known).position(|(a, b)| !near(*a, *b));
    let Some(odd) = known.iter().map(odd).collect::<Option<Vec<usize>>>() else { return Ok(None) };
    let values = odd.last().and_then(|at| Some((at, values.get(*at)?, of_config.get(*at)?)));
    Ok(values.map(|(at, is, gives)| {
        format!("its value at [{at}] is {is}, config.json gives {gives}: check `rope_theta` and `rope_scaling`")
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::RawConfig;

    #[test]
    fn a_config_is_untied_wherever_its_family_reads_it() {
        for config in [
            r#"{ "model_type": "x", "eps": 1e-06, "tie_word_embeddings" : true}"#,
            r#"{"model_type":"x"}"#,
            r#"{"model_type":"x","tie_word_embeddings":null}"#,
            r#"{"model_type":"x","tie_word_embeddings":false}"#,
            r#"{"model_type":"x","text_config":{"tie_word_embeddings":true}}"#,
            r#"{"model_type":"x","text_config":{}}"#,
            r#"{"model_type":"x","tie_word_embeddings":true,"text_config":{"tie_word_embeddings":true}}"#,
        ] {
            let made = untied(config);
            assert!(!RawConfig::parse(&made).unwrap().flag("tie_word_embeddings").unwrap(), "{made}");
        }
        assert_eq!(untied("[1"), "[1");
        assert_eq!(untied(r#"{"eps":1e-6,"a":"\"tie_word_embeddings\": true"}"#).matches("true").count(), 1);
    }
}
