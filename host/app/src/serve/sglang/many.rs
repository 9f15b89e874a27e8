//! SGLang's way of giving a value: one for all prompts, or a list of one for each.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use utoipa::ToSchema;

use crate::serve::error::{ApiError, ApiResult};

/// A value for all prompts, or one for each.
#[derive(Debug, Clone)]
pub enum OneOrMany<T> {
    /// For all.
    One(T),
    /// For each.
    Many(Vec<T>),
}

impl<T: Clone> OneOrMany<T> {
    /// The value for prompt `i` of `n`. A list must have one value for each prompt.
    pub fn at(this: Option<&Self>, i: usize, n: usize, name: &str) -> ApiResult<Option<T>> {
        match this {
            None => Ok(None),
            Some(Self::One(value)) => Ok(Some(value.clone())),
            Some(Self::Many(all)) if all.len() == n => Ok(all.get(i).cloned()),
            Some(Self::Many(all)) => {
                let why = format!("it is a list of {}, and there are {n} prompts", all.len());
                Err(ApiError::bad(format!("`{name}`"), why, "give one value, or one for each prompt").param(name))
            }
        }
    }
}

/// Not derived as an untagged enum is: that reads a copy, and unknown fields of `sampling_params` would not be found.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader(PhantomData))
    }
}

struct Reader<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Reader<T> {
    fn plain<E: Error>(value: Value) -> Result<OneOrMany<T>, E> {
        T::deserialize(value).map(OneOrMany::One).map_err(E::custom)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
    type Value = OneOrMany<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one value, or a list of one for each prompt")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Self::plain(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        Self::plain(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Self::plain(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        Self::plain(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        Self::plain(value.into())
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Self::plain(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(OneOrMany::Many)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(OneOrMany::One)
    }
}

/// The same for the OpenAPI document.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "for the OpenAPI document: values are read as the type above")]
pub enum OneOrManyOf<T> {
    /// For all.
    One(T),
    /// For each.
    Many(Vec<T>),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> Result<OneOrMany<T>, serde_json::Error> {
        serde_json::from_str(&value.to_string())
    }

    #[test]
    fn one_value_or_a_list() {
        assert!(matches!(read::<bool>(json!(true)).unwrap(), OneOrMany::One(true)));
        assert!(matches!(read::<i64>(json!(-3)).unwrap(), OneOrMany::One(-3)));
        assert!(matches!(read::<u32>(json!([1, 2])).unwrap(), OneOrMany::Many(all) if all == [1, 2]));
        assert!(matches!(read::<Option<String>>(json!("a")).unwrap(), OneOrMany::One(Some(text)) if text == "a"));
        let some = read::<Option<String>>(json!([null, "a"])).unwrap();
        assert!(matches!(some, OneOrMany::Many(all) if all == [None, Some("a".to_string())]));
        assert!(matches!(read::<Vec<u32>>(json!([[1], [2, 3]])).unwrap(), OneOrMany::Many(all) if all.len() == 2));
        for wrong in [json!("x"), json!(-1), json!(1.5), json!({}), json!([1, "x"])] {
            assert!(read::<u32>(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
