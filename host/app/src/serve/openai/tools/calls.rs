//! A text that arrives in pieces becomes content and calls. However it is cut into pieces, the calls are the same: what could
//! be the beginning of a mark is held back until it is known.

use super::object::{self, Object};
use super::parser::ToolParser;

/// What a piece of the text said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// Text that is no call.
    Content(String),
    /// A call begins.
    Call(String),
    /// More of its arguments, as JSON text.
    Arguments(String),
}

/// The marks of a form.
struct Marks {
    /// What calls begin with: all of them together, or one.
    opens: &'static [&'static str],
    /// What one call ends with.
    close: &'static str,
    /// What stands before the name, and behind it.
    around_name: (&'static str, &'static str),
    /// What stands around the arguments, where they are fenced.
    fence: Option<(&'static str, &'static str)>,
}

const HERMES: Marks = Marks { opens: &["<tool_call>"], close: "</tool_call>", around_name: ("", ""), fence: None };
const DEEPSEEK: Marks = Marks {
    opens: &["<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁calls▁end｜>"],
    close: "<｜tool▁call▁end｜>",
    around_name: ("<｜tool▁sep｜>", "\n"),
    fence: Some(("```json\n", "```")),
};
const DEEPSEEK_31: Marks = Marks { around_name: ("", "<｜tool▁sep｜>"), fence: None, ..DEEPSEEK };
/// The marks of DeepSeek's that stand around all calls and mean nothing by themselves.
const AROUND: [&str; 2] = ["<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"];

/// Where in the text the next piece is.
enum At {
    Content,
    /// In the object of a call; what came of it, until its name is known.
    Object(Object, String),
    /// Behind the object, before the mark that ends the call.
    Behind,
    /// Before a name, with what came of the call.
    Head(String),
    /// In the arguments; whether any came.
    Arguments(bool),
}

/// A text that arrives.
pub(super) struct Calls {
    marks: &'static Marks,
    at: At,
    /// What came and is not given out yet.
    held: String,
    /// A call was given out.
    called: bool,
    events: Vec<Event>,
    /// Arguments of the present call were given out.
    argued: bool,
}

impl Calls {
    pub(super) fn new(parser: ToolParser) -> Self {
        let marks = match parser {
            ToolParser::Hermes => &HERMES,
            ToolParser::DeepseekV3 => &DEEPSEEK,
            ToolParser::DeepseekV31 => &DEEPSEEK_31,
        };
        Self { marks, at: At::Content, held: String::new(), called: false, events: Vec::new(), argued: false }
    }

    /// Takes a piece in, and gives what has become certain.
    pub(super) fn push(&mut self, text: &str) -> Vec<Event> {
        self.held.push_str(text);
        while self.step() {}
        std::mem::take(&mut self.events)
    }

    /// What is left at the end.
    pub(super) fn finish(&mut self) -> Vec<Event> {
        while self.step() {}
        let rest = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.at, At::Content) {
            // Spaces behind a call say nothing.
            At::Content if self.called => self.content(rest.trim_end()),
            At::Content => self.content(&rest),
            At::Object(object, raw) if !object.named() => self.content(&format!("{}{raw}{rest}", self.marks.opens[0])),
            At::Head(raw) => self.content(&format!("{raw}{rest}")),
            At::Arguments(_) => {
                let rest = self.unfenced(&rest).to_owned();
                self.arguments(&rest);
            }
            At::Object(..) | At::Behind => {}
        }
        std::mem::take(&mut self.events)
    }

    /// One step; false where more has to come first.
    fn step(&mut self) -> bool {
        match std::mem::replace(&mut self.at, At::Content) {
            At::Content => self.in_content(),
            At::Object(object, raw) => self.in_object(object, raw),
            At::Behind => self.behind(),
            At::Head(raw) => self.in_head(raw),
            At::Arguments(any) => self.in_arguments(any),
        }
    }

    fn in_content(&mut self) -> bool {
        let first = self.marks.opens.iter().filter_map(|mark| Some((self.held.find(mark)?, *mark))).min();
        if let Some((at, mark)) = first {
            let text: String = self.held.drain(..at + mark.len()).collect();
            // Models write a line's end between what they say and the call.
            self.content(text[..at].trim_end());
            if !AROUND.contains(&mark) {
                self.argued = false;
                self.at = match self.marks.around_name.1 {
                    "" => At::Object(Object::default(), String::new()),
                    _ => At::Head(mark.to_owned()),
                };
            }
            return true;
        }
        let partial = self.marks.opens.iter().map(|mark| partial(&self.held, mark)).max().unwrap_or(0);
        let certain = self.held[..self.held.len() - partial].trim_end().len();
        let text: String = self.held.drain(..certain).collect();
        self.content(&text);
        false
    }

    fn in_object(&mut self, mut object: Object, mut raw: String) -> bool {
        let mut said = Vec::new();
        while !object.ended() && !object.failed() {
            let Some(c) = self.held.chars().next() else { break };
            // The mark that ends the call, where a model does not write its object to the end.
            if c == '<' && !object.in_text() {
                if self.held.starts_with(self.marks.close) {
                    break;
                }
                if self.marks.close.starts_with(&self.held) {
                    self.said(said);
                    self.at = At::Object(object, raw);
                    return false;
                }
            }
            self.held.drain(..c.len_utf8());
            if !object.named() {
                raw.push(c);
            }
            object.push(c, &mut said);
        }
        self.said(said);
        if self.held.starts_with(self.marks.close) || object.ended() || object.failed() {
            match object.named() {
                true => self.at = At::Behind,
                // It is no call: the text stands as it is.
                false => self.content(&format!("{}{raw}", self.marks.opens[0])),
            }
            return true;
        }
        self.at = At::Object(object, raw);
        false
    }

    fn behind(&mut self) -> bool {
        match self.held.find(self.marks.close) {
            Some(at) => {
                self.held.drain(..at + self.marks.close.len());
                self.ended();
                true
            }
            None => {
                // What stands between the object and the mark says nothing.
                let keep = partial(&self.held, self.marks.close);
                self.held.drain(..self.held.len() - keep);
                self.at = At::Behind;
                false
            }
        }
    }

    fn in_head(&mut self, raw: String) -> bool {
        let (before, after) = self.marks.around_name;
        let start = match before {
            "" => Some(0),
            mark => self.held.find(mark).map(|at| at + mark.len()),
        };
        let end = start.and_then(|start| self.held[start..].find(after).map(|end| (start, start + end)));
        let close = self.held.find(self.marks.close);
        match end {
            Some((start, end)) if close.is_none_or(|close| end < close) => {
                let name = self.held[start..end].trim().to_owned();
                self.held.drain(..end + after.len());
                self.events.push(Event::Call(name));
                self.called = true;
                self.at = At::Arguments(false);
                true
            }
            _ => match close {
                // A call without a name is none.
                Some(close) => {
                    let text: String = self.held.drain(..close + self.marks.close.len()).collect();
                    self.content(&format!("{raw}{text}"));
                    true
                }
                None => {
                    self.at = At::Head(raw);
                    false
                }
            },
        }
    }

    fn in_arguments(&mut self, mut any: bool) -> bool {
        if !any {
            let opens = self.marks.fence.map_or("", |(open, _)| open);
            let text = self.held.trim_start();
            if text.is_empty() || (text.len() < opens.len() && opens.starts_with(text)) {
                self.at = At::Arguments(false);
                return false;
            }
            let text = text.strip_prefix(opens).unwrap_or(text).to_owned();
            self.held = text;
            any = true;
        }
        if let Some(at) = self.held.find(self.marks.close) {
            let text: String = self.held.drain(..at + self.marks.close.len()).collect();
            let text = self.unfenced(&text[..at]).to_owned();
            self.arguments(&text);
            self.ended();
            return true;
        }
        let certain = self.held.len() - partial(&self.held, self.marks.close);
        let certain = self.unfenced(&self.held[..certain]).len();
        let certain = self.held[..certain].trim_end_matches('`').trim_end().len();
        let text: String = self.held.drain(..certain).collect();
        self.arguments(&text);
        self.at = At::Arguments(any);
        false
    }

    /// The arguments without the end of their fence.
    fn unfenced<'a>(&self, text: &'a str) -> &'a str {
        let text = text.trim_end();
        match self.marks.fence {
            Some((_, close)) => text.strip_suffix(close).unwrap_or(text).trim_end(),
            None => text,
        }
    }

    fn said(&mut self, said: Vec<object::Said>) {
        for one in said {
            match one {
                object::Said::Name(name) => {
                    self.called = true;
                    self.events.push(Event::Call(name));
                }
                object::Said::Arguments(text) => self.arguments(&text),
            }
        }
    }

    fn content(&mut self, text: &str) {
        if !text.is_empty() {
            self.events.push(Event::Content(text.to_owned()));
        }
    }

    fn arguments(&mut self, text: &str) {
        if !text.is_empty() {
            self.argued = true;
            self.events.push(Event::Arguments(text.to_owned()));
        }
    }

    /// A call has ended: one without arguments has none.
    fn ended(&mut self) {
        if !self.argued {
            self.arguments("{}");
        }
    }
}

/// Bytes at the end of a text that could be the beginning of a mark.
pub(super) fn partial(text: &str, mark: &str) -> usize {
    let starts = mark.char_indices().map(|(at, _)| at).filter(|at| *at > 0);
    starts.filter(|at| text.ends_with(&mark[..*at])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Content, and the calls with their arguments.
    type Read = (String, Vec<(String, String)>);

    fn read<'a>(parser: ToolParser, pieces: impl Iterator<Item = &'a str>) -> Read {
        let mut calls = Calls::new(parser);
        let mut events: Vec<Event> = pieces.flat_map(|piece| calls.push(piece)).collect();
        events.extend(calls.finish());
        let mut read = Read::default();
        for event in events {
            match (event, read.1.last_mut()) {
                (Event::Content(text), _) => read.0.push_str(&text),
                (Event::Call(name), _) => read.1.push((name, String::new())),
                (Event::Arguments(text), Some((_, arguments))) => arguments.push_str(&text),
                (Event::Arguments(text), None) => panic!("arguments {text} of no call"),
            }
        }
        read
    }

    /// The same of the text at once, in two pieces cut at every place, and character by character.
    fn read_all(parser: ToolParser, text: &str) -> Read {
        let whole = read(parser, std::iter::once(text));
        for (at, _) in text.char_indices() {
            assert_eq!(
                read(parser, [&text[..at], &text[at..]].into_iter()),
                whole,
                "{parser}: cut at {at} of {text:?}"
            );
        }
        let each = text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()]);
        assert_eq!(read(parser, each), whole, "{parser}: {text:?} character by character");
        for size in 2..9 {
            let chars: Vec<char> = text.chars().collect();
            let pieces: Vec<String> = chars.chunks(size).map(|c| c.iter().collect()).collect();
            assert_eq!(read(parser, pieces.iter().map(String::as_str)), whole, "{parser}: {text:?} in {size}s");
        }
        whole
    }

    fn said(content: &str, calls: &[(&str, &str)]) -> Read {
        (content.to_owned(), calls.iter().map(|(n, a)| ((*n).to_owned(), (*a).to_owned())).collect())
    }

    #[test]
    fn hermes_calls_are_read_however_they_arrive() {
        let read = |text: &str| read_all(ToolParser::Hermes, text);
        let paris = r#"{"city": "Paris é </tool_call> \" }", "n": [1, {}]}"#;
        let call = format!("<tool_call>\n{{\"name\": \"weather\", \"arguments\": {paris}}}\n</tool_call>");
        assert_eq!(read(&call), said("", &[("weather", paris)]));
        let two = format!("I look.\n\n{call}\n<tool_call>{{\"arguments\": {{}}, \"name\": \"now\"}}</tool_call>\n");
        assert_eq!(read(&two), said("I look.", &[("weather", paris), ("now", "{}")]));
        assert_eq!(read("<tool_call>{\"name\": \"now\"}</tool_call>"), said("", &[("now", "{}")]));
        assert_eq!(read(&format!("{call} done.")), said(" done.", &[("weather", paris)]));
    }

    #[test]
    fn text_that_is_no_call_stays_as_it_is() {
        for text in [
            "",
            " \n",
            "\n\nTo be, or not to be \n",
            "a < b <tool_cal <tool_ca",
            "<tool_call>f(x)</tool_call>",
            "<tool_call>{\"name\": 7}</tool_call> x",
            "<tool_call>{\"nam",
            "<tool_call>",
            "<tool_call></tool_call>",
        ] {
            assert_eq!(read_all(ToolParser::Hermes, text), said(text, &[]), "{text:?}");
        }
        for text in ["<｜tool▁sep｜> x", "a <｜tool", "plain ```json\n{}\n```"] {
            assert_eq!(read_all(ToolParser::DeepseekV3, text), said(text, &[]), "{text:?}");
            assert_eq!(read_all(ToolParser::DeepseekV31, text), said(text, &[]), "{text:?}");
        }
    }

    #[test]
    fn a_call_that_was_cut_has_the_arguments_that_came() {
        let cut = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"b";
        assert_eq!(read_all(ToolParser::Hermes, cut), said("", &[("f", "{\"a\": \"b")]));
        let open = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}</tool_call>x";
        assert_eq!(read_all(ToolParser::Hermes, open), said("x", &[("f", "{\"a\": 1}")]));
        let cut = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": `";
        assert_eq!(read_all(ToolParser::DeepseekV3, cut), said("", &[("f", "{\"a\": `")]));
    }

    #[test]
    fn calls_of_deepseek_are_read_however_they_arrive() {
        let (a, b) = (r#"{"city": "```\n Paris"}"#, r#"{"n": 1}"#);
        let v3 = |name: &str, arguments: &str| {
            format!("<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>")
        };
        let text =
            format!("Ich sehe nach.<｜tool▁calls▁begin｜>{}\n{}<｜tool▁calls▁end｜>", v3("weather", a), v3("now", b));
        assert_eq!(read_all(ToolParser::DeepseekV3, &text), said("Ich sehe nach.", &[("weather", a), ("now", b)]));
        let v31 = |name: &str, arguments: &str| {
            format!("<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>")
        };
        let text = format!("<｜tool▁calls▁begin｜>{}{}<｜tool▁calls▁end｜>", v31("weather", a), v31("now", ""));
        assert_eq!(read_all(ToolParser::DeepseekV31, &text), said("", &[("weather", a), ("now", "{}")]));
    }
}
