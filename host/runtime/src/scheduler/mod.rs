//! Continuous batching: one thread runs forward passes over all sequences that are being generated; jobs come and go
//! between its steps.
//!
//! * [`handle`]: what callers hold: submit, abort, pause, resume, sleep;
//! * [`job`]: what is submitted, and the events that come back;
//! * [`params`]: how the tokens of one job are chosen;
//! * [`logprobs`]: log-probabilities of tokens, in the four modes of vLLM;
//! * [`pause`]: the ways to stop for new weights;
//! * [`load`]: what a metrics endpoint reads;
//! * `state`: what callers and the decode thread share;
//! * `worker`: the decode thread: its orders, admission, pauses, ends;
//! * `plan`: what one step computes: pieces of prompts, shared prefixes, the limit of memory;
//! * `step`: the forward passes of a step, one per set of weights;
//! * `sequence`: one sequence that is being generated;
//! * `choose`: from a row of logits to a token;
//! * `prefix`: the prefix cache.
//!
//! A sequence keeps the weights that it was admitted with; only a pause in mode `keep` or `retract` moves it to others.
//! With the same seed it gets the same tokens at any load.

mod choose;
pub mod handle;
pub mod job;
pub mod load;
pub mod logprobs;
pub mod params;
pub mod pause;
mod plan;
mod prefix;
mod sequence;
mod state;
mod step;
#[cfg(test)]
mod trials;
mod worker;

pub use handle::{Scheduler, SchedulerOptions, WeightsFor};
pub use job::{Done, Event, FinishReason, Job, Sink, Started, StopReason, SubmitError, Token};
pub use load::Load;
pub use logprobs::{LogprobsMode, TokenLogprob};
pub use params::SampleParams;
pub use pause::{PauseMode, Paused};
