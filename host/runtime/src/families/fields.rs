//! What a family's config.json may leave out: the fields that are read, with the value that transformers 5.24 takes for each in its
//! config class of that family. `tests/oracle/make_defaults.py` writes those values down, and a test compares them.

use serde_json::Value;

/// What stands for a field that config.json leaves out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DefaultValue {
    /// A size that shapes of tensors depend on.
    Shape(u32),
    /// A size that they do not depend on.
    Count(u32),
    /// A number.
    Number(f64),
    /// A flag.
    Flag(bool),
    /// A word.
    Text(&'static str),
    /// Nothing: the family derives it, does without, or refuses its absence.
    Nothing,
}

/// A field that a family reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Field {
    /// Its name in config.json.
    pub name: &'static str,
    /// What stands for it where it is left out.
    pub default: DefaultValue,
    /// `null` is a value of its own; elsewhere it is the same as leaving the field out.
    pub nullable: bool,
}

impl Field {
    const fn new(name: &'static str, default: DefaultValue) -> Self {
        Self { name, default, nullable: false }
    }

    /// The same field where `null` means something else than its absence.
    pub(super) const fn or_null(self) -> Self {
        Self { nullable: true, ..self }
    }

    /// The default as config.json would have it.
    pub fn value(&self) -> Value {
        match self.default {
            DefaultValue::Shape(n) | DefaultValue::Count(n) => n.into(),
            DefaultValue::Number(x) => x.into(),
            DefaultValue::Flag(b) => b.into(),
            DefaultValue::Text(t) => t.into(),
            DefaultValue::Nothing => Value::Null,
        }
    }
}

pub(super) const fn shape(name: &'static str, default: u32) -> Field {
    Field::new(name, DefaultValue::Shape(default))
}

pub(super) const fn count(name: &'static str, default: u32) -> Field {
    Field::new(name, DefaultValue::Count(default))
}

pub(super) const fn number(name: &'static str, default: f64) -> Field {
    Field::new(name, DefaultValue::Number(default))
}

pub(super) const fn flag(name: &'static str, default: bool) -> Field {
    Field::new(name, DefaultValue::Flag(default))
}

pub(super) const fn text(name: &'static str, default: &'static str) -> Field {
    Field::new(name, DefaultValue::Text(default))
}

pub(super) const fn optional(name: &'static str) -> Field {
    Field::new(name, DefaultValue::Nothing)
}
