//! What each text guest comes to: in this process, and through the command line.

use patchhost::patch::{Limits, Stage, StageError};

use super::{child, inside, wat};

/// One text guest and what the host makes of it.
pub struct Case {
    /// The file in `guests/evil/wat`.
    pub name: &'static str,
    /// The stage or the call that refuses it; `nothing` if it is harmless.
    pub at: &'static str,
    /// Words that the error has.
    pub words: &'static [&'static str],
    /// The verb's exit code.
    pub code: i32,
    /// MiB that the policy lets it have.
    pub mib: u64,
}

/// Refused at a stage or in a call.
pub const fn case(name: &'static str, at: &'static str, words: &'static [&'static str]) -> Case {
    Case { name, at, words, code: 3, mib: 4 }
}

/// Refused by the audit.
pub const fn audit(name: &'static str, words: &'static [&'static str]) -> Case {
    Case { name, at: "audit", words, code: 1, mib: 0 }
}

/// Harmless, and run.
pub const fn harmless(name: &'static str) -> Case {
    Case { name, at: "nothing", words: &[], code: 0, mib: 4 }
}

impl Case {
    /// Whether it is a patch that a refit asks for scales. Others do no harm where nobody asks what they would lie about.
    pub fn asks_quant(&self) -> bool {
        wat::world_name(self.name) == "quant-patch"
    }

    /// The same with other memory.
    pub const fn mib(self, mib: u64) -> Self {
        Self { mib, ..self }
    }

    /// The same with another exit code.
    pub const fn code(self, code: i32) -> Self {
        Self { code, ..self }
    }
}

/// Tries all of a group in this process.
pub fn inside(cases: &[Case]) {
    each(cases, |case| {
        match (outcome(case.name), case.at) {
            (None, "nothing") => {}
            (None, expected) => panic!("nothing refuses it; `{expected}` should"),
            (Some((at, text)), expected) => {
                assert_eq!(at, expected, "{text}");
                assert!(text.contains("\n  why: ") && text.contains("\n  next: "), "not three parts: {text}");
                assert!(text.len() < 8192, "{} bytes of text", text.len());
                child::plain(case.name, &text);
                for word in case.words {
                    assert!(text.contains(word), "no `{word}` in {text}");
                }
            }
        }
        inside::host_lives();
    });
}

/// Tries all of a group through the command line.
pub fn through_the_command_line(cases: &[Case]) {
    let place = child::Place::new();
    each(cases, |case| {
        let (bytes, world) = (wat::guest(case.name), wat::world_name(case.name));
        if case.code == 0 {
            child::harmless(&place, case.name, world, &bytes, case.mib << 10);
        } else {
            child::refused(&place, case.name, world, &bytes, case.code, case.words, case.mib << 10);
        }
    });
}

/// All of them, whatever the first ones come to.
fn each(cases: &[Case], check: impl Fn(&Case)) {
    let failed = cases.iter().filter_map(|case| {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(case)));
        result.is_err().then_some(case.name)
    });
    let failed: Vec<_> = failed.collect();
    assert!(failed.is_empty(), "see above: {}", failed.join(", "));
}

/// Where a guest fails first, and with which words.
fn outcome(name: &str) -> Option<(String, String)> {
    let patch = match inside::load(name, wat::guest(name), Limits::default()) {
        Ok(patch) => patch,
        Err(error) => {
            let at = match &error {
                StageError::Start { call, .. } => (*call).to_string(),
                error if error.stage() == Stage::Audit => "audit".to_string(),
                error => error.stage().to_string(),
            };
            return Some((at, error.to_string()));
        }
    };
    // A patch without rows says so when it is asked for them: not what is tried here.
    inside::ask(&patch).into_iter().find_map(|(call, answer)| {
        let error = answer.err()?;
        let absent = call == "panel-scales" && !patch.hooks().contains(&patchhost::patch::Hook::BlockQuantRows);
        (!absent).then(|| (call.to_string(), error.to_string()))
    })
}
