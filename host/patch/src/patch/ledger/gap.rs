//! Events that could not be written: counted, said to whoever asks, and written down with the next record that can be.

use crate::base::text;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::SystemTime;

/// Names of events that are counted apart; the others are counted together.
const MOST_NAMES: usize = 32;
/// Longest reason.
const WHY_BYTES: usize = 300;

/// How a ledger fares.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Health {
    /// Whether the last record that was to be written was written.
    pub ok: bool,
    /// Why it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Events of this process that were not written; gap records say so in the ledger.
    pub lost: u64,
}

/// Events that are missing since the last record.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Gap {
    events: BTreeMap<String, u64>,
    since: String,
    why: String,
}

impl Gap {
    /// Of a first event that was not written.
    pub(super) fn begin(why: &str) -> Self {
        let since = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        Self { events: BTreeMap::new(), since, why: text::clean(&why.replace('\n', " "), WHY_BYTES) }
    }

    pub(super) fn add(&mut self, event: &str) {
        let event = text::clean(event, 64);
        let name =
            if self.events.len() < MOST_NAMES || self.events.contains_key(&event) { event } else { "…".into() };
        *self.events.entry(name).or_default() += 1;
    }

    pub(super) fn lost(&self) -> u64 {
        self.events.values().sum()
    }

    /// The fields of the record that says so.
    pub(super) fn fields(&self) -> Map<String, Value> {
        let fields = json!({ "lost": self.lost(), "events": self.events, "since": self.since, "why": self.why });
        match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }
    }

    /// As it is kept beside the ledger until that can be written: one line, for a process that dies meanwhile.
    pub(super) fn line(&self) -> String {
        format!("lost {} {}", self.lost(), self.since)
    }

    /// What an earlier process left there.
    pub(super) fn of_line(line: &str) -> Option<Self> {
        let (count, since) = line.trim().strip_prefix("lost ")?.split_once(' ')?;
        let count: u64 = count.parse().ok().filter(|count| *count > 0)?;
        let events = BTreeMap::from([("…".to_owned(), count)]);
        let why = "the process that could not write them ended before the ledger could be written again".to_owned();
        Some(Self { events, since: text::clean(since, 40), why })
    }
}
