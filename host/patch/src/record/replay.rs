//! All calls of a recording again, in their order, each answer beside the recorded one.

use super::compare::{Difference, Ending, compare};
use super::error::RecordingError;
use super::format::{Call, Event, Overview, Recording};
use crate::base::{Digest, Function};
use crate::call::{Answer, Outcome, PatchEntry, Put, Question};
use crate::patch::{Limits, Patch};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Calls that end in a fault where the recording has none, before a replay gives up: each may take all of its fuel.
const FAULTS: u64 = 3;

/// A recording, and who answers.
pub struct Replay<'a> {
    recording: &'a Recording,
    /// By the number of the recorded patch; several may share one.
    players: Vec<Player>,
    by_number: BTreeMap<u32, usize>,
}

/// A patch that answers recorded questions.
struct Player {
    patch: Arc<Patch>,
    put: Put,
    /// Refits by their numbers in the recording, and by those that this patch gave them.
    refits: Vec<(u64, u64)>,
}

impl Player {
    fn new(patch: Arc<Patch>) -> Self {
        let put = Put::new(patch.asked().clone());
        Self { patch, put, refits: Vec::new() }
    }

    /// Its answer, beside the recorded one. The error says why no host can have asked this.
    fn ask(&mut self, question: &Question, recorded: &Outcome) -> Result<Outcome, String> {
        let own =
            |recorded| self.refits.iter().find(|(number, _)| *number == recorded).map_or(u64::MAX, |(_, own)| *own);
        let got = self.put.put_as(question, question.watch().map(own))?;
        match (question, recorded, &got) {
            (Question::Begin { .. }, Ok(Answer::Begun(_, recorded)), Ok(Answer::Begun(_, own))) => {
                self.refits.push((*recorded, *own));
            }
            (Question::Forget { watch }, ..) => self.refits.retain(|(number, _)| number != watch),
            (Question::ImportState(_), ..) => self.refits.clear(),
            _ => {}
        }
        Ok(got)
    }
}

/// What a replay found.
#[derive(Debug, Serialize)]
pub struct ReplayReport {
    /// What was replayed.
    pub recording: Overview,
    /// Every patch of the recording that was called.
    pub patches: Vec<PatchReplay>,
    /// Sums over the patches.
    pub total: Count,
    /// Calls that were not asked again: there is no patch for them, or the replay gave up.
    pub skipped: u64,
    /// The first call that ended otherwise.
    pub first: Option<Difference>,
    /// The first call that failed: the same, unless a different answer came before it.
    pub failed: Option<Difference>,
}

/// One recorded patch beside the one that answered.
#[derive(Debug, Serialize)]
pub struct PatchReplay {
    /// Its number in the recording.
    pub number: u32,
    pub name: String,
    pub version: String,
    /// Digest of the component that was recorded.
    pub recorded_sha256: Digest,
    /// Name and digest of the one that answered; none: nobody did.
    pub answered_by: Option<(String, Digest)>,
    /// Whether settings or limits were others.
    pub other_settings: bool,
    /// Counts of each function.
    pub functions: BTreeMap<Function, Count>,
}

/// Counts of calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Asked again.
    pub calls: u64,
    /// With the same bits.
    pub identical: u64,
    /// With others.
    pub different: u64,
    /// That failed where the recorded one did not.
    pub failed: u64,
    /// Numbers in answers that are others.
    pub numbers: u64,
    /// The largest distance between two numbers.
    pub max_ulp: u64,
}

impl Count {
    fn add(&mut self, ending: &Ending) {
        self.calls += 1;
        match ending {
            Ending::Identical => self.identical += 1,
            Ending::Different(difference) => {
                self.different += 1;
                self.numbers += difference.numbers;
                self.max_ulp = self.max_ulp.max(difference.max_ulp);
            }
            Ending::Failed(_) => self.failed += 1,
        }
    }
}

impl<'a> Replay<'a> {
    /// Nobody answers yet.
    pub fn new(recording: &'a Recording) -> Self {
        Self { recording, players: Vec::new(), by_number: BTreeMap::new() }
    }

    /// `patch` answers for a recorded one. Refused if it lacks a hook that was called.
    pub fn answer_with(&mut self, entry: &PatchEntry, patch: &Arc<Patch>) -> Result<(), RecordingError> {
        let functions = self.recording.overview().functions.get(entry.number as usize);
        for function in functions.into_iter().flat_map(BTreeMap::keys) {
            let Some(hook) = function.hook() else { continue };
            if !patch.hooks().contains(&hook) {
                let component = patch.info().name.clone();
                return Err(RecordingError::NoHook { patch: entry.name.clone(), component, hook });
            }
        }
        // What remembers answers for itself only.
        let shared = self.players.iter().position(|p| Arc::ptr_eq(&p.patch, patch) && !patch.has_state());
        let at = shared.unwrap_or_else(|| {
            self.players.push(Player::new(Arc::clone(patch)));
            self.players.len() - 1
        });
        self.by_number.insert(entry.number, at);
        Ok(())
    }

    /// Asks everything again. `progress` is told how many calls are done.
    pub fn run(mut self, progress: &dyn Fn(u64)) -> Result<ReplayReport, RecordingError> {
        let mut report = self.report();
        let mut call = 0;
        let mut events = self.recording.events()?;
        while let Some(event) = events.next() {
            let Event::Call(asked) = event? else { continue };
            let function = asked.question.function();
            call += u64::from(function.is_some());
            let player = self.by_number.get(&asked.patch).and_then(|at| self.players.get_mut(*at));
            let Some(player) = player.filter(|_| report.total.failed < FAULTS) else {
                report.skipped += u64::from(function.is_some());
                continue;
            };
            let Call { patch, question, outcome } = &*asked;
            let got = player.ask(question, outcome).map_err(|why| events.damaged(&why))?;
            let Some(row) = report.patches.iter_mut().find(|row| row.number == *patch) else { continue };
            let ending = compare(call, &row.name, question, outcome, &got);
            if let Some(function) = function {
                row.functions.entry(function).or_default().add(&ending);
                report.total.add(&ending);
            }
            if let Ending::Failed(difference) = &ending
                && report.failed.is_none()
            {
                report.failed = Some((**difference).clone());
            }
            if let Ending::Different(difference) | Ending::Failed(difference) = ending
                && report.first.is_none()
            {
                report.first = Some(*difference);
            }
            if call.is_multiple_of(256) {
                progress(call);
            }
        }
        Ok(report)
    }

    fn report(&self) -> ReplayReport {
        let overview = self.recording.overview();
        let called = overview.patches.iter().zip(&overview.functions).filter(|(_, functions)| !functions.is_empty());
        let rows = called.map(|(entry, _)| {
            let by = self.by_number.get(&entry.number).and_then(|at| self.players.get(*at)).map(|player| &player.patch);
            let generation = by.map(|p| p.generation());
            let same_component = by.is_some_and(|p| *p.digest() == entry.sha256);
            PatchReplay {
                number: entry.number,
                name: crate::base::text::clean(&entry.name, 120),
                version: crate::base::text::clean(&entry.version, 60),
                recorded_sha256: entry.sha256,
                answered_by: by.map(|p| (p.info().name.clone(), *p.digest())),
                other_settings: match same_component {
                    true => generation != Some(entry.generation),
                    false => by.is_some_and(|p| p.settings() != entry.settings),
                },
                functions: BTreeMap::new(),
            }
        });
        ReplayReport {
            recording: overview.clone(),
            patches: rows.collect(),
            total: Count::default(),
            skipped: 0,
            first: None,
            failed: None,
        }
    }
}

impl PatchEntry {
    /// The limits that it had, at most twice the usual ones: a file must not say how much a replay may use. False: they
    /// are not those of the recording.
    pub fn bounded_limits(&self) -> (Limits, bool) {
        let usual = Limits::default();
        let recorded: Option<Map<String, Value>> = serde_json::from_str(&self.limits).ok();
        let (Some(recorded), Ok(Value::Object(mut limits))) = (recorded, serde_json::to_value(&usual)) else {
            return (usual, false);
        };
        let mut same = recorded.keys().all(|name| limits.contains_key(name));
        for (name, limit) in &mut limits {
            let most = limit.as_u64().unwrap_or(0).saturating_mul(2);
            match recorded.get(name).and_then(Value::as_u64) {
                Some(value) => {
                    same &= value <= most;
                    *limit = value.min(most).into();
                }
                None => same = false,
            }
        }
        match serde_json::from_value(Value::Object(limits)) {
            Ok(limits) => (limits, same),
            Err(_) => (usual, false),
        }
    }
}
