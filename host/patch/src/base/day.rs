//! Days, as expiry dates are written: `2026-12-31`, in UTC.

use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A day in UTC. What is valid until a day is valid until that day ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(SystemTime);

impl Day {
    /// The day of a moment.
    pub fn of(moment: SystemTime) -> Self {
        let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs() / DAY.as_secs() * DAY.as_secs()))
    }

    /// Whether the day is over.
    pub fn is_over(self, now: SystemTime) -> bool {
        now.duration_since(self.0).is_ok_and(|since| since >= DAY)
    }

    /// Whole days from this day until `now`; 0 if it has not come yet.
    pub fn age(self, now: SystemTime) -> u64 {
        now.duration_since(self.0).map_or(0, |since| since.as_secs() / DAY.as_secs())
    }
}

/// A moment as records carry it: RFC 3339, UTC, seconds.
pub fn stamp(moment: SystemTime) -> String {
    humantime::format_rfc3339_seconds(moment).to_string()
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = humantime::format_rfc3339_seconds(self.0).to_string();
        f.pad(text.get(..10).unwrap_or(&text))
    }
}

impl fmt::Debug for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Day {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // humantime knows moments; a day is its first one.
        let day = (text.len() == 10).then(|| humantime::parse_rfc3339(&format!("{text}T00:00:00Z")).ok()).flatten();
        day.map(Self).ok_or_else(|| format!("`{}` is no day; write one like 2026-12-31", super::text::clean(text, 40)))
    }
}

impl Serialize for Day {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Day {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Day;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a day like 2026-12-31")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Day, E> {
                text.parse().map_err(E::custom)
            }

            // TOML has dates of its own: `not_after = 2026-12-31`.
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Day, A::Error> {
                let date = toml::value::Datetime::deserialize(MapAccessDeserializer::new(map))?;
                date.to_string().parse().map_err(serde::de::Error::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_day_lasts_until_it_is_over() {
        let day: Day = "2026-12-31".parse().unwrap();
        let at = |text: &str| humantime::parse_rfc3339(text).unwrap();
        assert!(!day.is_over(at("2026-12-30T12:00:00Z")));
        assert!(!day.is_over(at("2026-12-31T23:59:59Z")));
        assert!(day.is_over(at("2027-01-01T00:00:00Z")));
        assert_eq!(Day::of(at("2026-12-31T13:14:15Z")), day);
        assert_eq!(day.age(at("2027-01-02T01:00:00Z")), 2);
        assert_eq!(day.to_string(), "2026-12-31");
    }

    #[test]
    fn what_is_no_day_is_refused() {
        for text in ["", "2026-02-30", "2026-13-01", "31.12.2026", "2026-12-31T00:00:00Z", "2026-1-1", "0000000000"] {
            assert!(text.parse::<Day>().unwrap_err().contains("2026-12-31"), "{text}");
        }
    }

    #[test]
    fn text_and_dates_of_toml() {
        #[derive(Debug, Deserialize, Serialize)]
        struct File {
            day: Day,
        }
        for text in ["day = \"2026-12-31\"", "day = 2026-12-31"] {
            assert_eq!(toml::from_str::<File>(text).unwrap().day.to_string(), "2026-12-31", "{text}");
        }
        assert!(toml::from_str::<File>("day = 2026-12-31T10:00:00Z").is_err());
        assert!(toml::from_str::<File>("day = 20261231").unwrap_err().to_string().contains("a day like"));
    }
}
