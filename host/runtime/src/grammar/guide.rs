//! Where one sequence stands in its grammar.

use std::collections::VecDeque;
use std::sync::Arc;

use llguidance::Matcher;
use toktrie::TokenId;

use super::compile::{Grammar, first_line};
use super::ending::{Quotes, ending};
use crate::caught::caught;
use crate::error::{Refusal, Result, RuntimeError};

/// Ways to the end that are tried at a step, besides the direct one.
const TRIES: u64 = 3;

/// A sequence that follows a grammar.
pub(crate) struct Guide {
    grammar: Arc<Grammar>,
    matcher: Matcher,
    quotes: Quotes,
    /// With fewer tokens left than this, each step makes sure that the answer can still become whole.
    watched: usize,
    /// A way to make it whole from here, where one is known.
    way: Option<VecDeque<TokenId>>,
}

impl Guide {
    pub(crate) fn new(grammar: &Arc<Grammar>) -> Self {
        // A step can make a way longer by what the grammar has of optional parts, which is bounded by its text; far from the
        // limit nobody needs to look.
        let watched = grammar.shortest.map_or(0, |shortest| 64 + 2 * grammar.bytes() + 2 * shortest);
        let matcher = grammar.matcher();
        Self { grammar: Arc::clone(grammar), matcher, quotes: Quotes::default(), watched, way: None }
    }

    /// Masks the tokens that cannot come next.
    pub(crate) fn mask(&mut self, row: &mut [f32]) -> Result<()> {
        let mask = caught(|| self.matcher.compute_mask_or_eos()).map_err(failed)?.map_err(failed)?;
        for (id, logit) in row.iter_mut().enumerate() {
            if id >= mask.len() || !mask.is_allowed(id as TokenId) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// The token that must come in place of `token`, because behind that one the answer could not become whole any more. `room`
    /// is how many tokens may still come, this one included.
    pub(crate) fn instead_of(&mut self, token: TokenId, room: usize) -> Result<Option<TokenId>> {
        if room > self.watched {
            self.way = None;
            return Ok(None);
        }
        if self.way.as_ref().and_then(|way| way.front()) == Some(&token) {
            return Ok(None);
        }
        let grammar = Arc::clone(&self.grammar);
        let vocabulary = &grammar.vocabulary;
        let quotes = |quotes: Quotes| grammar.is_json.then_some(quotes);
        caught(|| {
            let mut behind = self.matcher.clone();
            if behind.consume_token(token).is_err() {
                return None;
            }
            let after = self.quotes.after(vocabulary.trie().token(token));
            let way = ending(&behind, vocabulary, quotes(after), room.saturating_sub(1), TRIES);
            let way = way.filter(|way| way.len() < room);
            if let Some(mut way) = way {
                way.push_front(token);
                self.way = Some(way);
                return None;
            }
            if self.way.is_none() {
                self.way = ending(&self.matcher, vocabulary, quotes(self.quotes), room, TRIES);
            }
            let next = self.way.as_ref().filter(|way| way.len() <= room).and_then(|way| way.front().copied());
            if next.is_none() {
                // Looking is dear where nothing is found: the next time is when half of the room is left.
                self.watched = room / 2;
            }
            next
        })
        .map_err(failed)
    }

    /// Goes on behind `token`.
    pub(crate) fn take(&mut self, token: TokenId) -> Result<()> {
        caught(|| self.matcher.consume_token(token)).map_err(failed)?.map_err(failed)?;
        self.quotes = self.quotes.after(self.grammar.vocabulary.trie().token(token));
        let follows = self.way.as_mut().is_some_and(|way| way.pop_front() == Some(token));
        if !follows {
            self.way = None;
        }
        Ok(())
    }

    /// Whether the text is whole and nothing can follow.
    pub(crate) fn is_done(&self) -> bool {
        self.matcher.is_stopped()
    }
}

fn failed(error: impl std::fmt::Display) -> RuntimeError {
    let why = format!("it could not be followed: {}", first_line(&error.to_string()));
    RuntimeError::Request(Refusal::new("the grammar of this answer", why, "simplify the schema or the grammar"))
}
