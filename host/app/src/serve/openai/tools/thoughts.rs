//! What a model thinks before it answers, between `<think>` and `</think>`, taken out of its text under the names that vLLM has for
//! the forms (`--reasoning-parser`).

use std::fmt;
use std::str::FromStr;

const OPENS: &str = "<think>";
const CLOSES: &str = "</think>";

/// A form of thoughts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReasoningParser {
    /// An answer begins with thoughts, whether it says so or not: DeepSeek R1.
    DeepseekR1,
    /// An answer may begin with thoughts, and says so, in the prompt or by itself: Qwen 3.
    Qwen3,
}

impl ReasoningParser {
    /// All that are known.
    pub const ALL: [Self; 2] = [Self::DeepseekR1, Self::Qwen3];
}

impl fmt::Display for ReasoningParser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DeepseekR1 => "deepseek_r1",
            Self::Qwen3 => "qwen3",
        })
    }
}

impl FromStr for ReasoningParser {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|parser| parser.to_string() == name);
        let names = Self::ALL.map(|parser| parser.to_string()).join(", ");
        found.ok_or_else(|| format!("the reasoning parsers of this server are {names}"))
    }
}

/// Where in an answer the next piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before its first word.
    Start,
    Thoughts,
    Answer,
}

/// A text whose thoughts are taken out while it arrives.
#[derive(Debug, Clone)]
pub struct Thoughts {
    parser: ReasoningParser,
    at: At,
    /// What came and is not given out yet.
    held: String,
}

impl Thoughts {
    /// For the answer to a prompt, of which the last words are enough.
    pub fn behind(parser: ReasoningParser, prompt: &str) -> Self {
        let at = match (prompt.rfind(OPENS), prompt.rfind(CLOSES)) {
            (Some(open), close) if close.is_none_or(|close| close < open) => At::Thoughts,
            // Thoughts of turns before have words behind them.
            (_, Some(close)) if prompt[close + CLOSES.len()..].trim().is_empty() => At::Answer,
            _ => At::Start,
        };
        Self { parser, at, held: String::new() }
    }

    /// Takes a piece in: what has become certain of the thoughts, and of the answer.
    pub(super) fn hear(&mut self, text: &str) -> (String, String) {
        self.held.push_str(text);
        if self.at == At::Start {
            let begun = self.held.trim_start();
            if OPENS.starts_with(begun) {
                // Not known yet, the empty text included.
                if begun != OPENS {
                    return Default::default();
                }
            }
            match begun.strip_prefix(OPENS) {
                Some(thought) => {
                    self.held = thought.to_owned();
                    self.at = At::Thoughts;
                }
                None if self.parser == ReasoningParser::DeepseekR1 => self.at = At::Thoughts,
                None => self.at = At::Answer,
            }
        }
        if self.at == At::Answer {
            return (String::new(), std::mem::take(&mut self.held));
        }
        match self.held.find(CLOSES) {
            Some(end) => {
                self.at = At::Answer;
                let answer = self.held.split_off(end + CLOSES.len());
                self.held.truncate(end);
                (std::mem::take(&mut self.held), answer)
            }
            None => {
                let certain = self.held.len() - super::calls::partial(&self.held, CLOSES);
                (self.held.drain(..certain).collect(), String::new())
            }
        }
    }

    /// What is left at the end.
    pub(super) fn finish(&mut self) -> (String, String) {
        let rest = std::mem::take(&mut self.held);
        match self.at {
            At::Thoughts => (rest, String::new()),
            At::Start | At::Answer => (String::new(), rest),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(parser: ReasoningParser, prompt: &str, text: &str) -> (String, String) {
        let split = |pieces: &[&str]| {
            let mut thoughts = Thoughts::behind(parser, prompt);
            let mut all = (String::new(), String::new());
            for (thought, answer) in pieces.iter().map(|piece| thoughts.hear(piece)).collect::<Vec<_>>() {
                all.0.push_str(&thought);
                all.1.push_str(&answer);
            }
            let (thought, answer) = thoughts.finish();
            (all.0 + &thought, all.1 + &answer)
        };
        let whole = split(&[text]);
        for (at, _) in text.char_indices() {
            assert_eq!(split(&[&text[..at], &text[at..]]), whole, "cut at {at} of {text:?}");
        }
        let each: Vec<&str> = text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()]).collect();
        assert_eq!(split(&each), whole, "{text:?} character by character");
        whole
    }

    fn said(thoughts: &str, answer: &str) -> (String, String) {
        (thoughts.to_owned(), answer.to_owned())
    }

    #[test]
    fn thoughts_are_taken_out_however_they_arrive() {
        use ReasoningParser::{DeepseekR1, Qwen3};
        let text = "\n<think>\nHm, é </thin\n</think>\n\nWell.";
        for parser in [DeepseekR1, Qwen3] {
            assert_eq!(read(parser, "<|im_start|>assistant\n", text), said("\nHm, é </thin\n", "\n\nWell."));
            assert_eq!(read(parser, "assistant\n<think>\n", "Hm.</think>Well."), said("Hm.", "Well."));
            assert_eq!(read(parser, "assistant\n<think>\n\n</think>\n\n", "Well."), said("", "Well."));
            assert_eq!(read(parser, "<think>a</think>b<|user|>", "<think>c"), said("c", ""));
        }
        assert_eq!(read(DeepseekR1, "assistant\n", "Hm.</think>Well."), said("Hm.", "Well."));
        assert_eq!(read(Qwen3, "assistant\n", "Well </think> x"), said("", "Well </think> x"));
        assert_eq!(read(Qwen3, "assistant\n", " <thi"), said("", " <thi"));
    }

    #[test]
    fn names_are_those_of_vllm_and_others_are_refused_with_the_list() {
        for parser in ReasoningParser::ALL {
            assert_eq!(parser.to_string().parse::<ReasoningParser>().unwrap(), parser);
        }
        assert!("granite".parse::<ReasoningParser>().unwrap_err().contains("deepseek_r1, qwen3"));
    }
}
