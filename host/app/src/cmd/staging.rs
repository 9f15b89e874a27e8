//! What is said while a candidate goes through its stages: of a server that was asked by a verb, and of the model in this
//! process. A component that is not in the cache is compiled first, which takes a while.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::admin_client::{Sent, ServerArgs};
use crate::base::Digest;
use crate::base::text::clean;

/// How often it is looked at.
const PERIOD: Duration = Duration::from_millis(400);
/// What is through in this time needs no line.
const SHORT: f64 = 1.0;
/// After how many seconds of one step it is said again.
const AGAIN: [f64; 4] = [10.0, 30.0, 60.0, 300.0];

/// Does `work`, which makes a server stage the component with this digest, and shows how far the server is: on a terminal
/// a line that changes, elsewhere a line for each step that takes long.
pub(super) fn shown<R>(server: &ServerArgs, sha256: &Digest, work: impl FnOnce() -> R) -> R {
    let (ends, ended) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let bar = std::io::stderr().is_terminal().then(spinner);
            let mut lines = Lines::default();
            while matches!(ended.recv_timeout(PERIOD), Err(RecvTimeoutError::Timeout)) {
                // Its own answer says what is wrong, if something is.
                let Ok(status) = server.ask("GET", "/admin/v1/status", Sent::Nothing) else { break };
                let Some(at) = At::of(&status, sha256) else { continue };
                match &bar {
                    Some(bar) => bar.set_message(format!("staging {}: {} ({:.0} s)", at.name, at.step, at.seconds)),
                    None => lines.say(std::slice::from_ref(&at)),
                }
            }
            bar.iter().for_each(ProgressBar::finish_and_clear);
        });
        let done = work();
        drop(ends);
        done
    })
}

fn spinner() -> ProgressBar {
    let style =
        ProgressStyle::with_template("{spinner} {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// How far a candidate is.
#[derive(Debug, Clone, PartialEq)]
struct At {
    name: String,
    sha256: String,
    step: String,
    step_seconds: f64,
    seconds: f64,
}

impl At {
    /// What the status of a server says about a component; of several, about the last one.
    fn of(status: &Value, sha256: &Digest) -> Option<Self> {
        let digest = sha256.to_string();
        let all = status.get("staging")?.as_array()?;
        let one = all.iter().rev().find(|one| one.get("sha256").and_then(Value::as_str) == Some(digest.as_str()))?;
        let text = |key: &str| clean(one.get(key).and_then(Value::as_str).unwrap_or_default(), 120);
        let number = |key: &str| one.get(key).and_then(Value::as_f64).unwrap_or_default();
        let (name, step) = (text("name"), text("step"));
        Some(Self { name, sha256: digest, step, step_seconds: number("step_seconds"), seconds: number("seconds") })
    }
}

/// Lines on standard error, each once.
#[derive(Default)]
struct Lines {
    /// How often each step of each candidate was mentioned.
    said: BTreeMap<(String, String), usize>,
}

impl Lines {
    fn say(&mut self, all: &[At]) {
        self.due(all).iter().for_each(|line| errln!("{line}"));
    }

    /// The lines that are due.
    fn due(&mut self, all: &[At]) -> Vec<String> {
        self.said.retain(|(sha256, _), _| all.iter().any(|at| at.sha256 == *sha256));
        let mut lines = Vec::new();
        for At { name, sha256, step, step_seconds, seconds } in all {
            let times = self.said.entry((sha256.clone(), step.clone())).or_default();
            let due = match *times {
                0 => *seconds >= SHORT,
                n => AGAIN.get(n - 1).is_some_and(|after| step_seconds >= after),
            };
            if due {
                *times += 1;
                lines.push(match *times {
                    1 => format!("staging {name}: {step}"),
                    _ => format!("staging {name}: {step}, for {step_seconds:.0} s now"),
                });
            }
        }
        lines
    }
}

/// Says how far candidates of the model in this process are, whoever brought them, until it is dropped.
#[cfg(any(feature = "serve", feature = "train"))]
pub(super) struct Reports {
    _ends: std::sync::mpsc::Sender<()>,
}

#[cfg(any(feature = "serve", feature = "train"))]
impl Reports {
    /// Begins. Where there is no thread to be had, nothing is said.
    pub(super) fn start(live: &std::sync::Arc<crate::live::LiveModel>) -> Self {
        let (ends, ended) = channel::<()>();
        let live = std::sync::Arc::downgrade(live);
        let said = std::thread::Builder::new().name("patchhost-reports".to_owned()).spawn(move || {
            let mut lines = Lines::default();
            while matches!(ended.recv_timeout(PERIOD), Err(RecvTimeoutError::Timeout)) {
                let Some(live) = live.upgrade() else { return };
                let at = |one: crate::live::Staging| At {
                    name: one.name,
                    sha256: one.sha256.to_string(),
                    step: one.step.to_string(),
                    step_seconds: one.step_seconds,
                    seconds: one.seconds,
                };
                lines.say(&live.staging().into_iter().map(at).collect::<Vec<_>>());
            }
        });
        if let Err(error) = said {
            tracing::warn!(%error, "nothing is said about candidates on their way");
        }
        Self { _ends: ends }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(step: &str, step_seconds: f64, seconds: f64) -> At {
        At { name: "big".into(), sha256: "d".into(), step: step.into(), step_seconds, seconds }
    }

    #[test]
    fn what_is_quick_is_not_mentioned_and_what_is_slow_not_too_often() {
        let mut lines = Lines::default();
        let mut due = |step: &str, step_seconds: f64, seconds: f64| lines.due(&[at(step, step_seconds, seconds)]);
        assert!(due("verify", 0.2, 0.2).is_empty());
        assert!(due("compile", 0.1, 0.6).is_empty());
        assert_eq!(due("compile", 0.5, 1.0), ["staging big: compile"]);
        assert!(due("compile", 9.9, 10.4).is_empty());
        assert_eq!(due("compile", 10.3, 10.8), ["staging big: compile, for 10 s now"]);
        assert!(due("compile", 11.0, 12.0).is_empty());
        assert_eq!(due("probe", 0.1, 13.0), ["staging big: probe"]);
        assert!(lines.due(&[]).is_empty() && lines.said.is_empty());
    }

    #[test]
    fn a_status_is_read_for_the_component_that_was_sent() {
        let digest = Digest::of(b"x");
        let status = serde_json::json!({ "staging": [
            { "name": "other", "sha256": Digest::of(b"y"), "step": "audit", "seconds": 1.0, "step_seconds": 1.0 },
            { "name": "x\u{1b}", "sha256": digest, "step": "compile", "seconds": 2.5, "step_seconds": 2.0 },
        ]});
        let seen = At::of(&status, &digest).expect("it is there");
        assert_eq!((seen.name.as_str(), seen.step.as_str(), seen.seconds), ("x\\u{1b}", "compile", 2.5));
        // A server of before has no such list.
        assert_eq!(At::of(&serde_json::json!({}), &digest), None);
    }
}
