//! `--limit memory_bytes=32MiB`, and the `[limits]` of a policy.

use super::lock_fields;
use crate::base::nearest;
use crate::base::text::clean;
use crate::patch::Limits;
use serde_json::Value;

/// Sets one limit, and gives its name. The error says what would do.
pub fn set(limits: &mut Limits, text: &str) -> Result<String, String> {
    let (name, value) = text.split_once('=').ok_or("a limit is NAME=NUMBER, for example memory_bytes=32MiB")?;
    let mut fields = lock_fields(limits);
    if !fields.contains_key(name) {
        let hint = nearest(name, fields.keys().map(String::as_str)).map(|known| format!(" (did you mean `{known}`?)"));
        let known = fields.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(format!("`{}` is no limit{}; limits are {known}", clean(name, 60), hint.unwrap_or_default()));
    }
    let number = number(value)
        .ok_or_else(|| format!("`{}` is no whole number (KiB, MiB, GiB may follow it)", clean(value, 60)))?;
    fields.insert(name.to_owned(), number.into());
    let new: Limits = serde_json::from_value(Value::Object(fields)).map_err(|e| clean(&e.to_string(), 200))?;
    new.check()?;
    *limits = new;
    Ok(name.to_owned())
}

/// One limit's number, as text.
pub(super) fn get(limits: &Limits, name: &str) -> Option<String> {
    lock_fields(limits).get(name).map(Value::to_string)
}

/// The names of the limits in which two differ.
pub(super) fn differing(a: &Limits, b: &Limits) -> Vec<String> {
    let (a, b) = (lock_fields(a), lock_fields(b));
    a.iter().filter(|(name, value)| b.get(*name) != Some(value)).map(|(name, _)| name.clone()).collect()
}

/// These limits with those of `names` taken from `own`.
pub(super) fn with_own(base: &Limits, own: &Limits, names: &[String]) -> Limits {
    let (mut fields, own) = (lock_fields(base), lock_fields(own));
    for name in names {
        if let (Some(value), true) = (own.get(name), fields.contains_key(name)) {
            fields.insert(name.clone(), value.clone());
        }
    }
    serde_json::from_value(Value::Object(fields)).unwrap_or_else(|_| base.clone())
}

fn number(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    digits.replace('_', "").parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn limits_are_set_by_name() {
        let mut limits = Limits::default();
        assert_eq!(set(&mut limits, "memory_bytes=32MiB").unwrap(), "memory_bytes");
        set(&mut limits, "fuel_base=1_000").unwrap();
        assert_eq!((limits.memory_bytes, limits.fuel_base), (32 << 20, 1_000));
        assert_eq!(differing(&limits, &Limits::default()), ["memory_bytes", "fuel_base"]);
        let own = with_own(&Limits::default(), &limits, &["fuel_base".to_owned(), "none".to_owned()]);
        assert_eq!((own.memory_bytes, own.fuel_base), (64 << 20, 1_000));
        let before = limits.clone();
        for (text, why) in [
            ("memory_byte=1", "did you mean `memory_bytes`"),
            ("memory_bytes", "NAME=NUMBER"),
            ("memory_bytes=many", "no whole number"),
            ("memory_bytes=-1", "no whole number"),
            ("memory_bytes=1GB", "no whole number"),
            ("memory_bytes=18446744073709551615GiB", "no whole number"),
            ("memory_bytes=2GiB", "at most"),
            ("table_elements=1000000", "at most"),
        ] {
            let error = set(&mut limits, text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert_eq!(limits, before);
    }
}
