//! One sequence in SGLang's form: text, tokens and `meta_info`.

use patchhost_runtime::scheduler::{FinishReason, StopReason, TokenLogprob};
use patchhost_runtime::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use crate::serve::ask::{Output, number, weight_versions};

/// What an answer needs to know of the request.
#[derive(Debug, Clone)]
pub struct About {
    /// Id of the request.
    pub id: String,
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Most tokens that were asked for.
    pub max_new_tokens: usize,
    /// Log probabilities were asked for.
    pub return_logprob: bool,
    /// The first position of the prompt whose log probability is given; none: none is.
    pub logprob_start: Option<usize>,
    /// How many of the best tokens are given at each place.
    pub top: usize,
    /// Tokens by id were asked for.
    pub by_id: bool,
    /// Texts beside token ids.
    pub texts: bool,
    /// What the log probabilities of the answer are. Those of the prompt are always the model's own, as SGLang has it.
    pub logprobs_mode: &'static str,
    /// What the live weights are called.
    pub weight_version: String,
}

/// The answer for one sequence, whole or so far.
pub fn answer(about: &About, output: &Output, finished: bool, tokenizer: &Tokenizer, seconds: f64) -> Value {
    let mut meta = Map::new();
    meta.insert("id".into(), json!(about.id));
    let reason = if finished { finish_reason(about, output) } else { Value::Null };
    meta.insert("finish_reason".into(), reason);
    meta.insert("prompt_tokens".into(), json!(about.prompt.len()));
    // Of the last token: a request that was kept over an update has several.
    let last = output.weight_versions.last();
    let version = last.map_or_else(|| about.weight_version.clone(), |v| v.version.clone());
    meta.insert("weight_version".into(), json!(version));
    meta.insert("weight_versions".into(), json!(weight_versions(&output.weight_versions)));
    meta.insert("completion_tokens".into(), json!(output.token_ids.len()));
    meta.insert("cached_tokens".into(), json!(output.cached_tokens));
    meta.insert("e2e_latency".into(), json!(seconds));
    if about.return_logprob {
        let writer = Writer { tokenizer, texts: about.texts };
        meta.insert("logprobs_mode".into(), json!(about.logprobs_mode));
        let out = &output.logprobs;
        meta.insert("output_token_logprobs".into(), out.iter().map(|l| writer.own(l)).collect());
        if about.top > 0 {
            meta.insert("output_top_logprobs".into(), out.iter().map(|l| writer.list(&l.top)).collect());
        }
        if about.by_id {
            meta.insert("output_token_ids_logprobs".into(), out.iter().map(|l| writer.list(&l.extra)).collect());
        }
        let prompt = input(about, output);
        let first = |id: u32| json!([null, id, writer.text(id)]);
        meta.insert(
            "input_token_logprobs".into(),
            prompt.iter().map(|(id, l)| l.map_or_else(|| first(*id), |l| writer.own(l))).collect(),
        );
        if about.top > 0 {
            let top = |l: &Option<&TokenLogprob>| l.map_or(Value::Null, |l| writer.list(&l.top));
            meta.insert("input_top_logprobs".into(), prompt.iter().map(|(_, l)| top(l)).collect());
        }
        if about.by_id {
            let extra = |l: &Option<&TokenLogprob>| l.map_or(Value::Null, |l| writer.list(&l.extra));
            meta.insert("input_token_ids_logprobs".into(), prompt.iter().map(|(_, l)| extra(l)).collect());
        }
    }
    json!({ "text": output.text, "output_ids": output.token_ids, "meta_info": meta })
}

/// The prompt's tokens from the first that is wanted, each with its log probability if it has one.
fn input<'a>(about: &'a About, output: &'a Output) -> Vec<(u32, Option<&'a TokenLogprob>)> {
    let (Some(start), Some(all)) = (about.logprob_start, &output.prompt_logprobs) else { return Vec::new() };
    let entry = |(i, id): (usize, &u32)| (*id, all.get(i).and_then(Option::as_ref));
    about.prompt.iter().enumerate().skip(start).map(entry).collect()
}

fn finish_reason(about: &About, output: &Output) -> Value {
    match output.finish_reason {
        FinishReason::Stop => json!({ "type": "stop", "matched": match &output.stop_reason {
            Some(StopReason::Text(text)) => json!(text),
            Some(StopReason::Token(id)) => json!(id),
            // The model's own end token.
            None => output.token_ids.last().map_or(Value::Null, |id| json!(id)),
        } }),
        FinishReason::Length => json!({ "type": "length", "length": about.max_new_tokens }),
        FinishReason::Abort => json!({ "type": "abort", "message": "Aborted" }),
        FinishReason::Error => json!({ "type": "abort", "message": "Failed" }),
    }
}

struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    texts: bool,
}

impl Writer<'_> {
    fn text(&self, id: u32) -> Option<String> {
        self.texts.then(|| self.tokenizer.decode_all(&[id]).unwrap_or_default())
    }

    fn one(&self, id: u32, logprob: f32) -> Value {
        json!([number(logprob), id, self.text(id)])
    }

    fn own(&self, l: &TokenLogprob) -> Value {
        self.one(l.token_id, l.logprob)
    }

    fn list(&self, all: &[(u32, f32)]) -> Value {
        all.iter().map(|(id, logprob)| self.one(*id, *logprob)).collect()
    }
}
