//! Asking for text: what the dialects ([`super::openai`], [`super::vllm`], [`super::sglang`], [`super::trl`]) have in
//! common once their words are translated. A dialect reads its own JSON, builds [`SamplingParams`] and a [`Batch`], and
//! writes the sequences down in its own form; nothing in here knows a dialect.
//!
//! | file | what |
//! |---|---|
//! | [`sampling`] | how tokens are chosen, checked before the scheduler sees it |
//! | [`structured`] | answers by a schema, an expression or a grammar |
//! | [`unsupported`] | fields of other servers that are refused by name |
//! | [`messages`], [`conversation`], [`prompt`] | conversations, texts and token ids become tokens that the model can take |
//! | [`generation`] | the sequences of one request, as events or whole |
//! | [`sse`] | the same as a stream of server-sent events |
//! | [`logprobs`] | log probabilities as JSON numbers |
//! | [`provenance`] | which weights and patches made which tokens, and what ended them |

mod conversation;
mod generation;
mod logprobs;
mod messages;
mod prompt;
mod provenance;
mod sampling;
pub mod sse;
mod structured;
mod unsupported;

pub use conversation::Conversation;
pub use generation::{Batch, Limit, Output, Running};
pub use logprobs::{check_logprobs, number};
pub use messages::ChatMessage;
pub use prompt::{Prompt, check, check_bytes, check_choices, max_tokens};
pub use provenance::{Stopped, WeightVersion, weight_versions};
pub use sampling::{Asked, SamplingParams, Stop, cache_salt};
pub use structured::{ResponseFormat, Structure, StructuredOutputs};
pub use unsupported::{harmless, refuse};
