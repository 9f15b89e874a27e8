//! One record: its canonical text, its hash, and its line.

use super::{Actor, LedgerError};
use crate::base::Digest;
use crate::base::text;
use serde::Serialize;
use serde_json::{Map, Number, Value};
use std::time::SystemTime;

/// Names that the ledger itself writes into each record; no event may bring a field of such a name.
pub const RESERVED: [&str; 6] = ["seq", "ts", "event", "actor", "prev", "hash"];

/// Longest line, line feed included. Longer ones are neither written nor read.
pub(super) const LINE_BYTES: usize = 1 << 20;
/// Deepest nesting of a field. The reader's parser ends at 128.
const DEPTH: usize = 32;
/// Longest name of an event.
const EVENT_BYTES: usize = 64;
/// What stands between the body of a line and its hash.
const HASH_MEMBER: &str = ",\"hash\":\"sha256:";
/// What stands after the hash.
const END: &str = "\"}";
/// Hex digits of a hash.
const HEX: usize = 64;

/// The first record of a ledger.
pub(super) const GENESIS: &str = "ledger.genesis";
/// The first record of every later file of a ledger.
pub(super) const CONTINUED: &str = "ledger.continued";

/// Says that events before it are missing, because they could not be written.
pub(super) const GAP: &str = "ledger.gap";

/// A record as it stands in the ledger.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// Its place in the chain, from 0.
    pub seq: u64,
    /// When, RFC 3339 with milliseconds, UTC.
    pub ts: String,
    /// What happened: `patch.staged`, `patch.refused`, …
    pub event: String,
    /// Who or what caused it.
    pub actor: String,
    /// What belongs to this event.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
    /// Hash of the record before.
    pub prev: Digest,
    /// Hash of this record.
    pub hash: Digest,
}

/// Makes the record that follows `prev`, and its line.
pub(super) fn seal(
    seq: u64,
    prev: Digest,
    event: &str,
    actor: &Actor,
    fields: Map<String, Value>,
) -> Result<(Entry, Vec<u8>), LedgerError> {
    let event = text::clean(event, EVENT_BYTES);
    if let Some(name) = fields.keys().find(|name| RESERVED.contains(&name.as_str())) {
        return Err(LedgerError::Reserved { event, name: name.clone() });
    }
    if fields.values().any(|value| !within(value, DEPTH)) {
        return Err(LedgerError::TooDeep { event, limit: DEPTH });
    }
    let fields: Map<String, Value> = fields.into_iter().map(|(name, value)| (name, plain(value))).collect();
    let ts = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let mut record = fields.clone();
    record.insert("seq".into(), seq.into());
    record.insert("ts".into(), ts.clone().into());
    record.insert("event".into(), event.clone().into());
    record.insert("actor".into(), actor.as_str().into());
    record.insert("prev".into(), prev.to_string().into());
    let body = canonical(&Value::Object(record));
    let hash = Digest::of(body.as_bytes());
    let mut line = body;
    line.pop(); // the last brace; the hash goes before it
    line.push_str(&format!("{HASH_MEMBER}{}{END}\n", hash.hex()));
    if line.len() > LINE_BYTES {
        return Err(LedgerError::TooLarge { event, bytes: line.len(), limit: LINE_BYTES });
    }
    let entry = Entry { seq, ts, event, actor: actor.as_str().to_owned(), fields, prev, hash };
    Ok((entry, line.into_bytes()))
}

/// Reads a line without its line feed. The error says what is wrong with it.
pub(super) fn open(line: &[u8]) -> Result<Entry, String> {
    let line = std::str::from_utf8(line).map_err(|error| format!("not UTF-8 at byte {}", error.valid_up_to()))?;
    let (body, stated) = split(line).ok_or("it does not end with the hash of a record")?;
    let hash = Digest::of(format!("{body}}}").as_bytes());
    if hash.hex() != stated {
        return Err(format!("the hash of its bytes is {hash}, it says sha256:{stated}"));
    }
    parse(line)
        .ok_or("it is no record: `seq`, `ts`, `event`, `actor` or `prev` is missing or of another type".to_owned())
}

/// A record read from its line, whether or not its hash is right. None: it is not a record at all.
pub(super) fn parse(line: &str) -> Option<Entry> {
    let mut record: Map<String, Value> = serde_json::from_str(line).ok()?;
    let seq = record.shift_remove("seq")?.as_u64()?;
    let mut take = |name: &str| match record.shift_remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    let (ts, event, actor) = (take("ts")?, take("event")?, take("actor")?);
    let (prev, hash) = (take("prev")?.parse().ok()?, take("hash")?.parse().ok()?);
    Some(Entry { seq, ts, event, actor, fields: record, prev, hash })
}

/// The body without its last brace, and the hex digits of the hash.
fn split(line: &str) -> Option<(&str, &str)> {
    let rest = line.strip_suffix(END)?;
    let (rest, hex) = rest.split_at_checked(rest.len().checked_sub(HEX)?)?;
    let body = rest.strip_suffix(HASH_MEMBER)?;
    hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')).then_some((body, hex))
}

fn within(value: &Value, depth: usize) -> bool {
    match (value, depth) {
        (Value::Array(_) | Value::Object(_), 0) => false,
        (Value::Array(items), _) => items.iter().all(|item| within(item, depth - 1)),
        (Value::Object(members), _) => members.values().all(|member| within(member, depth - 1)),
        _ => true,
    }
}

/// Floats that are whole numbers become integers, so that `1.0` and `1` are one text in every language.
fn plain(value: Value) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(x) if number.is_f64() && x.fract() == 0.0 && x.abs() < EXACT => Value::Number(Number::from(x as i64)),
            _ => Value::Number(number),
        },
        Value::Array(items) => items.into_iter().map(plain).collect(),
        Value::Object(members) => members.into_iter().map(|(name, member)| (name, plain(member))).collect(),
        other => other,
    }
}

/// The canonical text: sorted keys, no whitespace.
pub(in crate::patch) fn canonical(value: &Value) -> String {
    let mut out = String::new();
    write_canonical(value, &mut out);
    out
}

fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(members) => {
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_unstable_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
            out.push('{');
            for (i, (name, member)) in sorted.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                write_canonical(member, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        leaf => out.push_str(&leaf.to_string()),
    }
}
