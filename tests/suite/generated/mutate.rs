//! Damage: to bytes, and to JSON.

use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

/// One change: a flip, a splice of `other`, a cut, a number written longer or larger, parts that change places.
pub fn bytes(rng: &mut StdRng, bytes: &mut Vec<u8>, other: &[u8]) {
    if bytes.len() < 2 || other.is_empty() {
        bytes.push(rng.random());
        return;
    }
    let at = rng.random_range(0..bytes.len());
    let len = rng.random_range(1..=64usize);
    match rng.random_range(0..9) {
        0 => bytes[at] ^= 1 << rng.random_range(0..8),
        1 => bytes[at] = rng.random(),
        2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)],
        3 => bytes.truncate(at),
        4 => {
            let end = (at + len).min(bytes.len());
            bytes.drain(at..end);
        }
        5 => {
            let from = rng.random_range(0..other.len());
            let end = (from + len).min(other.len());
            bytes.splice(at..at, other[from..end].iter().copied());
        }
        6 => {
            // A LEB number one byte longer.
            bytes[at] |= 0x80;
            bytes.insert(at + 1, 0);
        }
        7 => {
            let end = (at + len).min(bytes.len());
            let part: Vec<u8> = bytes.drain(at..end).collect();
            let to = rng.random_range(0..=bytes.len());
            bytes.splice(to..to, part);
        }
        _ => {
            let end = (at + 4).min(bytes.len());
            bytes[at..end].fill(0xff);
        }
    }
}

/// One change of a value somewhere in a JSON text.
pub fn json(rng: &mut StdRng, value: &mut Value) {
    match value {
        Value::Object(map) if !map.is_empty() && rng.random_bool(0.85) => {
            let key = map.keys().nth(rng.random_range(0..map.len())).cloned().unwrap_or_default();
            match rng.random_range(0..10) {
                0 => drop(map.shift_remove(&key)),
                1 => {
                    let copy = map[&key].clone();
                    map.insert(format!("{key}\u{1b}[2J"), copy);
                }
                _ => json(rng, &mut map[&key]),
            }
        }
        Value::Array(items) if !items.is_empty() && rng.random_bool(0.85) => {
            let at = rng.random_range(0..items.len());
            match rng.random_range(0..8) {
                0 => drop(items.remove(at)),
                1 => items.push(items[at].clone()),
                _ => json(rng, &mut items[at]),
            }
        }
        Value::Number(number) if rng.random_bool(0.6) => {
            let n = number.as_u64().unwrap_or(1);
            *value = match rng.random_range(0..8) {
                0 => json!(0),
                1 => json!(n.wrapping_add(1)),
                2 => json!(n.wrapping_sub(1)),
                3 => json!(n.wrapping_mul(2)),
                4 => json!(-1),
                5 => json!(u64::MAX),
                6 => json!(1u64 << rng.random_range(0..63)),
                _ => json!(1e300),
            };
        }
        other => {
            *other = match rng.random_range(0..10) {
                0 => Value::Null,
                1 => json!(true),
                2 => json!(""),
                3 => json!("\u{1b}[2Jx\u{202e}"),
                4 => json!("x".repeat(5_000)),
                5 => json!([]),
                6 => json!({}),
                7 => json!(["a", 1, null]),
                8 => (0..200).fold(json!(1), |inner, _| json!([inner])),
                _ => json!(1.5),
            };
        }
    }
}
