//! Continuous batching. What every test compares with is `generate`, one request at a time.
//!
//! * `tokens`: the same tokens at any load, log-probabilities, stops, the prefix cache;
//! * `control`: pauses, aborts, limits, failures.

mod control;
mod tokens;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use patchhost::checkpoint::bundled;
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::generate::{Completion, Request, generate};
use patchhost_runtime::sampling::SamplingParams;
use patchhost_runtime::scheduler::{Done, Event, Job, SampleParams, Scheduler, SchedulerOptions, Started, Token};
use patchhost_runtime::tokenizer::Tokenizer;
use patchhost_runtime::weights::WeightSet;

use crate::oracle::hooks;

const PLAIN: &[&str] = &["moe_loader"];
const FP8: &[&str] = &["moe_loader", "fp8_block"];

/// A model, and a scheduler that runs what is published.
struct Rig {
    engine: Arc<Engine>,
    tokenizer: Arc<Tokenizer>,
    scheduler: Scheduler,
}

/// The bundled model.
fn rig(components: &[&str], options: SchedulerOptions) -> Rig {
    let engine = Engine::new(bundled::CONFIG, EngineOptions::default()).unwrap();
    engine.refit(&bundled::checkpoint().unwrap(), &hooks(components), &|_, _, _| {}).unwrap();
    rig_of(engine, options)
}

fn rig_of(engine: Engine, options: SchedulerOptions) -> Rig {
    let (engine, tokenizer) = (Arc::new(engine), Arc::new(bundled::tokenizer().unwrap()));
    let live = engine.clone();
    let weights = Arc::new(move |_: &str| live.live());
    let scheduler = Scheduler::start(engine.clone(), tokenizer.clone(), weights, options).unwrap();
    Rig { engine, tokenizer, scheduler }
}

/// Few and small, so that jobs meet in every way.
fn tight() -> SchedulerOptions {
    SchedulerOptions { max_num_seqs: 5, max_batched_tokens: 16, ..SchedulerOptions::default() }
}

fn greedy(max_tokens: usize) -> SampleParams {
    SampleParams { max_tokens, temperature: 0.0, ignore_eos: true, ..SampleParams::default() }
}

/// All that a job said.
struct Heard {
    started: Option<Started>,
    tokens: Vec<Token>,
    done: Done,
}

impl Heard {
    fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|t| t.token_id).collect()
    }

    fn text(&self) -> String {
        self.tokens.iter().map(|t| t.text.as_str()).chain([self.done.text_tail.as_str()]).collect()
    }
}

fn job(id: &str, prompt: &[u32], params: SampleParams) -> (Job, Receiver<Event>) {
    let (send, receive) = channel();
    let sink = Box::new(move |event| send.send(event).is_ok());
    (Job { id: id.to_string(), prompt: prompt.to_vec(), params, adapter: None, index: 0, sink }, receive)
}

/// A job whose receiver takes its time until the flag is cleared: on a busy machine too, what a test does after its first
/// tokens is done before its last.
fn slow_job(id: &str, prompt: &[u32], params: SampleParams) -> (Job, Receiver<Event>, Arc<AtomicBool>) {
    let (mut job, receive) = job(id, prompt, params);
    let slow = Arc::new(AtomicBool::new(true));
    let (flag, mut sink) = (slow.clone(), job.sink);
    job.sink = Box::new(move |event| {
        if flag.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
        sink(event)
    });
    (job, receive, slow)
}

/// The events of a job to its end, in their order.
fn listen(receive: &Receiver<Event>) -> Heard {
    let (mut started, mut tokens) = (None, Vec::new());
    loop {
        match receive.recv_timeout(Duration::from_secs(120)).expect("a job fell silent") {
            Event::Started(s) => {
                assert!(started.replace(s).is_none() && tokens.is_empty());
            }
            Event::Token(t) => {
                assert!(started.is_some());
                tokens.push(t);
            }
            Event::Done(done) => {
                assert!(receive.recv_timeout(Duration::from_secs(120)).is_err(), "an event after the last");
                assert_eq!(done.completion_tokens, tokens.len());
                let covered = done.weight_versions.iter().try_fold(0, |at, v| (v.start == at).then_some(v.end));
                assert_eq!(covered, Some(tokens.len()), "{:?}", done.weight_versions);
                return Heard { started, tokens, done };
            }
        }
    }
}

/// The next `n` tokens of a job.
fn next_tokens(receive: &Receiver<Event>, n: usize) -> Vec<Token> {
    let mut tokens = Vec::new();
    while tokens.len() < n {
        if let Event::Token(t) = receive.recv_timeout(Duration::from_secs(120)).unwrap() {
            tokens.push(t);
        }
    }
    tokens
}

impl Rig {
    fn run(&self, id: &str, prompt: &[u32], params: SampleParams) -> Heard {
        let (job, receive) = job(id, prompt, params);
        self.scheduler.submit(job).unwrap();
        listen(&receive)
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode(text).unwrap()
    }

    fn alone(&self, weights: &WeightSet, prompt: &[u32], params: &SampleParams) -> Completion {
        alone(&self.engine, weights, &self.tokenizer, prompt, params, 0)
    }

    fn refit(&self, components: &[&str]) -> Arc<WeightSet> {
        self.engine.refit(&bundled::checkpoint().unwrap(), &hooks(components), &|_, _, _| {}).unwrap();
        self.engine.live().unwrap()
    }
}

/// What `generate` gives as request `index`.
fn alone(
    engine: &Engine,
    weights: &WeightSet,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    params: &SampleParams,
    index: usize,
) -> Completion {
    let sampling = SamplingParams {
        temperature: params.temperature,
        top_k: params.top_k,
        top_p: params.top_p,
        min_p: params.min_p,
        seed: params.seed.unwrap_or_default(),
    };
    let request = Request {
        prompt: prompt.to_vec(),
        max_tokens: params.max_tokens,
        sampling,
        stop: params.stop.clone(),
        adapter: None,
    };
    let (mut done, _) =
        generate(engine.model(), weights, tokenizer, &vec![request; index + 1], &mut |_, _| {}).unwrap();
    done.pop().unwrap()
}

const TEXT: &str = "KING HENRY.\nWhat is it that you would have of me, my lord? The night is cold and the watch is \
                    set; let no man pass the gate until the morning comes, nor any word of this be spoken.\n\nEXETER.\n";
