//! The way out. A model that talks on would use up its tokens in the middle of a text, and half of a JSON text is worth
//! nothing. So near its limit a sequence looks for a short way to the end of its grammar, and takes it when it must.

use std::collections::VecDeque;

use llguidance::Matcher;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use toktrie::TokenId;

use super::vocabulary::Vocabulary;

/// Longest way that is looked for, in tokens.
const LONGEST: usize = 1024;

/// A way that takes the same token so often is given up.
const STUCK: usize = 32;

/// Whether the text so far ends inside of a JSON string.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Quotes {
    inside: bool,
    escaped: bool,
}

impl Quotes {
    /// Behind these bytes too.
    pub(super) fn after(mut self, bytes: &[u8]) -> Self {
        for byte in bytes {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.inside => self.escaped = true,
                b'"' => self.inside = !self.inside,
                _ => {}
            }
        }
        self
    }
}

/// Bytes that close what is open, those that close most first; then those that begin what is short.
const OUTSIDE: &[u8] = b"}]\",:0tfn123456789[{-.";
/// Of them those that close or go on; behind these, dice take what may come.
const CLOSING: &[u8] = b"}]\",:";
/// The same inside of a string: its end, then what fills a pattern.
const INSIDE: &[u8] = b"\"0aA1-:.@TZ";

/// Tokens that make the text whole, the end token included; none where no way of at most `most` tokens was found. `quotes` are
/// those of JSON; other texts have none. `tries` is how many further ways are tried where the first leads nowhere.
pub(super) fn ending(
    from: &Matcher,
    vocabulary: &Vocabulary,
    quotes: Option<Quotes>,
    most: usize,
    tries: u64,
) -> Option<VecDeque<TokenId>> {
    let most = most.min(LONGEST);
    if let Some(way) = quotes.and_then(|quotes| walk(from, vocabulary, Some(quotes), None, most)) {
        return Some(way);
    }
    let mut best: Option<VecDeque<TokenId>> = None;
    for seed in 0..tries {
        let most = best.as_ref().map_or(most, |way| way.len().saturating_sub(1));
        let dice = StdRng::seed_from_u64(seed);
        best = walk(from, vocabulary, quotes, Some(dice), most).or(best);
    }
    best
}

/// One way: at each place the first of the bytes that close something; with dice any that may come, where nothing closes.
fn walk(
    from: &Matcher,
    vocabulary: &Vocabulary,
    mut quotes: Option<Quotes>,
    mut dice: Option<StdRng>,
    most: usize,
) -> Option<VecDeque<TokenId>> {
    let mut at = from.clone();
    let mut way = VecDeque::new();
    while way.len() <= most {
        if at.is_stopped() {
            return at.stop_reason().is_ok().then_some(way);
        }
        if at.is_accepting().ok()? {
            way.extend(vocabulary.end);
            return Some(way);
        }
        let forced = vocabulary.trie().greedy_tokenize(&at.compute_ff_bytes());
        let next = match forced.is_empty() {
            false => forced,
            true => vec![step(&mut at, vocabulary, quotes, dice.as_mut())?],
        };
        at.consume_tokens(&next).ok()?;
        for token in next {
            quotes = quotes.map(|quotes| quotes.after(vocabulary.trie().token(token)));
            way.push_back(token);
        }
        // `888.0000…` comes no nearer to a number above 888.
        if way.len() > STUCK && way.range(way.len() - STUCK..).all(|token| way.back() == Some(token)) && dice.is_none()
        {
            return None;
        }
    }
    None
}

fn step(
    at: &mut Matcher,
    vocabulary: &Vocabulary,
    quotes: Option<Quotes>,
    dice: Option<&mut StdRng>,
) -> Option<TokenId> {
    let closing = match (quotes, &dice) {
        (None, _) => &[],
        (Some(quotes), None) if quotes.inside => INSIDE,
        (Some(quotes), Some(_)) if quotes.inside => &INSIDE[..1],
        (Some(_), None) => OUTSIDE,
        (Some(_), Some(_)) => CLOSING,
    };
    for byte in closing {
        if let Some(token) = vocabulary.bytes[usize::from(*byte)]
            && at.validate_tokens(&[token]).ok()? == 1
        {
            return Some(token);
        }
    }
    let all = at.compute_mask().ok()?.to_list();
    let inside = quotes.is_none_or(|quotes| quotes.inside);
    // White space between the parts of JSON leads nowhere.
    let leads = |token: &TokenId| match vocabulary.trie().token(*token) {
        [byte] => inside || !byte.is_ascii_whitespace(),
        _ => false,
    };
    let singles: Vec<TokenId> = all.iter().copied().filter(leads).collect();
    let pick = if singles.is_empty() { all } else { singles };
    match dice {
        Some(dice) if !pick.is_empty() => Some(pick[dice.random_range(0..pick.len())]),
        _ => pick.first().copied(),
    }
}
