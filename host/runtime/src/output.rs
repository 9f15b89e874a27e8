//! The text of one sequence while its tokens arrive: stop texts, and what must be held back for them.

use crate::error::Result;
use crate::tokenizer::{TextStream, Tokenizer};

/// Texts that end a sequence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stops<'a> {
    /// The texts; empty ones end nothing.
    pub(crate) texts: &'a [String],
    /// Give out the one that ended the sequence too.
    pub(crate) include: bool,
}

/// What one token did to the text.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    /// Text that has become certain.
    pub(crate) text: String,
    /// The stop text that ended it, by its index.
    pub(crate) stopped_by: Option<usize>,
}

/// The text of one sequence.
#[derive(Debug, Default)]
pub(crate) struct Output {
    stream: TextStream,
    /// Text held back because a stop text may be starting in it.
    held: String,
}

impl Output {
    /// With the text of special tokens, or without.
    pub(crate) fn new(skip_special: bool) -> Self {
        Self { stream: TextStream::new(skip_special), held: String::new() }
    }

    /// One more token.
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, token: u32, stops: Stops<'_>) -> Result<Piece> {
        let piece = self.stream.push(tokenizer, token)?;
        self.held.push_str(&piece);
        let found = |(i, stop): (usize, &String)| Some((self.held.find(stop.as_str())?, i));
        let first = stops.texts.iter().enumerate().filter(|(_, s)| !s.is_empty()).filter_map(found).min();
        if let Some((at, i)) = first {
            self.held.truncate(if stops.include { at + stops.texts[i].len() } else { at });
            return Ok(Piece { text: std::mem::take(&mut self.held), stopped_by: Some(i) });
        }
        let certain = self.held.len() - partial_stop(&self.held, stops.texts);
        Ok(Piece { text: self.held.drain(..certain).collect(), stopped_by: None })
    }

    /// All that is left at the end, incomplete characters replaced.
    pub(crate) fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let rest = self.stream.finish(tokenizer)?;
        self.held.push_str(&rest);
        Ok(std::mem::take(&mut self.held))
    }
}

/// Length of the longest end of `text` that could be the start of a stop text.
fn partial_stop(text: &str, stops: &[String]) -> usize {
    let longest = |stop: &String| {
        stop.char_indices().map(|(i, _)| i).filter(|i| *i > 0 && text.ends_with(&stop[..*i])).max().unwrap_or(0)
    };
    stops.iter().map(longest).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::partial_stop;

    #[test]
    fn a_starting_stop_text_is_held_back() {
        let stops = vec!["END".to_string(), "é!".to_string()];
        assert_eq!(partial_stop("xxEN", &stops), 2);
        assert_eq!(partial_stop("xxé", &stops), 2);
        assert_eq!(partial_stop("xx", &stops), 0);
    }
}
