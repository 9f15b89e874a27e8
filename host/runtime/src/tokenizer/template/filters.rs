//! Filters and tests of Jinja that the engine has not, or has otherwise.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, State, Value};

use super::{methods, python, source, words};

/// Bytes of a text that a unit of fuel pays for.
const BYTES_PER_FUEL: usize = 16;

/// Adds them.
pub(super) fn add(env: &mut Environment<'_>) {
    env.add_filter("default", default);
    env.add_filter("d", default);
    env.add_filter("string", string);
    env.add_filter(source::PERCENT, percent);
    env.add_filter("center", center);
    env.add_filter("wordcount", wordcount);
    env.add_filter("indent", indent);
    env.add_filter("truncate", truncate);
    env.add_test("iterable", is_iterable);
    env.add_test("sequence", is_sequence);
    env.add_test("integer", is_integer);
    env.add_test("callable", is_callable);
}

/// Jinja's `default`, with its arguments by name too.
fn default(value: &Value, other: Option<Value>, boolean: Option<bool>, named: Kwargs) -> Result<Value, Error> {
    let other = other.or(named.get("default_value")?).unwrap_or_else(|| Value::from(""));
    let boolean = boolean.or(named.get("boolean")?).unwrap_or(false);
    named.assert_all_used()?;
    Ok(if value.is_undefined() || (boolean && !value.is_true()) { other } else { value.clone() })
}

/// Whether Python goes through a value: not through `none`.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// Whether Python's `len` and `[]` work on a value.
fn is_sequence(value: &Value) -> bool {
    value.is_undefined()
        || matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
        || (value.kind() == ValueKind::Iterable && value.len().is_some())
}

/// `'text' % values`: one value, or a tuple of several.
fn percent(state: &mut State<'_, '_>, format: &Value, values: &Value) -> Result<Value, Error> {
    let mut args = vec![format.clone()];
    match values.is_tuple() {
        true => args.extend(values.try_iter()?),
        false => args.push(values.clone()),
    }
    state.apply_filter("format", &args)
}

/// A value as Python's `str` has it.
fn string(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    Ok(python::text(state, value)?.into_owned())
}

fn center(state: &mut State<'_, '_>, value: &Value, width: Option<i64>) -> Result<Value, Error> {
    methods::call(state, &Value::from(string(state, value)?), "center", &[Value::from(width.unwrap_or(80))])
}

fn wordcount(state: &State<'_, '_>, value: &Value) -> Result<usize, Error> {
    let text = python::text(state, value)?;
    Ok(text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty()).count())
}

/// Jinja's `indent`: by so many spaces or by a text, without the first line and empty ones.
fn indent(
    state: &State<'_, '_>,
    value: &Value,
    width: Option<Value>,
    first: Option<bool>,
    named: Kwargs,
) -> Result<String, Error> {
    let width = width.or(named.get("width")?).unwrap_or_else(|| Value::from(4));
    let first = first.or(named.get("first")?).unwrap_or(false);
    let blank = named.get::<Option<bool>>("blank")?.unwrap_or(false);
    named.assert_all_used()?;
    let text = python::text(state, value)?;
    let (unit, times) = match width.as_str() {
        Some(text) => (text, 1),
        None => (" ", usize::try_from(i64::try_from(width.clone())?).unwrap_or(0)),
    };
    let lines = words::lines(&format!("{text}\n"), false);
    state.consume_fuel((unit.len().saturating_mul(times).saturating_mul(lines.len() + 1) / BYTES_PER_FUEL) as u64)?;
    let before = unit.repeat(times);
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        let line = line.as_str().unwrap_or_default();
        if i > 0 {
            out.push('\n');
        }
        let indented = if i == 0 { first } else { blank || !line.is_empty() };
        if indented {
            out.push_str(&before);
        }
        out.push_str(line);
    }
    Ok(out)
}

/// Jinja's `truncate`: at the end of a word, unless it is told to cut words.
fn truncate(
    state: &State<'_, '_>,
    value: &Value,
    length: Option<usize>,
    kill: Option<bool>,
    named: Kwargs,
) -> Result<String, Error> {
    let length = length.or(named.get("length")?).unwrap_or(255);
    let kill = kill.or(named.get("killwords")?).unwrap_or(false);
    let end = named.get::<Option<String>>("end")?.unwrap_or_else(|| "...".to_owned());
    let leeway = named.get::<Option<usize>>("leeway")?.unwrap_or(5);
    named.assert_all_used()?;
    let text = python::text(state, value)?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.into_owned());
    }
    let kept: String = text.chars().take(length.saturating_sub(end.chars().count())).collect();
    let kept = if kill { kept.as_str() } else { kept.rsplit_once(' ').map_or(kept.as_str(), |(words, _)| words) };
    Ok(format!("{kept}{end}"))
}

fn is_integer(value: &Value) -> bool {
    value.is_integer()
}

fn is_callable(value: &Value) -> bool {
    value.kind() == ValueKind::Plain
}
