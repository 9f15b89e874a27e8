//! The JSON object of a call, `{"name": …, "arguments": …}`, read while it arrives: the name is known as soon as its text ends,
//! and the arguments are given out as they are written.

/// What a piece of the object said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// The name, and the arguments that stood before it.
    Name(String),
    /// More of the arguments, as the model writes them.
    Arguments(String),
}

/// Where in the object the next character is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum At {
    /// Before it.
    #[default]
    Start,
    /// Before a key.
    Key,
    /// In a key, whose text has come so far.
    InKey(String),
    /// Behind a key.
    Colon(Field),
    /// Before a value.
    Value(Field),
    /// In a text, outside of brackets.
    Text(Field),
    /// In brackets, so deep; whether in a text there.
    Nested(Field, usize, bool),
    /// In a number or a word.
    Bare(Field),
    /// Behind the object.
    End,
    /// It is no object.
    Wrong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Name,
    Arguments,
    Other,
}

/// An object that arrives.
#[derive(Debug, Clone, Default)]
pub(super) struct Object {
    at: At,
    /// The last character of a text began an escape.
    escaped: bool,
    /// What came of a value that is not given out as it comes.
    raw: String,
    name: Option<String>,
    /// Arguments that came before the name.
    early: String,
}

impl Object {
    /// Whether the object has ended.
    pub(super) fn ended(&self) -> bool {
        self.at == At::End
    }

    /// Whether it is none, or one without a name.
    pub(super) fn failed(&self) -> bool {
        self.at == At::Wrong || (self.ended() && self.name.is_none())
    }

    /// Whether an end mark of the call here would be part of a text.
    pub(super) fn in_text(&self) -> bool {
        matches!(self.at, At::InKey(_) | At::Text(_) | At::Nested(_, _, true))
    }

    /// Whether its name is known.
    pub(super) fn named(&self) -> bool {
        self.name.is_some()
    }

    /// Takes one more character in.
    pub(super) fn push(&mut self, c: char, said: &mut Vec<Said>) {
        self.at = match std::mem::take(&mut self.at) {
            At::Start if c.is_whitespace() => At::Start,
            At::Start if c == '{' => At::Key,
            At::Start => At::Wrong,
            At::Key if c == '"' => At::InKey(String::new()),
            At::Key if c == '}' => At::End,
            At::Key => At::Key,
            At::InKey(mut key) => match self.ends_text(c) {
                false => {
                    key.push(c);
                    At::InKey(key)
                }
                true => At::Colon(match key.as_str() {
                    "name" => Field::Name,
                    "arguments" | "parameters" => Field::Arguments,
                    _ => Field::Other,
                }),
            },
            At::Colon(field) if c == ':' => At::Value(field),
            At::Colon(field) => At::Colon(field),
            At::Value(field) if c.is_whitespace() => At::Value(field),
            At::Value(field) => {
                self.value(field, c, said);
                match c {
                    '"' => At::Text(field),
                    '{' | '[' => At::Nested(field, 1, false),
                    '}' => At::End,
                    _ => At::Bare(field),
                }
            }
            At::Text(field) => {
                self.value(field, c, said);
                if self.ends_text(c) { self.done(field, said) } else { At::Text(field) }
            }
            At::Nested(field, depth, true) => {
                self.value(field, c, said);
                let inside = !self.ends_text(c);
                At::Nested(field, depth, inside)
            }
            At::Nested(field, depth, false) => {
                self.value(field, c, said);
                match (c, depth) {
                    ('"', _) => At::Nested(field, depth, true),
                    ('{' | '[', _) => At::Nested(field, depth + 1, false),
                    ('}' | ']', 1) => self.done(field, said),
                    ('}' | ']', _) => At::Nested(field, depth - 1, false),
                    _ => At::Nested(field, depth, false),
                }
            }
            At::Bare(field) if c == ',' || c.is_whitespace() => self.done(field, said),
            At::Bare(field) if c == '}' => {
                self.done(field, said);
                At::End
            }
            At::Bare(field) => {
                self.value(field, c, said);
                At::Bare(field)
            }
            ended @ (At::End | At::Wrong) => ended,
        };
    }

    /// Whether a character ends the text that it is in.
    fn ends_text(&mut self, c: char) -> bool {
        let ends = c == '"' && !self.escaped;
        self.escaped = c == '\\' && !self.escaped;
        ends
    }

    fn value(&mut self, field: Field, c: char, said: &mut Vec<Said>) {
        match (field, &self.name) {
            (Field::Arguments, Some(_)) => match said.last_mut() {
                Some(Said::Arguments(text)) => text.push(c),
                _ => said.push(Said::Arguments(c.to_string())),
            },
            (Field::Arguments, None) => self.early.push(c),
            (Field::Name, _) => self.raw.push(c),
            (Field::Other, _) => {}
        }
    }

    fn done(&mut self, field: Field, said: &mut Vec<Said>) -> At {
        if field == Field::Name && self.name.is_none() {
            // A name that is no text is none.
            let name: Option<String> = serde_json::from_str(&self.raw).ok();
            if let Some(name) = name.filter(|name| !name.is_empty()) {
                said.push(Said::Name(name.clone()));
                self.name = Some(name);
                if !self.early.is_empty() {
                    said.push(Said::Arguments(std::mem::take(&mut self.early)));
                }
            }
        }
        self.raw.clear();
        At::Key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Option<String>, String, Object) {
        let (mut object, mut said) = (Object::default(), Vec::new());
        text.chars().for_each(|c| object.push(c, &mut said));
        let mut name = None;
        let mut arguments = String::new();
        for one in said {
            match one {
                Said::Name(n) => name = Some(n),
                Said::Arguments(a) => arguments.push_str(&a),
            }
        }
        (name, arguments, object)
    }

    #[test]
    fn names_and_arguments_are_found_in_any_order() {
        let arguments = r#"{"a": "}\"{", "b": [1, {"c": "\\"}]}"#;
        for text in [
            format!("\n{{\"name\": \"f\", \"arguments\": {arguments}}}"),
            format!("{{\"arguments\":{arguments},\"name\":\"f\"}}"),
            format!("{{\"id\": 7, \"x\": [\"name\"], \"name\": \"f\", \"parameters\": {arguments}}} "),
        ] {
            let (name, read, object) = read(&text);
            assert_eq!((name.as_deref(), read.as_str(), object.ended()), (Some("f"), arguments, true), "{text}");
        }
    }

    #[test]
    fn bare_values_end_where_they_end() {
        let (name, arguments, object) = read("{\"name\": \"f\", \"arguments\": null}");
        assert_eq!((name.as_deref(), arguments.as_str(), object.ended()), (Some("f"), "null", true));
        let (name, arguments, object) = read("{\"arguments\": 12 , \"name\": \"\\u00e9\"}");
        assert_eq!((name.as_deref(), arguments.as_str(), object.ended()), (Some("é"), "12", true));
    }

    #[test]
    fn what_is_no_call_is_told() {
        for text in ["[1]", "f(x)", "{}", "{\"name\": 7}", "{\"name\": \"\"}", "{\"arguments\": {}}"] {
            let (name, _, object) = read(text);
            assert!(name.is_none() && object.failed(), "{text}");
        }
    }
}
