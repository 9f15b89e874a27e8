//! What is submitted, and the events that come back.

use std::sync::Arc;
use std::time::Instant;

use super::logprobs::TokenLogprob;
use super::params::SampleParams;
use crate::error::RuntimeError;
pub use crate::generate::FinishReason;
use crate::generate::TokenVersion;
use crate::lora::Adapter;

/// Takes the events of one job, in order. It is called from the decode thread and must not block: every sequence waits
/// for it. `false` means that the receiver is gone; the job ends without another event.
pub type Sink = Box<dyn FnMut(Event) -> bool + Send>;

/// One text to generate. A request for n samples is n jobs with the same id, submitted together.
pub struct Job {
    /// Id of the request. Jobs that are submitted together under one id run with the same weights; all jobs of an id are
    /// aborted together.
    pub id: String,
    /// Tokens of the prompt, at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub params: SampleParams,
    /// The adapter to run with.
    pub adapter: Option<Arc<Adapter>>,
    /// Which of the request's samples this is; with the seed it decides what is drawn.
    pub index: usize,
    /// Gets the events.
    pub sink: Sink,
}

/// What happens to a job: one `Started`, its `Token`s, one `Done`. A job that ends before its prompt is through has no
/// `Started`.
#[derive(Debug)]
pub enum Event {
    /// The prompt is through; the first token follows.
    Started(Started),
    /// One token.
    Token(Token),
    /// The end; nothing follows.
    Done(Done),
}

/// The prompt is through.
#[derive(Debug)]
pub struct Started {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// How many of them came from the prefix cache.
    pub cached_tokens: usize,
    /// One entry per prompt token, if asked for; the first token has none.
    pub prompt_logprobs: Option<Vec<Option<TokenLogprob>>>,
    /// What the job runs with; the range is empty.
    pub version: TokenVersion,
    /// When the job was submitted.
    pub queued_at: Instant,
    /// When it left the queue.
    pub admitted_at: Instant,
}

/// One token. The pieces of text of all tokens and [`Done::text_tail`], one after the other, are the whole text.
#[derive(Debug)]
pub struct Token {
    /// The token. An end token or a stop token is given too, as vLLM does; it has no text.
    pub token_id: u32,
    /// Text that has become certain; empty where it is half a character or may be the start of a stop text.
    pub text: String,
    /// Its log-probability, if asked for.
    pub logprob: Option<TokenLogprob>,
    /// When it was chosen.
    pub at: Instant,
}

/// How a job ended.
#[derive(Debug)]
pub struct Done {
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Which stop text or stop token ended it; none for the model's own end tokens.
    pub stop_reason: Option<StopReason>,
    /// Text that was held back when the job was aborted or failed.
    pub text_tail: String,
    /// Which weights, patches and adapter made which of the tokens.
    pub weight_versions: Vec<TokenVersion>,
    /// Tokens generated.
    pub completion_tokens: usize,
    /// Tokens of the prompt that came from the prefix cache.
    pub cached_tokens: usize,
    /// How many times its keys and values were dropped and computed anew.
    pub preempted: usize,
    /// What failed, where the reason is [`FinishReason::Error`].
    pub error: Option<RuntimeError>,
}

/// What ended a text.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum StopReason {
    /// One of the job's stop texts.
    Text(String),
    /// One of the job's stop tokens.
    Token(u32),
}

/// Why a job was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full.
    #[error(
        "request refused: it was not queued\n  why: {waiting} requests wait already, and the limit is {limit}\n  next: \
         try again later"
    )]
    Full {
        /// Jobs in the queue.
        waiting: usize,
        /// Most of them.
        limit: usize,
    },
    /// The job itself is wrong.
    #[error(transparent)]
    Invalid(#[from] RuntimeError),
    /// The scheduler is shutting down.
    #[error(
        "request refused: it was not queued\n  why: the server is shutting down\n  next: send it to another server"
    )]
    Stopped,
}
