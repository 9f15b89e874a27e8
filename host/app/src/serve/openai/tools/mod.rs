//! Tools: what a request says of them, and the calls in what the model writes.
//!
//! | file | what |
//! |---|---|
//! | [`choice`] | `tools`, `tool_choice` and `parallel_tool_calls` of a request |
//! | [`parser`] | which forms of calls are known, and which one a template teaches |
//! | [`calls`] | a text that arrives in pieces becomes content and calls |
//! | [`object`] | the JSON object of a call, while it arrives |
//! | [`thoughts`] | what the model thinks before it answers, taken out of the same text |
//! | [`answer`] | calls as OpenAI's answers and streams have them |

mod answer;
mod calls;
mod choice;
mod object;
mod parser;
mod thoughts;

pub use answer::{CallDelta, Listener, ToolCall, Whole, joined};
pub use choice::{Asked, Tool, Tools};
pub use parser::ToolParser;
pub use thoughts::{ReasoningParser, Thoughts};
