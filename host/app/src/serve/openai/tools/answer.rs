//! Calls as OpenAI's answers have them: whole, or in the pieces of a stream.

use serde::Serialize;
use utoipa::ToSchema;

use super::calls::{Calls, Event};
use super::choice::Tools;
use super::thoughts::Thoughts;

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ToolCall {
    /// Its id: the message that answers it names it.
    pub id: String,
    /// `function`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What is called.
    pub function: FunctionCall,
}

/// A function with its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FunctionCall {
    /// Its name.
    pub name: String,
    /// Its arguments, as the model wrote them: JSON, if it kept to the form.
    pub arguments: String,
}

/// A piece of a call in a stream: first its id and name, then pieces of its arguments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CallDelta {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: FunctionDelta,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

/// What a piece of the model's text said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// What the model thought, where that is taken out of the text.
    pub reasoning: Option<String>,
    /// Text that is no call.
    pub content: Option<String>,
    /// Pieces of calls.
    pub calls: Vec<CallDelta>,
}

/// An answer that was heard to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whole {
    /// What the model thought, where that is taken out of the text.
    pub reasoning: Option<String>,
    /// What it said; none where there are only calls.
    pub content: Option<String>,
    /// The tools that it calls.
    pub calls: Vec<ToolCall>,
}

/// Listens to the text of one answer.
pub struct Listener {
    /// None where thoughts stay in the text.
    thoughts: Option<Thoughts>,
    /// None where the text is taken as it is.
    calls: Option<Calls>,
    parallel: bool,
    /// Why an answer with calls ended.
    called: &'static str,
    count: usize,
}

impl Listener {
    /// A listener for thoughts, and for calls of these tools.
    pub fn new(tools: &Tools, thoughts: Option<&Thoughts>) -> Self {
        let calls = tools.parser().map(Calls::new);
        Self { thoughts: thoughts.cloned(), calls, parallel: tools.parallel(), called: tools.reason(), count: 0 }
    }

    /// Takes a piece of the text in.
    pub fn hear(&mut self, text: &str) -> Heard {
        match &mut self.thoughts {
            Some(thoughts) => {
                let (reasoning, answer) = thoughts.hear(text);
                Heard { reasoning: some(reasoning), ..self.answered(&answer) }
            }
            None => self.answered(text),
        }
    }

    /// What is left at the end of the text.
    pub fn end(&mut self) -> Heard {
        let (reasoning, answer) = self.thoughts.as_mut().map(Thoughts::finish).unwrap_or_default();
        let mut heard = self.answered(&answer);
        let events = self.calls.as_mut().map(Calls::finish).unwrap_or_default();
        let last = self.heard(events);
        heard.reasoning = some(reasoning);
        heard.content = joined([heard.content, last.content]);
        heard.calls.extend(last.calls);
        heard
    }

    fn answered(&mut self, text: &str) -> Heard {
        match &mut self.calls {
            Some(calls) => {
                let events = calls.push(text);
                self.heard(events)
            }
            None => Heard { content: some(text.to_owned()), ..Heard::default() },
        }
    }

    /// Why the answer ended, in OpenAI's words: one that called tools ended for that.
    pub fn reason(&self, reason: &'static str) -> &'static str {
        if self.count > 0 && reason == "stop" { self.called } else { reason }
    }

    fn heard(&mut self, events: Vec<Event>) -> Heard {
        let mut heard = Heard::default();
        for event in events {
            let new = matches!(event, Event::Call(_));
            self.count += usize::from(new);
            // Only one call was asked for: what comes behind it is left away.
            if !self.parallel && (self.count > 1 || (self.count == 1 && matches!(event, Event::Content(_)))) {
                continue;
            }
            let index = self.count.saturating_sub(1);
            match event {
                Event::Content(text) => heard.content.get_or_insert_default().push_str(&text),
                Event::Call(name) => heard.calls.push(CallDelta {
                    index,
                    id: Some(format!("chatcmpl-tool-{:032x}", rand::random::<u128>())),
                    kind: Some("function"),
                    function: FunctionDelta { name: Some(name), arguments: String::new() },
                }),
                Event::Arguments(text) => match heard.calls.last_mut().filter(|last| last.index == index) {
                    Some(last) if last.id.is_none() => last.function.arguments.push_str(&text),
                    _ => heard.calls.push(CallDelta {
                        index,
                        function: FunctionDelta { name: None, arguments: text },
                        ..CallDelta::default()
                    }),
                },
            }
        }
        heard
    }

    /// A whole text.
    pub fn whole(&mut self, text: &str) -> Whole {
        let (first, last) = (self.hear(text), self.end());
        let mut calls: Vec<ToolCall> = Vec::new();
        for delta in first.calls.into_iter().chain(last.calls) {
            match (delta.id, delta.function.name) {
                (Some(id), Some(name)) => {
                    let function = FunctionCall { name, arguments: delta.function.arguments };
                    calls.push(ToolCall { id, kind: "function", function });
                }
                _ => {
                    if let Some(call) = calls.get_mut(delta.index) {
                        call.function.arguments.push_str(&delta.function.arguments);
                    }
                }
            }
        }
        // OpenAI's content is null only where there are calls.
        let content = joined([first.content, last.content]).or_else(|| calls.is_empty().then(String::new));
        Whole { reasoning: joined([first.reasoning, last.reasoning]), content, calls }
    }
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// Two pieces of a text, of which each may be absent.
pub fn joined(pieces: [Option<String>; 2]) -> Option<String> {
    pieces.into_iter().flatten().reduce(|all, more| all + &more)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::super::parser::ToolParser;
    use super::super::thoughts::ReasoningParser;
    use super::*;

    const TEXT: &str = "Well.\n<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>\n\
                        <tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>";

    #[test]
    fn an_answer_with_calls_says_so() {
        let mut listener = Listener::new(&Tools::listening(ToolParser::Hermes, true), None);
        let Whole { content, calls, .. } = listener.whole(TEXT);
        assert_eq!(content.as_deref(), Some("Well."));
        let named: Vec<_> = calls.iter().map(|c| (c.function.name.as_str(), c.function.arguments.as_str())).collect();
        assert_eq!(named, [("f", "{\"a\": 1}"), ("g", "{}")]);
        assert!(calls[0].id.starts_with("chatcmpl-tool-") && calls[0].id != calls[1].id);
        assert_eq!((listener.reason("stop"), listener.reason("length")), ("tool_calls", "length"));
        let mut plain = Listener::new(&Tools::default(), None);
        assert_eq!(plain.whole(TEXT), Whole { content: Some(TEXT.to_owned()), ..Whole::default() });
        assert_eq!(plain.reason("stop"), "stop");
        let mut silent = Listener::new(&Tools::listening(ToolParser::Hermes, true), None);
        assert_eq!(silent.whole("").content.as_deref(), Some(""));
    }

    #[test]
    fn calls_in_thoughts_are_none() {
        let thoughts = Thoughts::behind(ReasoningParser::Qwen3, "assistant\n");
        let mut listener = Listener::new(&Tools::listening(ToolParser::Hermes, true), Some(&thoughts));
        let whole = listener.whole(&format!("<think>Say <tool_call>?</think>\n\n{TEXT}"));
        assert_eq!(whole.reasoning.as_deref(), Some("Say <tool_call>?"));
        assert_eq!((whole.content.as_deref(), whole.calls.len()), (Some("\n\nWell."), 2));
    }

    #[test]
    fn one_call_is_enough_where_only_one_was_asked_for() {
        let mut listener = Listener::new(&Tools::listening(ToolParser::Hermes, false), None);
        let Whole { content, calls, .. } = listener.whole(&format!("{TEXT} And more."));
        assert_eq!((content.as_deref(), calls.len()), (Some("Well."), 1));
    }

    #[test]
    fn a_stream_has_the_id_and_the_name_first() {
        let mut listener = Listener::new(&Tools::listening(ToolParser::Hermes, true), None);
        let mut deltas = Vec::new();
        for at in (0..TEXT.len()).step_by(7) {
            deltas.extend(listener.hear(&TEXT[at..TEXT.len().min(at + 7)]).calls);
        }
        deltas.extend(listener.end().calls);
        let first = serde_json::to_value(&deltas[0]).unwrap();
        assert_eq!(first["index"], 0);
        assert_eq!(first["function"], json!({ "name": "f", "arguments": "" }));
        assert!(first["id"].is_string() && first["type"] == "function");
        let second = serde_json::to_value(&deltas[1]).unwrap();
        assert!(second.get("id").is_none() && second["function"].get("name").is_none(), "{second}");
        assert_eq!(deltas.iter().filter(|d| d.id.is_some()).map(|d| d.index).collect::<Vec<_>>(), [0, 1]);
    }
}
