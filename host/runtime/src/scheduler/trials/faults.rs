//! Passes that fail.

use std::sync::Arc;

use super::model::{Kind, POISON, SOUR, kinds, tokenizer};
use super::reference::{Ask, Log, same};
use crate::scheduler::handle::{Scheduler, SchedulerOptions};
use crate::scheduler::job::{Event, FinishReason};
use crate::scheduler::params::SampleParams;

fn ask(id: &str, prompt: &[u32], params: SampleParams) -> Ask {
    Ask { id: id.to_string(), prompt: prompt.to_vec(), params, adapter: None, index: 0 }
}

fn greedy(max_tokens: usize) -> SampleParams {
    let bad_token_ids = vec![POISON, SOUR];
    SampleParams {
        max_tokens,
        temperature: 0.0,
        ignore_eos: true,
        logprobs: Some(1),
        bad_token_ids,
        ..SampleParams::default()
    }
}

/// Prompts that fail at once, one with its rows wanted, and texts that fail later.
fn requests() -> Vec<Ask> {
    let echo = |max_tokens| SampleParams { prompt_logprobs: Some(1), ..greedy(max_tokens) };
    let chooses = |token| SampleParams { allowed_token_ids: Some(vec![token]), bad_token_ids: Vec::new(), ..greedy(9) };
    vec![
        ask("good", &[5, 6, 7, 8, 9], greedy(9)),
        ask("panics at once", &[5, 6, POISON, 8], greedy(9)),
        ask("good echo", &[5, 6, 7, 8, 9, 10, 11], echo(2)),
        ask("echo that panics", &[5, 6, 7, POISON, 9], echo(2)),
        ask("fails at once", &[SOUR], greedy(9)),
        ask("panics later", &[12, 13, 14], chooses(POISON)),
        ask("fails later", &[12, 13, 15], chooses(SOUR)),
        ask("good, sampled", &[5, 6, 7], SampleParams { temperature: 1.0, seed: Some(1), ..greedy(9) }),
    ]
}

fn together(kind: &Kind, asks: &[Ask], options: SchedulerOptions) -> Vec<Vec<Event>> {
    let set = kind.sets[0].clone();
    let weights = Arc::new(move |_: &str| Ok(set.clone()));
    let (scheduler, mut worker) = Scheduler::by_hand(kind.engine.clone(), tokenizer(), weights, options);
    let logs: Vec<Log> = asks.iter().map(|_| Log::default()).collect();
    for (ask, log) in asks.iter().zip(&logs) {
        let log = log.clone();
        let sink = move |event| {
            log.lock().unwrap().push(event);
            true
        };
        scheduler.submit(ask.job(kind, sink)).unwrap();
    }
    while worker.has_work(&scheduler.inner().state()) {
        worker.turn();
    }
    let load = scheduler.load();
    assert_eq!((load.finished, load.failed, load.aborted, load.running, load.kv_bytes), (3, 5, 0, 0, 0));
    logs.into_iter().map(|log| std::mem::take(&mut *log.lock().unwrap())).collect()
}

#[test]
fn a_pass_that_fails_costs_only_the_requests_that_fail_alone() {
    let pieces = SchedulerOptions { max_batched_tokens: 2, ..SchedulerOptions::default() };
    for kind in kinds().iter().filter(|k| k.fails) {
        for options in [SchedulerOptions::default(), pieces] {
            let asks = requests();
            for (ask, heard) in asks.iter().zip(together(kind, &asks, options)) {
                let alone = ask.alone(kind, &kind.sets[0], &[], usize::MAX, FinishReason::Abort);
                let equal = heard.len() == alone.len() && heard.iter().zip(&alone).all(|(a, b)| same(a, b));
                assert!(equal, "{}, {}:\n{heard:#?}\nalone: {alone:#?}", kind.name, ask.id);
                let Some(Event::Done(done)) = heard.last() else { panic!("{}: no end", ask.id) };
                let error = done.error.as_ref().map(ToString::to_string).unwrap_or_default();
                let expected = match ask.id.as_str() {
                    id if id.contains("panics") => {
                        "internal: a forward pass panicked: a poisoned token\n  why: a bug of this program\n  next: please \
                         report this"
                    }
                    id if id.contains("fails") => {
                        "patch `fails` failed in `activation-scales`\n  why: a sour token\n  next: send no sour token"
                    }
                    _ => "",
                };
                assert_eq!(error, expected, "{}", ask.id);
                let tokens = if ask.id.contains("later") { 1 } else { 0 };
                assert!(error.is_empty() || done.completion_tokens == tokens, "{}: {done:?}", ask.id);
            }
        }
    }
}
