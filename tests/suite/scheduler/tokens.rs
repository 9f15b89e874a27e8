//! The same tokens at any load, log-probabilities, stops, the prefix cache.

use std::time::Duration;

use patchhost_runtime::engine::Engine;
use patchhost_runtime::model::{Rows, Sequence};
use patchhost_runtime::refit::RefitHooks;
use patchhost_runtime::sampling::argmax;
use patchhost_runtime::scheduler::{
    FinishReason, LogprobsMode, PauseMode, SampleParams, SchedulerOptions, StopReason, TokenLogprob,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{FP8, PLAIN, Rig, TEXT, alone, greedy, job, listen, rig, rig_of, tight};
use crate::oracle::hooks;

/// Random jobs at random moments, each compared with `generate` alone.
fn jobs_equal_generate(rig: &Rig, prompts: impl Fn(&mut StdRng) -> Vec<u32>, most: usize, jobs: usize, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut submitted = Vec::new();
    for i in 0..jobs {
        let params = SampleParams {
            max_tokens: rng.random_range(1..most),
            temperature: [0.0, 0.7, 1.3][i % 3],
            top_k: [0, 20][rng.random_range(0..2)],
            top_p: [1.0, 0.9][rng.random_range(0..2)],
            min_p: [0.0, 0.02][rng.random_range(0..2)],
            seed: Some(rng.random()),
            ..SampleParams::default()
        };
        let prompt = prompts(&mut rng);
        let (job, receive) = job(&format!("r{i}"), &prompt, params.clone());
        rig.scheduler.submit(job).unwrap();
        submitted.push((prompt, params, receive));
        std::thread::sleep(Duration::from_micros(rng.random_range(0..20_000)));
    }
    let weights = rig.engine.live().unwrap();
    for (i, (prompt, params, receive)) in submitted.into_iter().enumerate() {
        let heard = listen(&receive);
        let expected = rig.alone(&weights, &prompt, &params);
        let mut ids = heard.ids();
        // An end token is given to clients, and left out by `generate`.
        if heard.done.finish_reason == FinishReason::Stop {
            assert!(rig.tokenizer.eos().contains(&ids.pop().unwrap()));
        }
        assert_eq!(ids, expected.token_ids, "job {i}: {params:?}");
        assert_eq!(heard.text(), expected.text, "job {i}");
        assert_eq!(heard.done.finish_reason, expected.finish_reason, "job {i}");
        assert!(heard.done.weight_versions.iter().all(|v| v.version == weights.label()));
    }
    let load = rig.scheduler.load();
    assert_eq!((load.running, load.waiting, load.finished), (0, 0, jobs as u64), "{load:?}");
}

#[test]
fn jobs_at_random_moments_get_the_tokens_of_generate() {
    for (options, seed) in [(tight(), 1), (SchedulerOptions { prefix_cache_bytes: 0, ..tight() }, 2)] {
        let rig = rig(FP8, options);
        let text = rig.encode(TEXT);
        let prompt = |rng: &mut StdRng| {
            let start = [0, 0, 3][rng.random_range(0..3)];
            text[start..rng.random_range(start + 1..text.len())].to_vec()
        };
        jobs_equal_generate(&rig, prompt, 40, 20, seed);
        let load = rig.scheduler.load();
        assert_eq!(load.prefix_hits > 0, options.prefix_cache_bytes > 0, "{load:?}");
    }
}

/// Latent attention, windows, recurrent states, and rope that depends on the length: none of them notices the load.
#[test]
fn every_kind_of_memory_gets_the_tokens_of_generate() {
    for name in ["deepseek_v3", "mixtral_window", "qwen3_next", "llama_dynamic"] {
        let tmp = crate::support::tmp();
        let folder = crate::support::copy_model(name, tmp.path());
        std::fs::remove_file(folder.join("golden.safetensors")).unwrap();
        let hooks = if name == "llama_dynamic" { RefitHooks::default() } else { hooks(PLAIN) };
        let rig = rig_of(crate::oracle::loaded(&folder, &hooks), tight());
        let most = (rig.engine.model().max_positions() / 2).min(40);
        let prompt = |rng: &mut StdRng| (0..rng.random_range(1..most) as u32).map(|i| 5 + i * 7 % 90).collect();
        jobs_equal_generate(&rig, prompt, 12, 16, 3);
    }
}

#[test]
fn samples_of_a_request_are_those_of_generate_and_share_their_prompt() {
    let rig = rig(PLAIN, SchedulerOptions::default());
    let prompt = rig.encode(TEXT);
    let params = SampleParams { max_tokens: 20, seed: Some(9), ignore_eos: true, ..SampleParams::default() };
    let (jobs, receivers): (Vec<_>, Vec<_>) = (0..4)
        .map(|index| {
            let (mut job, receive) = job("four", &prompt, params.clone());
            job.index = index;
            (job, receive)
        })
        .unzip();
    rig.scheduler.submit_all(jobs).unwrap();
    let weights = rig.engine.live().unwrap();
    let mut texts = Vec::new();
    for (index, receive) in receivers.iter().enumerate() {
        let heard = listen(receive);
        let expected = alone(&rig.engine, &weights, &rig.tokenizer, &prompt, &params, index);
        // Without `ignore_eos`, which `generate` does not have, the end would come first.
        assert!(heard.ids().starts_with(&expected.token_ids), "{index}");
        assert_eq!(heard.done.cached_tokens, if index == 0 { 0 } else { prompt.len() - 1 });
        texts.push(heard.text());
    }
    assert!(texts.windows(2).all(|t| t[0] != t[1]), "{texts:?}");
}

/// Log-softmax of every row of a sequence, in f64.
fn direct(engine: &Engine, tokens: &[u32]) -> Vec<Vec<f64>> {
    let mut cache = engine.model().new_cache();
    let mut batch = [Sequence { tokens, cache: &mut cache }];
    let logits = engine.model().forward(&engine.live().unwrap(), &mut batch, Rows::All).unwrap();
    let softmax = |row: &[f32]| {
        let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
        row.iter().map(|v| f64::from(*v) - sum.ln()).collect()
    };
    logits.rows().map(softmax).collect()
}

fn agrees(got: &TokenLogprob, row: &[f64], token: u32, top: usize, extra: &[u32]) {
    let close = |id: u32, value: f32| (row[id as usize] - f64::from(value)).abs() < 1e-5;
    assert_eq!(got.token_id, token);
    assert!(close(token, got.logprob), "{got:?}: {}", row[token as usize]);
    assert_eq!(got.rank as usize, row.iter().filter(|v| **v >= row[token as usize]).count());
    assert_eq!(got.top.len(), top);
    assert!(got.top.iter().all(|(id, v)| close(*id, *v)) && got.top.is_sorted_by(|a, b| a.1 >= b.1), "{got:?}");
    let best = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    assert!(got.top.first().is_none_or(|(id, _)| row[*id as usize] == best));
    assert_eq!(got.extra.iter().map(|e| e.0).collect::<Vec<_>>(), extra);
    assert!(got.extra.iter().all(|(id, v)| close(*id, *v)));
}

#[test]
fn logprobs_are_the_log_softmax_of_the_forward_pass() {
    let rig = rig(FP8, tight());
    let prompt = rig.encode(TEXT);
    let params = SampleParams {
        max_tokens: 24,
        seed: Some(4),
        temperature: 1.2,
        top_k: 30,
        ignore_eos: true,
        logprobs: Some(5),
        prompt_logprobs: Some(3),
        logprob_token_ids: vec![7, 2000],
        repetition_penalty: 1.2,
        ..SampleParams::default()
    };
    // Others take part in its steps.
    let others: Vec<_> = (1..4).map(|i| job(&format!("o{i}"), &prompt[..i * 9], greedy(30))).collect();
    let others: Vec<_> = others.into_iter().map(|(job, r)| (rig.scheduler.submit(job).unwrap(), r)).collect();
    let heard = rig.run("one", &prompt, params.clone());
    others.iter().for_each(|(_, r)| drop(listen(r)));
    let tokens: Vec<u32> = prompt.iter().copied().chain(heard.ids()).collect();
    let rows = direct(&rig.engine, &tokens);
    for (i, t) in heard.tokens.iter().enumerate() {
        agrees(t.logprob.as_ref().unwrap(), &rows[prompt.len() - 1 + i], t.token_id, 5, &[7, 2000]);
    }
    let of_prompt = heard.started.as_ref().unwrap().prompt_logprobs.as_ref().unwrap();
    assert_eq!(of_prompt.len(), prompt.len());
    assert!(of_prompt[0].is_none());
    for (i, lp) in of_prompt.iter().enumerate().skip(1) {
        agrees(lp.as_ref().unwrap(), &rows[i - 1], prompt[i], 3, &[7, 2000]);
    }
    // Another mode changes the numbers and not the tokens; processed ones are of 30 tokens only.
    let processed = rig.run(
        "two",
        &prompt,
        SampleParams {
            logprobs_mode: LogprobsMode::ProcessedLogprobs,
            logprobs: Some(100),
            prompt_logprobs: None,
            ..params
        },
    );
    assert_eq!(processed.ids(), heard.ids());
    for t in &processed.tokens {
        let lp = t.logprob.as_ref().unwrap();
        let sum: f64 = lp.top.iter().map(|(_, v)| f64::from(*v).exp()).sum();
        assert!(lp.top.len() == 30 && (sum - 1.0).abs() < 1e-5, "{sum} {lp:?}");
    }
}

#[test]
fn stops_end_the_text_where_they_should() {
    let rig = rig(PLAIN, tight());
    let prompt = rig.encode(TEXT);
    let whole = rig.run("whole", &prompt, greedy(60));
    let text = whole.text();
    // A stop text of several tokens that is nowhere a token by itself, and one that never comes.
    let at = (8..text.len() - 12).find(|at| text.is_char_boundary(*at) && text.is_char_boundary(at + 9)).unwrap();
    let stop = text[at..at + 9].to_string();
    let at = text.find(&stop).unwrap();
    let params = SampleParams { stop: vec!["\u{1}never".into(), stop.clone()], ..greedy(60) };
    let heard = rig.run("stop", &prompt, params.clone());
    assert_eq!(heard.text(), text[..at]);
    assert_eq!(heard.done.finish_reason, FinishReason::Stop);
    assert_eq!(heard.done.stop_reason, Some(StopReason::Text(stop.clone())));
    assert!(heard.tokens.len() < 60 && whole.ids().starts_with(&heard.ids()));
    assert_eq!(heard.text(), rig.alone(&rig.engine.live().unwrap(), &prompt, &params).text);
    let with = SampleParams { include_stop_str_in_output: true, ..params.clone() };
    assert_eq!(rig.run("with", &prompt, with).text(), text[..at + stop.len()]);
    // Not before so many tokens.
    let late = rig.run("late", &prompt, SampleParams { min_tokens: 60, ..params });
    assert_eq!((late.text(), late.done.finish_reason), (text.clone(), FinishReason::Length));

    let token = whole.ids()[12];
    let first = whole.ids().iter().position(|t| *t == token).unwrap();
    let params = SampleParams { stop_token_ids: vec![token], ..greedy(60) };
    let heard = rig.run("token", &prompt, params.clone());
    assert_eq!(
        (heard.ids(), heard.done.stop_reason.clone()),
        (whole.ids()[..=first].to_vec(), Some(StopReason::Token(token)))
    );
    let before: String = whole.tokens[..first].iter().map(|t| t.text.as_str()).collect();
    assert_eq!(heard.text(), before);
    let heard = rig.run("late token", &prompt, SampleParams { min_tokens: 50, ..params });
    assert!(heard.tokens.len() >= 50 && !heard.ids()[..50].contains(&token), "{:?}", heard.ids());

    // The model's own end token, made likely.
    let eos = rig.tokenizer.eos()[0];
    let params = SampleParams { ignore_eos: false, logit_bias: vec![(eos, 100.0)], ..greedy(60) };
    let heard = rig.run("eos", &prompt, params.clone());
    assert_eq!((heard.ids(), heard.text(), heard.done.stop_reason), (vec![eos], String::new(), None));
    let heard = rig.run("later", &prompt, SampleParams { min_tokens: 7, ..params.clone() });
    assert_eq!((heard.tokens.len(), heard.ids()[7]), (8, eos));
    let shown = SampleParams { ignore_eos: true, skip_special_tokens: false, max_tokens: 2, ..params };
    let special = rig.tokenizer.decode_with(&[eos, eos], false).unwrap();
    assert!(!special.is_empty());
    assert_eq!(rig.run("shown", &prompt, shown).text(), special);
    let none = rig.run("none", &prompt, greedy(0));
    assert_eq!((none.tokens.len(), none.done.finish_reason), (0, FinishReason::Length));
    assert!(none.started.is_some());
}

#[test]
fn cached_prefixes_change_no_bit_and_belong_to_their_weights() {
    let (on, off) = (rig(FP8, tight()), rig(FP8, SchedulerOptions { prefix_cache_bytes: 0, ..tight() }));
    let prompt = on.encode(TEXT);
    let params =
        SampleParams { max_tokens: 20, seed: Some(3), ignore_eos: true, logprobs: Some(3), ..SampleParams::default() };
    let first = on.run("a", &prompt, params.clone());
    assert_eq!(first.done.cached_tokens, 0);
    let second = on.run("b", &prompt, params.clone());
    assert_eq!(second.done.cached_tokens, prompt.len() - 1);
    assert_eq!(second.started.as_ref().unwrap().cached_tokens, prompt.len() - 1);
    // The next turn of a conversation: the answer is known too, but for its last token.
    let longer: Vec<u32> = prompt.iter().copied().chain(first.ids()).chain([5, 6, 7]).collect();
    let third = on.run("c", &longer, params.clone());
    assert_eq!(third.done.cached_tokens, prompt.len() + 19);
    let other = on.run("d", &[&prompt[..10], &[9, 9, 9, 9]].concat(), params.clone());
    assert_eq!(other.done.cached_tokens, 10);
    for (id, prompt, cached) in [("b", &prompt, &second), ("c", &longer, &third)] {
        let plain = off.run(id, prompt, params.clone());
        assert_eq!(plain.done.cached_tokens, 0);
        assert_eq!(plain.ids(), cached.ids());
        let bits = |h: &super::Heard| h.tokens.iter().map(|t| t.logprob.clone().unwrap()).collect::<Vec<_>>();
        assert_eq!(bits(&plain), bits(cached));
    }
    let load = on.scheduler.load();
    assert!(load.prefix_entries > 0 && load.prefix_bytes > 0 && load.prefix_hits > 0, "{load:?}");
    on.scheduler.reset_prefix_cache();
    assert_eq!(on.scheduler.load().prefix_bytes, 0);
    assert_eq!(on.run("e", &prompt, params.clone()).done.cached_tokens, 0);
    // A publish: nothing of the old weights is used, and its memory goes with them.
    let weights = on.refit(PLAIN);
    let after = on.run("f", &prompt, params.clone());
    assert_eq!(after.done.cached_tokens, 0);
    let fresh = on.alone(&weights, &prompt, &params);
    assert!(after.ids().starts_with(&fresh.token_ids));
    assert_eq!(on.scheduler.load().prefix_entries, 1);
}

/// Sequences with and without an adapter run in one step, and share no prefix.
#[test]
fn an_adapter_is_part_of_the_sequence() {
    let (_tmp, engine, folder) = crate::lora::case("llama");
    let adapter = engine
        .load_adapter(
            crate::lora::builder(&folder, "one", 1 << 20, false),
            &*crate::lora::lora_patch("lora_tensors", &[]),
        )
        .unwrap();
    let rig = rig_of(engine, tight());
    let prompt: Vec<u32> = (0..30).map(|i| 5 + i * 7 % 90).collect();
    let mut receivers = Vec::new();
    for i in 0..4 {
        let (mut job, receive) = job(&format!("{i}"), &prompt, greedy(20));
        job.adapter = (i % 2 == 1).then(|| adapter.clone());
        rig.scheduler.submit(job).unwrap();
        receivers.push(receive);
    }
    let heard: Vec<_> = receivers.iter().map(listen).collect();
    let expected = |adapter| {
        let mut cache = rig.engine.model().new_cache_with(adapter);
        let (mut next, mut out) = (prompt.clone(), Vec::new());
        while out.len() < 20 {
            let mut batch = [Sequence { tokens: &next, cache: &mut cache }];
            let row = rig.engine.model().forward(&rig.engine.live().unwrap(), &mut batch, Rows::Last).unwrap();
            out.push(argmax(row.values()));
            next = vec![out[out.len() - 1]];
        }
        out
    };
    let (with, without) = (expected(Some(adapter.clone())), expected(None));
    assert_ne!(with, without, "the adapter makes no difference: the test is void");
    for (i, h) in heard.iter().enumerate() {
        assert_eq!(h.ids(), if i % 2 == 1 { with.clone() } else { without.clone() }, "{i}");
        assert_eq!(h.done.weight_versions[0].adapter, (i % 2 == 1).then(|| ("one".to_string(), adapter.version())));
        // Each from its own kind.
        assert_eq!(h.done.cached_tokens > 0, i >= 2, "{i}");
    }
    let other = super::rig(PLAIN, tight());
    let (mut job, _receive) = job("x", &[5, 6], greedy(1));
    job.adapter = Some(adapter);
    let refused = other.scheduler.submit(job).unwrap_err().to_string();
    assert!(refused.contains("another model"), "{refused}");
}

#[test]
fn the_prefix_cache_keeps_to_its_bytes() {
    let limit = rig(PLAIN, tight()).engine.model().cache_bytes(100);
    let rig = rig(PLAIN, SchedulerOptions { prefix_cache_bytes: limit, ..tight() });
    let prompt = |i: u32| (0..30).map(|k| 3 + i * 31 + k).collect::<Vec<u32>>();
    for i in 0..8 {
        rig.run(&format!("{i}"), &prompt(i), greedy(4));
        let load = rig.scheduler.load();
        assert!(load.prefix_bytes <= limit && load.prefix_entries > 0, "{load:?}");
    }
    // The last ones are there, the first one is not, and using one keeps it.
    assert_eq!(rig.run("7", &prompt(7), greedy(4)).done.cached_tokens, 29);
    assert_eq!(rig.run("0", &prompt(0), greedy(4)).done.cached_tokens, 0);
    // One that is larger than all of it is not kept.
    rig.run("long", &(0..150).collect::<Vec<u32>>(), greedy(4));
    assert!(rig.scheduler.load().prefix_bytes <= limit);
    assert_eq!(rig.run("0", &prompt(0), greedy(4)).done.cached_tokens, 29);
}

#[test]
fn the_last_position_is_used_and_no_more() {
    let rig = rig(PLAIN, tight());
    let most = rig.engine.model().max_positions();
    let prompt: Vec<u32> = (0..most as u32 - 5).map(|i| 3 + i % 500).collect();
    let heard = rig.run("long", &prompt, greedy(100));
    assert_eq!((heard.tokens.len(), heard.done.finish_reason), (6, FinishReason::Length));
}

/// Jobs that want the rows of their prompt and jobs that do not, in one step: passes of their own, and the same answers.
#[test]
fn prompts_whose_rows_are_wanted_meet_others_in_a_step() {
    let rig = rig(FP8, SchedulerOptions { prefix_cache_bytes: 0, ..SchedulerOptions::default() });
    let text = rig.encode(TEXT);
    let weights = rig.engine.live().unwrap();
    let rows = direct(&rig.engine, &text);
    for wants in 0..8_u32 {
        // All of them begin in the same step.
        rig.scheduler.pause(PauseMode::Keep);
        let jobs: Vec<_> = (0..3)
            .map(|i| {
                let prompt = text[..5 + 7 * i].to_vec();
                let wanted = wants & 1 << i != 0;
                let params = SampleParams { prompt_logprobs: wanted.then_some(2), ..greedy(i) };
                let (job, receive) = job(&format!("w{wants}i{i}"), &prompt, params.clone());
                rig.scheduler.submit(job).unwrap();
                (prompt, params, receive)
            })
            .collect();
        rig.scheduler.resume();
        for (prompt, params, receive) in jobs {
            let heard = listen(&receive);
            assert_eq!(heard.done.finish_reason, FinishReason::Length, "{:?}", heard.done.error);
            if params.max_tokens > 0 {
                assert_eq!(heard.ids(), rig.alone(&weights, &prompt, &params).token_ids);
            }
            let of_prompt = heard.started.unwrap().prompt_logprobs;
            assert_eq!(of_prompt.is_some(), params.prompt_logprobs.is_some());
            for (i, lp) in of_prompt.iter().flatten().enumerate().skip(1) {
                agrees(lp.as_ref().unwrap(), &rows[i - 1], prompt[i], 2, &[]);
            }
        }
    }
}
