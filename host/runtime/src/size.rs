//! JSON of others, measured before anything is made of it: a text of a megabyte can become a hundred of them.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// Most tensors of a file or an index, and most texts beside them. The largest known model has 140,000 tensors.
const MOST_TENSORS: u64 = 1 << 18;
/// Most values of a tensor's header entry, on average: dtype, the two ends, a shape.
const MOST_EACH: u64 = 16;

/// A JSON value, counted and not kept.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Size {
    /// Members of it itself.
    pub(crate) entries: u64,
    /// Values in it, at any depth.
    pub(crate) values: u64,
    /// Bytes of the longest text in it, names of members included.
    pub(crate) longest: u64,
}

impl Size {
    fn one() -> Self {
        Self { values: 1, ..Self::default() }
    }

    fn add(&mut self, inner: &Self) {
        self.entries += 1;
        self.values += inner.values;
        self.longest = self.longest.max(inner.longest);
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Count;
        impl<'de> Visitor<'de> for Count {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_bool<E>(self, _: bool) -> Result<Size, E> {
                Ok(Size::one())
            }
            fn visit_i64<E>(self, _: i64) -> Result<Size, E> {
                Ok(Size::one())
            }
            fn visit_u64<E>(self, _: u64) -> Result<Size, E> {
                Ok(Size::one())
            }
            fn visit_f64<E>(self, _: f64) -> Result<Size, E> {
                Ok(Size::one())
            }
            fn visit_unit<E>(self) -> Result<Size, E> {
                Ok(Size::one())
            }
            fn visit_str<E>(self, text: &str) -> Result<Size, E> {
                Ok(Size { longest: text.len() as u64, ..Size::one() })
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Size, A::Error> {
                let mut size = Size::one();
                while let Some(inner) = list.next_element::<Size>()? {
                    size.add(&inner);
                }
                Ok(size)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Size, A::Error> {
                let mut size = Size::one();
                while let Some((name, inner)) = map.next_entry::<Size, Size>()? {
                    size.add(&inner);
                    size.longest = size.longest.max(name.longest);
                }
                Ok(size)
            }
        }
        from.deserialize_any(Count)
    }
}

/// Refuses an index of shards that names more than any model has. What is no index is refused by its reader.
pub fn check_index(text: &str) -> Result<(), String> {
    #[derive(serde::Deserialize)]
    struct Index {
        #[serde(default)]
        metadata: Size,
        #[serde(default)]
        weight_map: Size,
    }
    let Ok(Index { metadata, weight_map }) = serde_json::from_str::<Index>(text) else { return Ok(()) };
    let named = if metadata.values > weight_map.values { ("metadata", metadata) } else { ("weight_map", weight_map) };
    match named {
        (name, size) if size.values > MOST_TENSORS + 1 => {
            Err(format!("its {name} has {} values, more than the limit of {MOST_TENSORS}", size.values - 1))
        }
        _ => Ok(()),
    }
}

/// Refuses a header of a safetensors file with more tensors, or larger entries, than any model has.
pub(crate) fn check_header(header: &[u8]) -> Result<(), String> {
    #[derive(serde::Deserialize)]
    struct Header {
        #[serde(default, rename = "__metadata__")]
        metadata: Size,
    }
    let Ok(size) = serde_json::from_slice::<Size>(header) else { return Ok(()) };
    let metadata = serde_json::from_slice::<Header>(header).map_or(0, |header| header.metadata.entries);
    if metadata > MOST_TENSORS {
        return Err(format!("its __metadata__ has {metadata} entries, more than the limit of {MOST_TENSORS}"));
    }
    let most = MOST_TENSORS * MOST_EACH;
    if size.entries > MOST_TENSORS {
        return Err(format!("its header names {} tensors, more than the limit of {MOST_TENSORS}", size.entries));
    }
    if size.values > most {
        return Err(format!("its header has {} values, more than the limit of {most}", size.values));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{check_header, check_index};

    #[test]
    fn what_has_more_than_any_model_is_refused() {
        let index = |n: usize| format!("{{\"weight_map\":{{{}\"z\":\"f\"}}}}", "\"a\":\"f\",".repeat(n));
        assert_eq!(check_index(&index(1000)), Ok(()));
        assert!(check_index(&index(1 << 18)).is_err_and(|why| why.contains("weight_map has 262145 values")));
        assert_eq!(check_index("no index"), Ok(()));
        let header =
            |shape: &str| format!("{{\"a\":{{\"dtype\":\"U8\",\"shape\":[{shape}1],\"data_offsets\":[0,1]}}}}");
        assert_eq!(check_header(header("1,").as_bytes()), Ok(()));
        assert!(
            check_header(header(&"1,".repeat(5 << 20)).as_bytes()).is_err_and(|why| why.contains("values, more than"))
        );
        let many = format!("{{{}\"z\":1}}", "\"a\":1,".repeat(1 << 18));
        assert!(check_header(many.as_bytes()).is_err_and(|why| why.contains("262145 tensors")));
    }
}
