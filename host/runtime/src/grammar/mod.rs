//! Answers that are valid by a grammar: a JSON schema, a regular expression, a list of choices, a context-free grammar.
//!
//! The parser is llguidance's. Before each token it says which tokens of the vocabulary may come next; the others are masked in
//! the row of logits, before anything else looks at it. So log probabilities are those of the masked distribution, as in vLLM,
//! and a sequence without a grammar is computed as if there were none.
//!
//! | file | what |
//! |---|---|
//! | [`source`] | what a request asks for, and how it becomes a grammar of llguidance |
//! | [`gbnf`] | grammars written with `::=`, as llama.cpp and XGrammar read them |
//! | [`vocabulary`] | the bytes of each token, as a trie |
//! | [`compile`] | grammars, compiled once and kept |
//! | [`guide`] | where one sequence stands in its grammar |
//! | [`ending`] | the way out: how an answer becomes whole before its tokens are used up |

mod compile;
mod ending;
mod gbnf;
mod guide;
mod source;
#[cfg(test)]
mod tests;
mod vocabulary;

pub use compile::{Grammar, Grammars};
pub(crate) use guide::Guide;
pub use source::{Enclosed, Source};
