//! Jobs of a schedule, and whether what they heard is right.

use std::sync::Arc;

use super::reference::{Ask, Log, Move, same};
use super::schedule::Trial;
use crate::scheduler::job::{Event, FinishReason};
use crate::weights::WeightSet;

/// What a receiver does at the event of this number.
#[derive(Debug, Clone)]
pub(super) enum Manner {
    Listens,
    Leaves(usize),
    Panics(usize),
    Aborts(usize, String),
}

/// A job that was taken.
pub(super) struct Case {
    pub(super) ask: Ask,
    pub(super) manner: Manner,
    pub(super) log: Log,
    pub(super) ticket: u64,
    pub(super) track: Option<Track>,
    /// How often everybody was aborted before it came.
    pub(super) aborts: usize,
    /// Events that it had when it was aborted between two turns.
    pub(super) aborted_at: Option<usize>,
}

/// A running sequence as it was after the last turn.
pub(super) struct Track {
    pub(super) start: Arc<WeightSet>,
    pub(super) now: Arc<WeightSet>,
    pub(super) moves: Vec<Move>,
    pub(super) held: usize,
    pub(super) generated: usize,
    pub(super) preempted: usize,
    pub(super) mixed: bool,
    pub(super) started: bool,
}

impl Trial {
    /// Its end has a reason, and all of it is what the same request says alone.
    pub(super) fn check_case(&self, case: &Case) {
        let heard = case.log.lock().unwrap();
        let what = || format!("{:?} {:?}\nheard: {heard:#?}", case.ask, case.manner);
        assert!(ended(&case.manner, &heard), "it has no end: {}", what());
        let started = heard.iter().find_map(|e| if let Event::Started(s) = e { Some(s) } else { None });
        let done = heard.last().and_then(|e| if let Event::Done(d) = e { Some(d) } else { None });
        let tokens = heard.iter().filter(|e| matches!(e, Event::Token(_))).count();
        let error = done.and_then(|d| d.error.as_ref()).map(ToString::to_string);
        let lost = error.is_some_and(|e| e.contains("no weights"));
        if let Some(started) = started {
            let most = if case.ask.params.prompt_logprobs.is_some() || self.options.prefix_cache_bytes == 0 {
                0
            } else {
                case.ask.prompt.len() - 1
            };
            assert!(started.cached_tokens <= most, "{}", what());
        }
        if let Some(at) = case.aborted_at.filter(|_| done.is_some()) {
            assert!(
                heard.len() == at + 1 && done.is_some_and(|d| d.finish_reason == FinishReason::Abort),
                "{}",
                what()
            );
        }
        match done.map(|d| d.finish_reason) {
            Some(FinishReason::Abort) => {
                let named = self.aborted.lock().unwrap().contains(&case.ask.id);
                assert!(named || self.aborts > case.aborts, "nobody aborted it: {}", what());
            }
            Some(FinishReason::Error) if lost => {
                assert!(self.failed_once && case.ask.id.starts_with("lost"), "{}", what());
            }
            _ => {}
        }
        // The label of what it ended with; it may have been moved in its last turn.
        let fresh_start = started.filter(|_| case.track.as_ref().is_none_or(|t| !t.started));
        let last = done.and_then(|d| d.weight_versions.last()).or(fresh_start.map(|s| &s.version));
        let by_label = |label: &str| {
            let all = self.kind.sets.iter().chain(&self.fresh);
            all.into_iter().find(|set| set.label() == label).unwrap().clone()
        };
        let last = last.map(|v| by_label(&v.version));
        let (start, mut moves) = match &case.track {
            Some(track) => (track.start.clone(), track.moves.clone()),
            None => (started.map_or(self.kind.sets[0].clone(), |s| by_label(&s.version.version)), Vec::new()),
        };
        if let (Some(track), Some(last)) = (&case.track, last)
            && (tokens > track.generated || fresh_start.is_some())
        {
            moves.extend(track.next(&last, done.map_or(track.preempted, |d| d.preempted)));
        }
        let (until, cut) = match done.map(|d| d.finish_reason) {
            Some(FinishReason::Stop | FinishReason::Length) => (usize::MAX, FinishReason::Length),
            Some(FinishReason::Error) if !lost => (usize::MAX, FinishReason::Error),
            Some(reason) => (tokens, reason),
            None => (tokens.max(1), FinishReason::Abort),
        };
        let alone = case.ask.alone(self.kind, &start, &moves, until, cut);
        // Whose receiver went away in the turn in which it was moved, of its last token nobody knows the weights.
        let known = if done.is_none() { heard.len() - 1 } else { heard.len() };
        let equal = heard.iter().zip(&alone).take(known).all(|(heard, alone)| same(heard, alone));
        let whole = done.is_none() || heard.len() == alone.len();
        let moved = || moves.iter().map(|m| (m.generated, m.kept, m.weights.label())).collect::<Vec<_>>();
        assert!(equal && whole && heard.len() <= alone.len(), "{}\nalone: {alone:#?}\nmoves: {:?}", what(), moved());
    }
}

impl Track {
    /// Whether it was moved since, or its mixed keys and values were computed anew.
    pub(super) fn next(&self, weights: &Arc<WeightSet>, preempted: usize) -> Option<Move> {
        let (changed, dropped) = (weights.id() != self.now.id(), preempted != self.preempted);
        let kept = (!dropped && self.held > 0).then_some(self.held);
        (changed || (dropped && self.mixed)).then(|| Move { generated: self.generated, weights: weights.clone(), kept })
    }
}

/// Whether the receiver heard the end, or went away before.
pub(super) fn ended(manner: &Manner, log: &[Event]) -> bool {
    let done = log.iter().position(|e| matches!(e, Event::Done(_)));
    match manner {
        Manner::Leaves(at) | Manner::Panics(at) if log.len() > *at => {
            assert_eq!(log.len(), at + 1, "an event for a receiver that went away");
            true
        }
        _ => done.is_some_and(|at| {
            assert_eq!(at + 1, log.len(), "an event after the last");
            true
        }),
    }
}
