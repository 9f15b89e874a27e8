//! Pauses, aborts, limits, failures.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use patchhost::checkpoint::bundled;
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::generate::TokenVersion;
use patchhost_runtime::model::{Rows, Sequence};
use patchhost_runtime::sampling::argmax;
use patchhost_runtime::scheduler::{
    Event, FinishReason, LogprobsMode, PauseMode, Paused, SampleParams, Scheduler, SchedulerOptions, SubmitError, Token,
};
use patchhost_runtime::weights::WeightSet;

use super::{FP8, Heard, PLAIN, TEXT, greedy, job, listen, next_tokens, rig, slow_job, tight};
use crate::oracle::hooks;
use crate::support::evil;

const LONG: usize = 200;

fn ranges(versions: &[TokenVersion]) -> Vec<(&str, usize, usize)> {
    versions.iter().map(|v| (v.version.as_str(), v.start, v.end)).collect()
}

/// A token and the bits of its logit: what weights and keys decide, where the tokens alone may agree by chance.
type Fact = (u32, u32);

/// Greedy, with the logits of the tokens.
fn exact(max_tokens: usize) -> SampleParams {
    SampleParams { logprobs: Some(0), logprobs_mode: LogprobsMode::RawLogits, ..greedy(max_tokens) }
}

fn facts(tokens: &[Token]) -> Vec<Fact> {
    tokens.iter().map(|t| (t.token_id, t.logprob.as_ref().unwrap().logprob.to_bits())).collect()
}

/// What came before the pause was reached.
fn rest(receive: &Receiver<Event>) -> Vec<Fact> {
    let tokens = receive.try_iter().filter_map(|e| match e {
        Event::Token(t) => Some(t),
        _ => None,
    });
    facts(&tokens.collect::<Vec<_>>())
}

/// A sequence computed step by step, with weights that change after `split` tokens.
fn by_hand(engine: &Engine, old: &WeightSet, prompt: &[u32], split: usize, n: usize) -> Vec<Fact> {
    let mut cache = engine.model().new_cache();
    cache.keep_across_publishes();
    let (new, mut next, mut out) = (engine.live().unwrap(), prompt.to_vec(), Vec::new());
    while out.len() < n {
        let weights = if out.len() < split { old } else { &new };
        let mut batch = [Sequence { tokens: &next, cache: &mut cache }];
        let row = engine.model().forward(weights, &mut batch, Rows::Last).unwrap().into_values();
        let token = argmax(&row);
        out.push((token, row[token as usize].to_bits()));
        next = vec![token];
    }
    out
}

#[test]
fn keep_goes_on_with_new_weights_and_old_keys() {
    let rig = rig(PLAIN, tight());
    let prompt = rig.encode(TEXT);
    let (one, receive, slow) = slow_job("one", &prompt, exact(LONG));
    let old = rig.engine.live().unwrap();
    rig.scheduler.submit(one).unwrap();
    let mut got = facts(&next_tokens(&receive, 10));
    let paused = rig.scheduler.pause(PauseMode::Keep);
    assert_eq!(paused, Paused { kept: 1, ..Paused::default() });
    assert_eq!(rig.scheduler.is_paused(), Some(PauseMode::Keep));
    got.extend(rest(&receive));
    slow.store(false, Ordering::Relaxed);
    let split = got.len();
    // Frozen: nothing comes, a new job waits.
    let (queued, later) = job("queued", &prompt, greedy(3));
    rig.scheduler.submit(queued).unwrap();
    let steps = rig.scheduler.load().steps;
    assert!(receive.recv_timeout(Duration::from_millis(100)).is_err() && later.try_recv().is_err());
    let load = rig.scheduler.load();
    assert_eq!((load.running, load.waiting, load.steps), (1, 1, steps));
    assert!(load.kv_bytes > 0);
    let new = rig.refit(FP8);
    rig.scheduler.resume();
    assert_eq!(rig.scheduler.is_paused(), None);
    got.extend(facts(&next_tokens(&receive, LONG - split)));
    let Ok(Event::Done(done)) = receive.recv_timeout(Duration::from_secs(60)) else { panic!("no end") };
    assert_eq!(ranges(&done.weight_versions), [(old.label(), 0, split), (new.label(), split, LONG)]);
    assert_eq!((done.finish_reason, done.preempted), (FinishReason::Length, 0));
    assert_eq!(got, by_hand(&rig.engine, &old, &prompt, split, LONG));
    assert_ne!(got, by_hand(&rig.engine, &old, &prompt, LONG, LONG));
    let heard = listen(&later);
    assert_eq!(ranges(&heard.done.weight_versions), [(new.label(), 0, 3)]);
    // Keys and values of two sets are no prefix of anything.
    assert_eq!(heard.done.cached_tokens, 0);
}

#[test]
fn retract_computes_anew_with_new_weights() {
    let rig = rig(PLAIN, tight());
    let prompt = rig.encode(TEXT);
    let (one, receive, slow) = slow_job("one", &prompt, exact(LONG));
    let old = rig.engine.live().unwrap();
    rig.scheduler.submit(one).unwrap();
    let mut got = facts(&next_tokens(&receive, 10));
    assert_eq!(rig.scheduler.pause(PauseMode::Retract).kept, 1);
    got.extend(rest(&receive));
    slow.store(false, Ordering::Relaxed);
    let split = got.len();
    let load = rig.scheduler.load();
    assert_eq!((load.kv_bytes, load.preempted, load.running), (0, 1, 1));
    // Without keys and values it may sleep, and resuming does not wake it.
    rig.scheduler.sleep(1).unwrap();
    let new = rig.refit(FP8);
    rig.scheduler.resume();
    assert!(receive.recv_timeout(Duration::from_millis(100)).is_err());
    assert_eq!(rig.scheduler.is_sleeping(), Some(1));
    rig.scheduler.wake();
    got.extend(facts(&next_tokens(&receive, LONG - split)));
    let Ok(Event::Done(done)) = receive.recv_timeout(Duration::from_secs(60)) else { panic!("no end") };
    assert_eq!(ranges(&done.weight_versions), [(old.label(), 0, split), (new.label(), split, LONG)]);
    assert_eq!(done.preempted, 1);
    let so_far = prompt.iter().copied().chain(got[..split].iter().map(|f| f.0)).collect::<Vec<_>>();
    assert_eq!(got[split..], by_hand(&rig.engine, &new, &so_far, 0, LONG - split));
}

#[test]
fn wait_lets_running_jobs_end_and_abort_ends_all() {
    let rig = rig(PLAIN, SchedulerOptions { max_num_seqs: 2, ..tight() });
    let prompt = rig.encode(TEXT);
    let (a, hear_a, slow) = slow_job("a", &prompt, greedy(60));
    let (b, hear_b) = job("b", &prompt[..9], greedy(60));
    let (c, hear_c) = job("c", &prompt[..5], greedy(5));
    let old = rig.engine.live().unwrap();
    [a, b, c].into_iter().for_each(|j| rig.scheduler.submit(j).unwrap());
    next_tokens(&hear_a, 1);
    let paused = rig.scheduler.pause(PauseMode::Wait);
    assert_eq!(paused, Paused { waiting_finished: 2, ..Paused::default() });
    slow.store(false, Ordering::Relaxed);
    let load = rig.scheduler.load();
    assert_eq!((load.running, load.waiting), (0, 1));
    let new = rig.refit(FP8);
    rig.scheduler.resume();
    let version = |h: Heard| h.done.weight_versions[0].version.clone();
    drop(hear_a);
    assert_eq!(version(listen(&hear_b)), old.label());
    assert_eq!(version(listen(&hear_c)), new.label());

    let (a, hear_a, _slow) = slow_job("a", &prompt, greedy(LONG));
    let (b, hear_b) = job("b", &prompt, greedy(LONG));
    let (c, hear_c) = job("c", &prompt, greedy(LONG));
    [a, b, c].into_iter().for_each(|j| rig.scheduler.submit(j).unwrap());
    let first = next_tokens(&hear_a, 4);
    assert_eq!(rig.scheduler.pause(PauseMode::Abort), Paused { aborted: 3, ..Paused::default() });
    for hear in [hear_b, hear_c] {
        assert_eq!(listen(&hear).done.finish_reason, FinishReason::Abort);
    }
    let rest: Vec<Event> = hear_a.iter().collect();
    let Some(Event::Done(done)) = rest.last() else { panic!("{rest:?}") };
    assert_eq!((done.finish_reason, done.completion_tokens), (FinishReason::Abort, first.len() + rest.len() - 1));
    let load = rig.scheduler.load();
    assert_eq!((load.running, load.waiting, load.kv_bytes, load.aborted), (0, 0, 0, 3));
    // One pause takes the place of another; what the first froze ends.
    rig.scheduler.resume();
    let (d, hear_d, slow) = slow_job("d", &prompt, greedy(40));
    rig.scheduler.submit(d).unwrap();
    next_tokens(&hear_d, 1);
    assert_eq!(rig.scheduler.pause(PauseMode::Keep).kept, 1);
    slow.store(false, Ordering::Relaxed);
    assert_eq!(rig.scheduler.pause(PauseMode::Wait).waiting_finished, 1);
    assert!(hear_d.iter().any(|e| matches!(e, Event::Done(d) if d.finish_reason == FinishReason::Length)));
}

/// The samples of one request run with the same weights, however late they come to run; another request that happens to
/// have the same id runs with those of its own time.
#[test]
fn samples_of_one_request_share_their_weights() {
    let rig = rig(PLAIN, SchedulerOptions { max_num_seqs: 1, ..tight() });
    let prompt = rig.encode(TEXT);
    let old = rig.engine.live().unwrap();
    let (a, hear_a, slow) = slow_job("same", &prompt, greedy(80));
    let (b, hear_b) = job("same", &prompt, greedy(5));
    rig.scheduler.submit_all(vec![a, b]).unwrap();
    let (c, hear_c) = job("same", &prompt, greedy(5));
    rig.scheduler.submit(c).unwrap();
    next_tokens(&hear_a, 1);
    slow.store(false, Ordering::Relaxed);
    rig.scheduler.pause(PauseMode::Wait);
    let new = rig.refit(FP8);
    rig.scheduler.resume();
    let version = |h: Heard| h.done.weight_versions[0].version.clone();
    assert_eq!(version(listen(&hear_b)), old.label());
    assert_eq!(version(listen(&hear_c)), new.label());
}

#[test]
fn aborts_by_id_end_running_and_waiting_jobs_with_what_they_have() {
    let rig = rig(PLAIN, SchedulerOptions { max_num_seqs: 2, ..tight() });
    let prompt = rig.encode(TEXT);
    let whole = rig.run("whole", &prompt, greedy(LONG)).text();
    let params = SampleParams { stop: vec!["\u{1}never".to_string()], ..greedy(LONG) };
    let (a, hear_a, slow) = slow_job("a", &prompt, params);
    let (b, hear_b) = job("b", &prompt, greedy(20));
    let (c, hear_c) = job("c", &prompt, greedy(LONG));
    [a, b, c].into_iter().for_each(|j| rig.scheduler.submit(j).unwrap());
    let mut events: Vec<Event> = (0..5).map(|_| hear_a.recv().unwrap()).collect();
    assert_eq!(rig.scheduler.abort(&["a".to_string(), "c".to_string(), "nobody".to_string()]), 2);
    slow.store(false, Ordering::Relaxed);
    events.extend(hear_a.iter());
    let text: String = events
        .iter()
        .map(|e| match e {
            Event::Token(t) => t.text.as_str(),
            Event::Done(d) => d.text_tail.as_str(),
            Event::Started(_) => "",
        })
        .collect();
    assert!(!text.is_empty() && whole.starts_with(&text) && text.len() < whole.len(), "{text}");
    let c = listen(&hear_c);
    assert_eq!(c.done.finish_reason, FinishReason::Abort);
    assert_eq!(listen(&hear_b).done.finish_reason, FinishReason::Length);
    assert_eq!(rig.scheduler.abort_all(), 0);
}

#[test]
fn a_full_queue_and_wrong_jobs_are_refused() {
    let rig = rig(PLAIN, SchedulerOptions { max_waiting: 2, ..tight() });
    let prompt = rig.encode("KING");
    rig.scheduler.pause(PauseMode::Keep);
    let (a, hear_a) = job("a", &prompt, greedy(2));
    let (b, hear_b) = job("b", &prompt, greedy(2));
    let (c, hear_c) = job("c", &prompt, greedy(2));
    rig.scheduler.submit(a).unwrap();
    // All samples of a request or none.
    let refused = rig.scheduler.submit_all(vec![b, c]).unwrap_err();
    assert!(matches!(refused, SubmitError::Full { waiting: 1, limit: 2 }), "{refused}");
    assert!(hear_b.recv().is_err() && hear_c.recv().is_err());
    rig.scheduler.resume();
    assert_eq!(listen(&hear_a).tokens.len(), 2);

    let most = rig.engine.model().max_positions();
    let refused = |prompt: &[u32], params: SampleParams| {
        let refused = rig.scheduler.submit(job("x", prompt, params).0).unwrap_err();
        assert!(matches!(refused, SubmitError::Invalid(_)));
        refused.to_string()
    };
    let mut texts =
        vec![refused(&[], greedy(2)), refused(&vec![5; most + 1], greedy(2)), refused(&[5, 1_000_000], greedy(2))];
    let bad = |edit: fn(&mut SampleParams)| {
        let mut params = greedy(2);
        edit(&mut params);
        params
    };
    let wrong: [fn(&mut SampleParams); 17] = [
        |p| p.temperature = f32::NAN,
        |p| p.temperature = -0.1,
        |p| p.top_p = 0.0,
        |p| p.min_p = 1.5,
        |p| p.presence_penalty = 3.0,
        |p| p.frequency_penalty = f32::NAN,
        |p| p.repetition_penalty = 0.0,
        |p| p.min_tokens = 3,
        |p| p.logprobs = Some(5000),
        |p| p.prompt_logprobs = Some(5000),
        |p| p.stop = vec![String::new()],
        |p| p.stop = vec!["x".to_string(); 100],
        |p| p.allowed_token_ids = Some(Vec::new()),
        |p| p.allowed_token_ids = Some(vec![9999]),
        |p| p.logit_bias = vec![(1, f32::INFINITY)],
        |p| p.stop_token_ids = vec![2048],
        |p| p.logprob_token_ids = vec![1; 3000],
    ];
    texts.extend(wrong.into_iter().map(|edit| refused(&prompt, bad(edit))));
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn receivers_that_go_or_panic_harm_nobody_else() {
    let rig = rig(PLAIN, tight());
    let prompt = rig.encode(TEXT);
    let expected = rig.run("alone", &prompt, greedy(50)).ids();
    let (good, hear) = job("good", &prompt, greedy(50));
    let (gone, hear_gone, _slow) = slow_job("gone", &prompt, greedy(LONG));
    let (mut panics, _hear) = job("panics", &prompt, greedy(LONG));
    let mut seen = 0;
    panics.sink = Box::new(move |_| {
        seen += 1;
        assert!(seen < 5, "a receiver that panics, on purpose");
        true
    });
    [good, gone, panics].into_iter().for_each(|j| rig.scheduler.submit(j).unwrap());
    next_tokens(&hear_gone, 3);
    drop(hear_gone);
    assert_eq!(listen(&hear).ids(), expected);
    // Both are out, long before their 200 tokens.
    while rig.scheduler.load().running > 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let load = rig.scheduler.load();
    assert_eq!((load.aborted, load.finished, load.failed), (2, 2, 0), "{load:?}");
    assert_eq!(rig.run("after", &prompt, greedy(50)).ids(), expected);
}

/// Three requests in one step: good weights, a patch that fails in the forward pass, and a choice of weights that panics.
#[test]
fn a_failing_patch_ends_the_requests_of_its_weights_only() {
    let engine = Engine::new(bundled::CONFIG, EngineOptions::default()).unwrap();
    let checkpoint = bundled::checkpoint().unwrap();
    engine.refit(&checkpoint, &hooks(PLAIN), &|_, _, _| {}).unwrap();
    let failing = evil("activation_short");
    let (bad, _) = engine.stage(&checkpoint, &hooks(&["moe_loader", &failing]), &|_, _, _| {}).unwrap();
    let (engine, bad) = (Arc::new(engine), Arc::new(bad));
    let tokenizer = Arc::new(bundled::tokenizer().unwrap());
    let live = engine.clone();
    let weights = Arc::new(move |id: &str| match id {
        "bad" => Ok(bad.clone()),
        "panic" => panic!("a choice of weights that panics, on purpose"),
        _ => live.live(),
    });
    let scheduler = Scheduler::start(engine, tokenizer.clone(), weights, tight()).unwrap();
    let prompt = tokenizer.encode(TEXT).unwrap();
    let mut heard = Vec::new();
    for id in ["good", "bad", "panic", "bad", "fine"] {
        let (job, receive) = job(id, &prompt, greedy(30));
        scheduler.submit(job).unwrap();
        heard.push(receive);
    }
    let heard: Vec<Heard> = heard.iter().map(listen).collect();
    assert_eq!(heard[0].ids(), heard[4].ids());
    assert_eq!((heard[0].tokens.len(), heard[0].done.finish_reason), (30, FinishReason::Length));
    for (i, words) in [(1, "activation-scales"), (2, "on purpose"), (3, "activation-scales")] {
        let done = &heard[i].done;
        assert!(heard[i].started.is_none() && done.finish_reason == FinishReason::Error);
        let text = done.error.as_ref().unwrap().to_string();
        assert!(text.contains(words) && text.contains("\n  why: ") && text.contains("\n  next: "), "{text}");
    }
    let load = scheduler.load();
    assert_eq!((load.failed, load.finished, load.running, load.kv_bytes), (3, 2, 0, 0));
}

#[test]
fn a_small_kv_cache_changes_no_token() {
    let big = rig(PLAIN, tight());
    let prompt = big.encode(TEXT);
    let limit = big.engine.model().cache_bytes(prompt.len() * 2 + 20);
    let small = rig(PLAIN, SchedulerOptions { kv_cache_bytes: limit, prefix_cache_bytes: 0, ..tight() });
    let jobs = |rig: &super::Rig| {
        let receivers: Vec<_> = (0..4)
            .map(|i| {
                let params = SampleParams { temperature: 0.9, seed: Some(i), ..greedy(50) };
                let (job, receive) = job(&format!("{i}"), &prompt[i as usize..], params);
                rig.scheduler.submit(job).unwrap();
                receive
            })
            .collect();
        receivers.iter().map(|r| listen(r).ids()).collect::<Vec<_>>()
    };
    assert_eq!(jobs(&big), jobs(&small));
    let load = small.scheduler.load();
    assert!(load.preempted > 0, "{load:?}");
    assert_eq!(big.scheduler.load().preempted, 0);
    let tiny = rig(PLAIN, SchedulerOptions { kv_cache_bytes: limit / 4, ..tight() });
    let refused = tiny.scheduler.submit(job("long", &prompt, greedy(1)).0).unwrap_err().to_string();
    assert!(refused.contains("keys and values"), "{refused}");
}

#[test]
fn sleep_waits_for_nobody_and_wakes_the_queue() {
    let rig = rig(PLAIN, tight());
    let prompt = rig.encode(TEXT);
    let (a, hear_a, _slow) = slow_job("a", &prompt, greedy(LONG));
    rig.scheduler.submit(a).unwrap();
    next_tokens(&hear_a, 1);
    let refused = rig.scheduler.sleep(1).unwrap_err().to_string();
    assert!(refused.contains("1 sequences hold"), "{refused}");
    assert!(rig.scheduler.sleep(7).unwrap_err().to_string().contains("level 7"));
    rig.scheduler.pause(PauseMode::Abort);
    rig.scheduler.resume();
    rig.scheduler.sleep(2).unwrap();
    let load = rig.scheduler.load();
    assert_eq!((load.kv_bytes, load.prefix_bytes, rig.scheduler.is_sleeping()), (0, 0, Some(2)));
    let (b, hear_b) = job("b", &prompt, greedy(3));
    rig.scheduler.submit(b).unwrap();
    assert!(hear_b.recv_timeout(Duration::from_millis(100)).is_err());
    rig.scheduler.wake();
    assert_eq!(listen(&hear_b).tokens.len(), 3);
}

#[test]
fn the_last_handle_ends_all_jobs() {
    let rig = rig(PLAIN, SchedulerOptions { max_num_seqs: 2, ..tight() });
    let prompt = rig.encode(TEXT);
    let clone = rig.scheduler.clone();
    let receivers: Vec<_> = (0..4)
        .map(|i| {
            let (job, receive, _slow) = slow_job(&format!("{i}"), &prompt, greedy(LONG));
            clone.submit(job).unwrap();
            receive
        })
        .collect();
    let first = next_tokens(&receivers[0], 2);
    drop(clone);
    assert_eq!(rig.scheduler.load().running, 2, "a clone is not the last");
    let weak = Arc::downgrade(&rig.engine);
    drop(rig);
    let rest: Vec<Event> = receivers[0].try_iter().collect();
    let Some(Event::Done(done)) = rest.last() else { panic!("{rest:?}") };
    assert_eq!((done.finish_reason, done.completion_tokens), (FinishReason::Abort, first.len() + rest.len() - 1));
    for receive in &receivers[1..] {
        assert_eq!(listen(receive).done.finish_reason, FinishReason::Abort);
    }
    assert_eq!(weak.strong_count(), 0, "the thread holds the engine");
}

/// A sink may call the scheduler, even drop it: it runs on the decode thread, which must not wait for itself.
#[test]
fn a_sink_may_use_the_scheduler() {
    let rig = rig(PLAIN, tight());
    let prompt = rig.encode("KING");
    let (mut a, _hear) = job("a", &prompt, greedy(5));
    let (send, receive) = channel();
    let mut scheduler = Some(rig.scheduler.clone());
    a.sink = Box::new(move |event| {
        if let Some(s) = scheduler.take() {
            s.pause(PauseMode::Wait);
            s.resume();
        }
        send.send(matches!(event, Event::Done(_))).is_ok()
    });
    rig.scheduler.submit(a).unwrap();
    drop(rig);
    assert!(receive.iter().any(|done| done));
}
