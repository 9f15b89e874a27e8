//! Values as Python writes them, `str` and `repr`.

use std::borrow::Cow;
use std::fmt::Write as _;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

/// How deep a value may be nested. One that holds itself is deeper.
const MOST_DEPTH: usize = 200;

/// A value as `str` writes it. What is undefined is nothing.
pub(super) fn text<'a>(state: &State<'_, '_>, value: &'a Value) -> Result<Cow<'a, str>, Error> {
    match value.as_str() {
        Some(text) => Ok(Cow::Borrowed(text)),
        None if value.is_undefined() => Ok(Cow::Borrowed("")),
        None => {
            let mut out = String::new();
            repr(state, value, &mut out, 0)?;
            Ok(Cow::Owned(out))
        }
    }
}

/// A value as `repr` writes it.
fn repr(state: &State<'_, '_>, value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    // A value can hold others again and again.
    state.consume_fuel(1)?;
    if depth > MOST_DEPTH {
        let why = format!("a value is nested deeper than the limit of {MOST_DEPTH}");
        return Err(Error::new(ErrorKind::InvalidOperation, why));
    }
    // Writing to a String does not fail.
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Number if !value.is_integer() => out.push_str(&float(f64::try_from(value.clone())?)),
        ValueKind::Seq | ValueKind::Iterable if value.len().is_some() => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.push(open);
            let mut count = 0;
            for entry in value.try_iter()?.checked() {
                if count > 0 {
                    out.push_str(", ");
                }
                repr(state, &entry?, out, depth + 1)?;
                count += 1;
            }
            if value.is_tuple() && count == 1 {
                out.push(',');
            }
            out.push(close);
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.checked().enumerate() {
                let key = key?;
                if i > 0 {
                    out.push_str(", ");
                }
                repr(state, &key, out, depth + 1)?;
                out.push_str(": ");
                repr(state, &value.get_item(&key)?, out, depth + 1)?;
            }
            out.push('}');
        }
        ValueKind::String => {
            let _ = write!(out, "{value:?}");
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
    Ok(())
}

/// A float as Python writes it: the shortest digits that give it back, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    if x == 0.0 || (1e-4..1e16).contains(&x.abs()) {
        return format!("{x:?}");
    }
    // Rust writes 1e-5 where Python writes 1e-05.
    let text = format!("{x:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(negative) => ('-', negative),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}

/// Whether Python's `str.strip` takes a character as a space.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (x, wanted) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (0.00001234, "1.234e-05"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-1.5e300, "-1.5e+300"),
            (5e-324, "5e-324"),
            (123456.789, "123456.789"),
            (f64::INFINITY, "inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(float(x), wanted);
        }
    }

    #[test]
    fn containers_are_written_as_repr_writes_them() {
        let value = Value::from(minijinja::value::Serde(
            serde_json::json!({ "a": [1, 2.5, null, true, "it's", "\"q\"\n"], "b": {} }),
        ));
        let env = minijinja::Environment::new();
        let state = env.empty_state();
        assert_eq!(text(&state, &value).unwrap(), r#"{'a': [1, 2.5, None, True, "it's", '"q"\n'], 'b': {}}"#);
        assert_eq!(text(&state, &Value::UNDEFINED).unwrap(), "");
    }
}
