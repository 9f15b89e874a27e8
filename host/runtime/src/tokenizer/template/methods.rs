//! The methods of Python's texts, maps and lists, as templates call them. What is not here is the engine's own.

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::python::is_space;
use super::words;

/// Bytes of a text that a unit of fuel pays for.
const BYTES_PER_FUEL: usize = 16;

/// Calls a method that a value does not have by itself.
pub(super) fn call(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let done = match (value.kind(), value.as_str()) {
        (_, Some(text)) => text_method(state, text, method, args),
        (ValueKind::Map, _) => map_method(value, method, args),
        (ValueKind::Seq | ValueKind::Iterable, _) => list_method(value, method, args),
        _ => None,
    };
    done.unwrap_or_else(|| minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args))
}

type Done = Option<Result<Value, Error>>;

fn text_method(state: &State<'_, '_>, text: &str, method: &str, args: &[Value]) -> Done {
    Some(match method {
        "upper" => no_arguments(args, || text.to_uppercase()),
        "lower" => no_arguments(args, || text.to_lowercase()),
        "casefold" => no_arguments(args, || text.to_lowercase().replace('ß', "ss")),
        "swapcase" => no_arguments(args, || text.chars().map(swapped).collect::<String>()),
        "capitalize" => no_arguments(args, || words::capitalized(text)),
        "title" => no_arguments(args, || words::title(text)),
        "strip" => strip(text, args, true, true),
        "lstrip" => strip(text, args, true, false),
        "rstrip" => strip(text, args, false, true),
        "removeprefix" => one_text(args).map(|prefix| Value::from(text.strip_prefix(prefix).unwrap_or(text))),
        "removesuffix" => one_text(args).map(|suffix| Value::from(text.strip_suffix(suffix).unwrap_or(text))),
        "split" => split(text, args, false),
        "rsplit" => split(text, args, true),
        "splitlines" => splitlines(text, args),
        "partition" => partition(text, args, |text, sep| text.split_once(sep), false),
        "rpartition" => partition(text, args, |text, sep| text.rsplit_once(sep), true),
        "find" => position(text, args, false, false),
        "rfind" => position(text, args, true, false),
        "index" => position(text, args, false, true),
        "rindex" => position(text, args, true, true),
        "count" => within(text, args).map(|found| match found {
            // As Python: the empty text is between all characters.
            Some((part, "", _)) => Value::from(part.chars().count() + 1),
            Some((part, what, _)) => Value::from(part.matches(what).count()),
            None => Value::from(0),
        }),
        "startswith" => begins(text, args, |part, what| part.starts_with(what)),
        "endswith" => begins(text, args, |part, what| part.ends_with(what)),
        "zfill" => zfill(state, text, args),
        "ljust" => padded(state, text, args, |room| (0, room)),
        "rjust" => padded(state, text, args, |room| (room, 0)),
        "center" => center(state, text, args),
        "expandtabs" => expandtabs(state, text, args),
        // The engine writes it, however wide.
        "format" => {
            let widths = text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse::<usize>().ok());
            return pay(state, widths.fold(0, usize::saturating_add)).err().map(Err);
        }
        "isdecimal" | "isdigit" | "isnumeric" => no_arguments(args, || all(text, char::is_numeric)),
        "isidentifier" => no_arguments(args, || {
            let mut chars = text.chars();
            chars.next().is_some_and(|c| c.is_alphabetic() || c == '_')
                && chars.all(|c| c.is_alphanumeric() || c == '_')
        }),
        "isprintable" => no_arguments(args, || !text.chars().any(char::is_control)),
        "isspace" => no_arguments(args, || all(text, is_space)),
        "istitle" => no_arguments(args, || text.chars().any(char::is_alphabetic) && words::title(text) == text),
        _ => return None,
    })
}

fn map_method(map: &Value, method: &str, args: &[Value]) -> Done {
    // As lists, which have a length and can be indexed; Python's views have a length too.
    let entries = |of: &dyn Fn(Value) -> Result<Value, Error>| -> Result<Value, Error> {
        let () = from_args(args)?;
        let keys = map.try_iter()?.checked();
        Ok(Value::from(keys.map(|key| of(key?)).collect::<Result<Vec<_>, _>>()?))
    };
    Some(match method {
        "keys" => entries(&Ok),
        "values" => entries(&|key| map.get_item(&key)),
        "items" => entries(&|key| Ok(Value::from(Tuple::from([key.clone(), map.get_item(&key)?])))),
        "copy" => from_args(args).map(|()| map.clone()),
        _ => return None,
    })
}

fn list_method(list: &Value, method: &str, args: &[Value]) -> Done {
    let position = || -> Result<Value, Error> {
        let (what,): (&Value,) = from_args(args)?;
        for (i, entry) in list.try_iter()?.checked().enumerate() {
            if entry? == *what {
                return Ok(Value::from(i));
            }
        }
        Err(wrong(format!("{what} is not in the list")))
    };
    Some(match method {
        "index" => position(),
        "copy" => from_args(args).map(|()| list.clone()),
        _ => return None,
    })
}

fn no_arguments<T: Into<Value>>(args: &[Value], value: impl FnOnce() -> T) -> Result<Value, Error> {
    let () = from_args(args)?;
    Ok(value().into())
}

fn one_text(args: &[Value]) -> Result<&str, Error> {
    let (text,): (&str,) = from_args(args)?;
    Ok(text)
}

fn all(text: &str, of: fn(char) -> bool) -> bool {
    !text.is_empty() && text.chars().all(of)
}

fn swapped(c: char) -> char {
    let one = |mut chars: Box<dyn Iterator<Item = char>>| chars.next().unwrap_or(c);
    if c.is_uppercase() { one(Box::new(c.to_lowercase())) } else { one(Box::new(c.to_uppercase())) }
}

fn strip(text: &str, args: &[Value], start: bool, end: bool) -> Result<Value, Error> {
    let (chars,): (Option<&str>,) = from_args(args)?;
    let gone = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if start { text.trim_start_matches(gone) } else { text };
    Ok(Value::from(if end { text.trim_end_matches(gone) } else { text }))
}

fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (sep, most, named): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let sep = sep.or(named.get("sep")?).filter(|sep: &Value| !sep.is_none());
    let most = most.or(named.get("maxsplit")?).and_then(|most| usize::try_from(most).ok());
    named.assert_all_used()?;
    let most = most.unwrap_or(usize::MAX).saturating_add(1);
    let sep = match &sep {
        None => return Ok(Value::from(if from_right { words::rsplit(text, most) } else { words::split(text, most) })),
        Some(sep) => sep.as_str().ok_or_else(|| wrong(format!("a text is split at a text, not at {}", sep.kind())))?,
    };
    if sep.is_empty() {
        return Err(wrong("a text is not split at the empty text".to_owned()));
    }
    let mut parts: Vec<Value> = match from_right {
        false => text.splitn(most, sep).map(Value::from).collect(),
        true => text.rsplitn(most, sep).map(Value::from).collect(),
    };
    if from_right {
        parts.reverse();
    }
    Ok(Value::from(parts))
}

fn splitlines(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (keep, named): (Option<bool>, Kwargs) = from_args(args)?;
    let keep = keep.or(named.get("keepends")?).unwrap_or(false);
    named.assert_all_used()?;
    Ok(Value::from(words::lines(text, keep)))
}

type Once = for<'a> fn(&'a str, &'a str) -> Option<(&'a str, &'a str)>;

fn partition(text: &str, args: &[Value], once: Once, from_right: bool) -> Result<Value, Error> {
    let sep = one_text(args)?;
    if sep.is_empty() {
        return Err(wrong("a text is not split at the empty text".to_owned()));
    }
    let parts = match once(text, sep) {
        Some((before, after)) => [before, sep, after],
        None if from_right => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

/// The part of a text between `start` and `end` (characters; from the end where negative), what is looked for in it, and
/// where the part begins; none where it begins behind the end of the text.
fn within<'a>(text: &'a str, args: &'a [Value]) -> Result<Option<(&'a str, &'a str, usize)>, Error> {
    let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    Ok(part(text, start, end).map(|(part, start)| (part, what, start)))
}

fn part(text: &str, start: Option<i64>, end: Option<i64>) -> Option<(&str, usize)> {
    if start.is_none() && end.is_none() {
        return Some((text, 0));
    }
    let count = text.chars().count();
    let at = |place: i64| match usize::try_from(place) {
        Ok(place) => place,
        Err(_) => count.saturating_sub(place.unsigned_abs() as usize),
    };
    let (start, end) = (start.map_or(0, at), end.map_or(count, at).min(count));
    if start > end {
        return None;
    }
    let byte = |place: usize| text.char_indices().nth(place).map_or(text.len(), |(byte, _)| byte);
    Some((&text[byte(start)..byte(end)], start))
}

fn position(text: &str, args: &[Value], from_right: bool, must: bool) -> Result<Value, Error> {
    let found = within(text, args)?.and_then(|(part, what, start)| {
        let byte = if from_right { part.rfind(what) } else { part.find(what) };
        byte.map(|byte| start + part[..byte].chars().count())
    });
    match found {
        Some(at) => Ok(Value::from(at)),
        None if must => Err(wrong("the text does not have the part that is looked for".to_owned())),
        None => Ok(Value::from(-1)),
    }
}

fn begins(text: &str, args: &[Value], is: fn(&str, &str) -> bool) -> Result<Value, Error> {
    let (what, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
    let Some((part, _)) = part(text, start, end) else { return Ok(Value::from(false)) };
    if let Some(what) = what.as_str() {
        return Ok(Value::from(is(part, what)));
    }
    if !matches!(what.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Err(wrong(format!("a text begins or ends with a text, not with {}", what.kind())));
    }
    let mut found = false;
    for one in what.try_iter()?.checked() {
        let one = one?;
        let one =
            one.as_str().ok_or_else(|| wrong(format!("a text begins or ends with texts, not with {}", one.kind())));
        found |= is(part, one?);
    }
    Ok(Value::from(found))
}

/// Pays for a text that becomes longer, before it does.
fn pay(state: &State<'_, '_>, bytes: usize) -> Result<(), Error> {
    state.consume_fuel((bytes / BYTES_PER_FUEL) as u64)
}

/// How many characters a text lacks to a width.
fn room(state: &State<'_, '_>, text: &str, width: i64, fill: char) -> Result<usize, Error> {
    let room = usize::try_from(width).unwrap_or(0).saturating_sub(text.chars().count());
    pay(state, room.saturating_mul(fill.len_utf8()))?;
    Ok(room)
}

fn zfill(state: &State<'_, '_>, text: &str, args: &[Value]) -> Result<Value, Error> {
    let (width,): (i64,) = from_args(args)?;
    let zeros = "0".repeat(room(state, text, width, '0')?);
    let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
    Ok(Value::from(format!("{sign}{zeros}{digits}")))
}

fn padded(
    state: &State<'_, '_>,
    text: &str,
    args: &[Value],
    sides: impl FnOnce(usize) -> (usize, usize),
) -> Result<Value, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let mut fills = fill.unwrap_or(" ").chars();
    let (Some(fill), None) = (fills.next(), fills.next()) else {
        return Err(wrong("a text is filled up with one character".to_owned()));
    };
    let (left, right) = sides(room(state, text, width, fill)?);
    let run = |n: usize| std::iter::repeat_n(fill, n);
    Ok(Value::from(run(left).chain(text.chars()).chain(run(right)).collect::<String>()))
}

fn center(state: &State<'_, '_>, text: &str, args: &[Value]) -> Result<Value, Error> {
    let width = args.first().and_then(|width| i64::try_from(width.clone()).ok()).unwrap_or(0);
    // Which side gets the odd one depends on the width, in Python.
    padded(state, text, args, |room| {
        let left = room / 2 + (room & width as usize & 1);
        (left, room - left)
    })
}

fn expandtabs(state: &State<'_, '_>, text: &str, args: &[Value]) -> Result<Value, Error> {
    let (size, named): (Option<i64>, Kwargs) = from_args(args)?;
    let size = usize::try_from(size.or(named.get("tabsize")?).unwrap_or(8)).unwrap_or(0);
    named.assert_all_used()?;
    let (mut out, mut column) = (String::new(), 0);
    for c in text.chars() {
        match c {
            '\t' => {
                let spaces = if size == 0 { 0 } else { size - column % size };
                pay(state, spaces)?;
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            c => {
                out.push(c);
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    Ok(Value::from(out))
}

fn wrong(why: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}
