//! Two outcomes of one question, bit for bit, and where they part.

use crate::base::Function;
use crate::base::text;
use crate::call::{Answer, Outcome, Question};
use patchhost_runtime::hooks::{HookCause, HookError};
use serde::Serialize;
use std::fmt::Debug;

/// How a replayed call ended beside the recorded one.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    /// The same bits, or the same refusal or fault.
    Identical,
    /// Another answer.
    Different(Box<Difference>),
    /// No answer, where there was one.
    Failed(Box<Difference>),
}

/// Where two outcomes part.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// Number of the call in the recording, from 1.
    pub call: u64,
    /// Name of the patch in the recording.
    pub patch: String,
    /// What was called.
    pub function: Function,
    /// The tensor it was about.
    pub tensor: Option<String>,
    /// Which part of the answer.
    pub part: String,
    /// Index of the block, row-major over the tensor's block grid.
    pub block: Option<u64>,
    /// What was asked about there.
    pub asked: Option<String>,
    /// What the recording says.
    pub recorded: String,
    /// What came now.
    pub got: String,
    /// How many floats lie between the two.
    pub ulp: Option<u64>,
    /// Numbers of this answer that are others.
    pub numbers: u64,
    /// The largest of their distances.
    pub max_ulp: u64,
}

/// Most bytes of an answer in a message.
const SHOWN: usize = 240;

/// Compares. `call` and `patch` are for the message.
pub(super) fn compare(call: u64, patch: &str, question: &Question, recorded: &Outcome, got: &Outcome) -> Ending {
    let Some(function) = question.function() else { return Ending::Identical };
    let mut found = Difference {
        call,
        patch: text::clean(patch, 120),
        function,
        tensor: question.tensor().map(|name| text::clean(name, 200)),
        part: "the outcome".to_owned(),
        block: None,
        asked: None,
        recorded: outcome(recorded),
        got: outcome(got),
        ulp: None,
        numbers: 0,
        max_ulp: 0,
    };
    match (recorded, got) {
        (Ok(recorded), Ok(got)) if bits(recorded) == bits(got) => Ending::Identical,
        (Ok(recorded), Ok(got)) => {
            answers(&mut found, question, recorded, got);
            Ending::Different(Box::new(found))
        }
        (Err(recorded), Err(got)) if same(recorded, got) => Ending::Identical,
        (_, Err(got)) if got.cause != HookCause::Refused => Ending::Failed(Box::new(found)),
        _ => Ending::Different(Box::new(found)),
    }
}

/// A refusal is in the patch's words, which are an answer. A fault is in the host's, with addresses and times.
fn same(a: &HookError, b: &HookError) -> bool {
    a.cause == b.cause && (a.cause != HookCause::Refused || a.why == b.why)
}

/// Floats as they are: NaN is equal to itself, and 0 is not -0. The number of a refit is not a part of the answer.
fn bits(answer: &Answer) -> Option<Vec<u8>> {
    match answer {
        Answer::Begun(verdict, _) => postcard::to_stdvec(verdict),
        other => postcard::to_stdvec(other),
    }
    .ok()
}

fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Ok(answer) => shown(answer),
        Err(error) => text::clean(&format!("{:?}: {}", error.cause, error.why), SHOWN),
    }
}

fn shown(value: &impl Debug) -> String {
    text::clean(&format!("{value:?}"), SHOWN)
}

/// Two long texts from a little before they part: a scheme has three hundred bytes, and the tenth field is another one.
fn apart(a: &str, b: &str) -> (String, String) {
    const BEFORE: usize = 40;
    let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let from = a.floor_char_boundary(same).saturating_sub(BEFORE);
    let show = |text: &str| match from {
        0..=BEFORE => text::clean(text, SHOWN),
        _ => format!("… {}", text::clean(text.get(text.ceil_char_boundary(from)..).unwrap_or_default(), SHOWN)),
    };
    (show(a), show(b))
}

fn answers(found: &mut Difference, question: &Question, recorded: &Answer, got: &Answer) {
    match (recorded, got) {
        (Answer::Numbers(a), Answer::Numbers(b)) => numbers(found, question, a, b),
        (Answer::Placements(a), Answer::Placements(b)) => list(found, "placement", names(question), a, b),
        (Answer::Decisions(a), Answer::Decisions(b)) => list(found, "decision", names(question), a, b),
        (Answer::Passes(a), Answer::Passes(b)) => list(found, "passes", names(question), a, b),
        (Answer::Ranges(a), Answer::Ranges(b)) => list(found, "range", Vec::new(), a, b),
        (Answer::Plan(a), Answer::Plan(b)) if a.places != b.places => {
            list(found, "place", names(question), &a.places, &b.places);
        }
        (Answer::Plan(a), Answer::Plan(b)) if a.rank == b.rank => {
            float(found, a.scaling, b.scaling);
            found.part = "the scaling".to_owned();
        }
        _ => found.part = "the answer".to_owned(),
    }
}

/// What the n-th part of the answer is about.
fn names(question: &Question) -> Vec<&str> {
    let tensors = match question {
        Question::Resolve { checkpoint: tensors, .. }
        | Question::Decide { tensors, .. }
        | Question::Passes { tensors, .. }
        | Question::Admit { adapter: tensors, .. } => tensors.as_slice(),
        _ => &[],
    };
    tensors.iter().map(|tensor| tensor.name.as_str()).collect()
}

fn list<T: Debug + Serialize>(found: &mut Difference, what: &str, names: Vec<&str>, a: &[T], b: &[T]) {
    let differs = |(a, b): (&T, &T)| postcard::to_stdvec(a).ok() != postcard::to_stdvec(b).ok();
    match a.iter().zip(b).position(differs) {
        Some(at) => {
            found.part = format!("{what} {at}");
            found.tensor = names.get(at).map(|name| text::clean(name, 200));
            (found.recorded, found.got) = apart(&format!("{:?}", a[at]), &format!("{:?}", b[at]));
        }
        None => {
            found.part = format!("the number of {what}s");
            (found.recorded, found.got) = (a.len().to_string(), b.len().to_string());
        }
    }
}

fn numbers(found: &mut Difference, question: &Question, a: &[f32], b: &[f32]) {
    let (first, amax) = match question {
        Question::Scales { blocks, amax }
        | Question::ScalesWithMoments { blocks, amax, .. }
        | Question::PanelScales { blocks, amax, .. } => (Some(blocks.first_block), amax.as_slice()),
        Question::ActivationScales(amax) => (None, amax.as_slice()),
        _ => (None, &[][..]),
    };
    let others = || a.iter().zip(b).enumerate().filter(|(_, (a, b))| a.to_bits() != b.to_bits());
    found.numbers = others().count() as u64;
    found.max_ulp = others().map(|(_, (a, b))| ulp(*a, *b)).max().unwrap_or(0);
    match others().next() {
        Some((at, (a, b))) => {
            float(found, *a, *b);
            found.part = format!("number {at}");
            found.block = first.map(|first| (first as u64).saturating_add(at as u64));
            found.asked = amax.get(at).map(|amax| format!("amax {}", with_bits(*amax)));
        }
        None => {
            found.part = "how many numbers".to_owned();
            (found.recorded, found.got) = (a.len().to_string(), b.len().to_string());
        }
    }
}

fn float(found: &mut Difference, a: f32, b: f32) {
    (found.recorded, found.got) = (with_bits(a), with_bits(b));
    found.ulp = Some(ulp(a, b));
}

fn with_bits(x: f32) -> String {
    format!("{x:e} ({:#010x})", x.to_bits())
}

/// Steps from one float to the other along all floats, NaNs at the ends.
fn ulp(a: f32, b: f32) -> u64 {
    let place = |x: f32| {
        let bits = i64::from(x.to_bits() & 0x7fff_ffff);
        if x.is_sign_negative() { -1 - bits } else { bits }
    };
    place(a).abs_diff(place(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Blocks;

    fn asked(amax: Vec<f32>) -> Question {
        let tensor = "a.weight".to_owned();
        let blocks = Blocks { tensor, rows: 256, cols: 512, block_rows: 128, block_cols: 128, first_block: 4 };
        Question::Scales { blocks, amax }
    }

    fn error(cause: HookCause, why: &str) -> Outcome {
        let text = String::new;
        Err(HookError { patch: text(), call: text(), cause, why: why.to_owned(), next: text() })
    }

    #[test]
    fn floats_are_bits() {
        let question = asked(vec![1.0, 2.0, 3.0]);
        let outcome = |numbers: &[f32]| Ok(Answer::Numbers(numbers.to_vec()));
        let against = |b: &[f32]| compare(7, "p", &question, &outcome(&[1.0, f32::NAN, 0.0]), &outcome(b));
        assert_eq!(against(&[1.0, f32::NAN, 0.0]), Ending::Identical);
        let Ending::Different(zero) = against(&[1.0, f32::NAN, -0.0]) else { panic!() };
        assert_eq!((zero.block, zero.ulp, zero.numbers), (Some(6), Some(1), 1));
        let Ending::Different(next) = against(&[1.0f32.next_up(), -f32::NAN, 0.0]) else { panic!() };
        assert_eq!((next.call, next.block, next.ulp, next.numbers), (7, Some(4), Some(1), 2));
        assert_eq!(next.asked.as_deref(), Some("amax 1e0 (0x3f800000)"));
        assert_eq!(next.got, "1.0000001e0 (0x3f800001)");
        let Ending::Different(short) = against(&[1.0, f32::NAN]) else { panic!() };
        assert_eq!((short.part.as_str(), short.got.as_str()), ("how many numbers", "2"));
    }

    #[test]
    fn faults_are_compared_by_cause_and_refusals_by_word() {
        let question = asked(vec![1.0]);
        let ending = |a: &Outcome, b: &Outcome| compare(1, "p", &question, a, b);
        let good = Ok(Answer::Numbers(vec![1.0]));
        let (trap, refused) = (error(HookCause::Trap, "at 0x10"), error(HookCause::Refused, "no"));
        assert_eq!(ending(&trap, &error(HookCause::Trap, "at 0x20")), Ending::Identical);
        assert_eq!(ending(&refused, &refused), Ending::Identical);
        assert!(matches!(ending(&refused, &error(HookCause::Refused, "never")), Ending::Different(_)));
        assert!(matches!(ending(&trap, &error(HookCause::Limit, "fuel")), Ending::Failed(_)));
        assert!(matches!(ending(&good, &trap), Ending::Failed(_)));
        assert!(matches!(ending(&good, &refused), Ending::Different(_)));
        assert!(matches!(ending(&trap, &good), Ending::Different(_)));
    }

    #[test]
    fn distances() {
        assert_eq!(ulp(0.0, -0.0), 1);
        assert_eq!(ulp(1.0, 1.0f32.next_down()), 1);
        assert_eq!(ulp(f32::from_bits(1), -f32::from_bits(1)), 3);
        assert_eq!(ulp(f32::INFINITY, f32::MAX), 1);
    }
}
