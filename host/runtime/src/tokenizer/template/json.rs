//! `tojson` as transformers has it: Python's `json.dumps` with `ensure_ascii`, `indent`, `separators` and `sort_keys`.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::python;

/// Bytes of a text that a unit of fuel pays for.
const BYTES_PER_FUEL: usize = 4;
/// How deep a value may be nested. One that holds itself is deeper.
const MOST_DEPTH: usize = 200;

/// The filter.
pub(super) fn tojson(state: &State<'_, '_>, value: &Value, rest: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    if rest.len() > names.len() {
        return Err(wrong(format!("tojson takes at most {} arguments, and got {}", names.len(), rest.len())));
    }
    let argument = |at: usize| -> Result<Option<Value>, Error> {
        let by_name: Option<Value> = named.get(names[at])?;
        let given = rest.get(at).cloned().or(by_name);
        Ok(given.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let (ascii, indent, separators, sort) = (argument(0)?, argument(1)?, argument(2)?, argument(3)?);
    named.assert_all_used()?;
    let indent = indent.as_ref().map(Indent::of).transpose()?;
    // As `json.dumps`: lines need no space behind a comma.
    let commas = if indent.is_some() { "," } else { ", " };
    let (item, key) = match separators {
        None => (commas.to_owned(), ": ".to_owned()),
        Some(pair) => pair_of_texts(&pair)?,
    };
    let mut writer = Writer {
        state,
        out: String::new(),
        charged: 0,
        ascii: ascii.is_some_and(|v| v.is_true()),
        sort: sort.is_some_and(|v| v.is_true()),
        indent,
        item,
        key,
    };
    writer.value(value, 0)?;
    Ok(writer.out)
}

/// What stands before an entry on a line of its own, once for each level.
enum Indent {
    Spaces(usize),
    Text(String),
}

impl Indent {
    fn of(value: &Value) -> Result<Self, Error> {
        match value.as_str() {
            Some(text) => Ok(Self::Text(text.to_owned())),
            // Python counts `True` as 1, and takes what is below 0 as 0.
            None => match i64::try_from(value.clone()) {
                Ok(n) => Ok(Self::Spaces(usize::try_from(n.max(0)).unwrap_or(usize::MAX))),
                Err(_) => Err(wrong(format!("tojson takes a number or a text as indent, not {}", value.kind()))),
            },
        }
    }
}

fn pair_of_texts(pair: &Value) -> Result<(String, String), Error> {
    let both: Vec<Value> = pair.try_iter()?.collect();
    match both.iter().map(Value::as_str).collect::<Vec<_>>().as_slice() {
        [Some(item), Some(key)] => Ok(((*item).to_owned(), (*key).to_owned())),
        _ => Err(wrong("tojson takes two texts as separators".to_owned())),
    }
}

struct Writer<'a, 'template, 'env> {
    state: &'a State<'template, 'env>,
    out: String,
    /// Bytes of `out` that were paid for.
    charged: usize,
    ascii: bool,
    sort: bool,
    indent: Option<Indent>,
    item: String,
    key: String,
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MOST_DEPTH {
            return Err(wrong(format!("tojson of a value that is nested deeper than the limit of {MOST_DEPTH}")));
        }
        self.pay(0)?;
        match value.kind() {
            ValueKind::Undefined => Err(wrong("tojson of a value that is undefined".to_owned())),
            ValueKind::None => self.plain("null"),
            ValueKind::Bool => self.plain(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.plain(&number(value)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                self.plain("[")?;
                let mut empty = true;
                for entry in value.try_iter()?.checked() {
                    self.between(&mut empty, depth + 1)?;
                    self.value(&entry?, depth + 1)?;
                }
                self.closed("]", empty, depth)
            }
            ValueKind::Map => {
                let mut keys = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                if self.sort {
                    keys.sort();
                }
                self.plain("{")?;
                let mut empty = true;
                for key in keys {
                    self.between(&mut empty, depth + 1)?;
                    self.name(&key)?;
                    let colon = std::mem::take(&mut self.key);
                    let done = self.plain(&colon);
                    self.key = colon;
                    done?;
                    self.value(&value.get_item(&key)?, depth + 1)?;
                }
                self.closed("}", empty, depth)
            }
            other => Err(wrong(format!("tojson of {other}, which JSON does not have"))),
        }
    }

    /// What stands before an entry.
    fn between(&mut self, empty: &mut bool, depth: usize) -> Result<(), Error> {
        if !std::mem::take(empty) {
            let comma = std::mem::take(&mut self.item);
            let done = self.plain(&comma);
            self.item = comma;
            done?;
        }
        self.line(depth)
    }

    fn closed(&mut self, bracket: &str, empty: bool, depth: usize) -> Result<(), Error> {
        if !empty {
            self.line(depth)?;
        }
        self.plain(bracket)
    }

    fn line(&mut self, depth: usize) -> Result<(), Error> {
        let (text, times) = match &self.indent {
            None => return Ok(()),
            Some(Indent::Spaces(n)) => (" ", n.saturating_mul(depth)),
            Some(Indent::Text(text)) => (text.as_str(), depth),
        };
        self.state.consume_fuel((text.len().saturating_mul(times) / BYTES_PER_FUEL) as u64)?;
        self.out.push('\n');
        self.out.extend(std::iter::repeat_n(text, times));
        // The line is paid for.
        self.charged += text.len() * times;
        Ok(())
    }

    /// A key: as Python, numbers and truth values become texts.
    fn name(&mut self, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.text(key.as_str().unwrap_or_default()),
            ValueKind::None => self.text("null"),
            ValueKind::Bool => self.text(if key.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.text(&number(key)),
            other => Err(wrong(format!("tojson of a map whose key is {other}"))),
        }
    }

    fn plain(&mut self, text: &str) -> Result<(), Error> {
        self.pay(text.len())?;
        self.out.push_str(text);
        Ok(())
    }

    /// A text in quotes, with what JSON escapes and nothing else.
    fn text(&mut self, text: &str) -> Result<(), Error> {
        self.pay(text.len())?;
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // A String takes everything.
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
        Ok(())
    }

    /// Pays for what was written and for what comes next, before it is written.
    fn pay(&mut self, next: usize) -> Result<(), Error> {
        let due = (self.out.len() + next).saturating_sub(self.charged);
        self.state.consume_fuel((due / BYTES_PER_FUEL) as u64)?;
        self.charged += due / BYTES_PER_FUEL * BYTES_PER_FUEL;
        Ok(())
    }
}

fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(x) if x.is_nan() => "NaN".to_owned(),
        Ok(x) if x.is_infinite() => if x > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        Ok(x) => python::float(x),
        Err(_) => value.to_string(),
    }
}

fn wrong(why: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}
