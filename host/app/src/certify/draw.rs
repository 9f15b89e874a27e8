//! The cases of a plan: the table of six, each changed checkpoint, then random ones, so that every kind of fault meets every
//! kind of tensor as the plan grows.

use std::collections::BTreeMap;

use patchhost_runtime::hooks::Role;

use super::cases::{Case, Edit, Expect, Kind, Poison, name_of};
use super::change::{Changed, block};
use super::dice::Dice;
use super::plan::digests;
use super::weights::Tensor;
use crate::base::Digest;

/// Faults of one tensor.
const FAULTS: [Kind; 7] =
    [Kind::Lost, Kind::Doubled, Kind::Truncated, Kind::Misshapen, Kind::Renamed, Kind::NonFinite, Kind::Interleaved];

/// What the cases are made of: the tensors of the first checkpoint, and the changed ones.
pub struct Known<'a> {
    base: &'a [Tensor],
    changed: &'a [Changed],
    /// Of each checkpoint, by name.
    digests: Vec<BTreeMap<String, Digest>>,
}

impl<'a> Known<'a> {
    /// Reads every tensor once, to know which differ between checkpoints.
    pub fn new(base: &'a [Tensor], changed: &'a [Changed]) -> Self {
        let all = std::iter::once(base).chain(changed.iter().map(|c| c.tensors.as_slice()));
        Self { base, changed, digests: all.map(digests).collect() }
    }

    fn checkpoints(&self) -> usize {
        self.digests.len()
    }

    fn of(&self, class: Role) -> Vec<&'a Tensor> {
        self.base.iter().filter(|t| t.class == class).collect()
    }

    fn classes(&self) -> Vec<Role> {
        let mut classes = Vec::new();
        for tensor in self.base {
            if !classes.contains(&tensor.class) {
                classes.push(tensor.class);
            }
        }
        classes
    }

    /// A checkpoint whose tensor of this name differs from that of checkpoint `from`.
    fn differing(&self, from: usize, name: &str, dice: &mut Dice) -> Option<usize> {
        let here = self.digests.get(from)?.get(name)?;
        let others: Vec<usize> =
            (0..self.checkpoints()).filter(|n| self.digests[*n].get(name).is_some_and(|d| d != here)).collect();
        dice.one_of(&others).copied()
    }
}

/// `count` cases.
pub fn draw(known: &Known<'_>, seed: u64, count: usize) -> Vec<Case> {
    let mut hand = Hand { known, dice: Dice::new(seed, "cases"), live: 0, cases: Vec::new(), deck: Vec::new() };
    hand.table_of_six();
    for number in 1..known.checkpoints() {
        hand.full(number);
        hand.full(number);
    }
    while hand.cases.len() < count {
        hand.random();
    }
    hand.cases.truncate(count);
    for (number, case) in hand.cases.iter_mut().enumerate() {
        case.id = format!("{:04}", number + 1);
    }
    hand.cases
}

struct Hand<'k, 'a> {
    known: &'k Known<'a>,
    dice: Dice,
    /// The checkpoint that a right engine holds now.
    live: usize,
    cases: Vec<Case>,
    /// Faults that were not drawn yet, with the kind of tensor that they hit.
    deck: Vec<(Kind, Option<Role>)>,
}

impl Hand<'_, '_> {
    fn accept(&mut self, kind: Kind, number: usize, edits: Vec<Edit>, why: &str) {
        let changed = number.checked_sub(1).and_then(|n| self.known.changed.get(n));
        self.live = number;
        self.cases.push(Case {
            id: String::new(),
            kind,
            class: changed.and_then(|c| c.class),
            tensor: changed.and_then(|c| c.tensor.clone()),
            expect: Expect::Accept,
            checkpoint: name_of(number),
            then_holds: Some(name_of(number)),
            edits,
            why: why.to_owned(),
        });
    }

    fn refuse(&mut self, kind: Kind, hit: (Option<Role>, Option<&str>), number: usize, edits: Vec<Edit>, why: String) {
        self.cases.push(Case {
            id: String::new(),
            kind,
            class: hit.0,
            tensor: hit.1.map(str::to_owned),
            expect: Expect::Refuse,
            checkpoint: name_of(number),
            then_holds: None,
            edits,
            why,
        });
    }

    /// A whole checkpoint, which is called after what it changes, or `twice` where it is live already.
    fn full(&mut self, number: usize) {
        let again = self.live == number;
        let changed = number.checked_sub(1).and_then(|n| self.known.changed.get(n));
        let why = match changed {
            _ if again => "the same weights once more are a right update, and change nothing".to_owned(),
            None => "the weights that the engine began with are a right update".to_owned(),
            Some(changed) => format!("a right update; changed: {}", changed.change),
        };
        // What changed nothing on the way cannot have hit a tensor.
        let kind = if again { Kind::Twice } else { changed.map_or(Kind::Full, |c| c.kind) };
        self.accept(kind, number, Vec::new(), &why);
    }

    /// Cases that stock engines were found to fail.
    fn table_of_six(&mut self) {
        let known = self.known;
        self.accept(Kind::Full, 0, Vec::new(), "the weights that the engine began with are a right update");
        self.full(0);
        let experts = known.of(Role::Expert);
        let gated = if experts.is_empty() { known.of(Role::Mlp) } else { experts };
        let third = gated.iter().find(|t| ["up_proj", "w3"].iter().any(|leaf| t.name.contains(leaf)));
        if let Some(third) = third.or(gated.last()) {
            let hit = (Some(third.class), Some(third.name.as_str()));
            let drop = Edit::Drop { name: third.name.clone() };
            self.refuse(Kind::Lost, hit, 0, vec![drop], format!("{} never came", third.name));
            let beside = |t: &&&Tensor| t.name != third.name && block(&t.name) == block(&third.name);
            let named = |t: &&&Tensor| ["gate_proj", "w1"].iter().any(|leaf| t.name.contains(leaf));
            let first = gated.iter().filter(beside).find(named).or_else(|| gated.iter().find(beside)).copied();
            if let Some(first) = first.filter(|first| first.shape == third.shape).or_else(|| twin(&gated, third)) {
                let why = format!("{} came twice and {} never", first.name, third.name);
                let repeat = Edit::Repeat { name: first.name.clone(), instead_of: Some(third.name.clone()) };
                self.refuse(Kind::Doubled, hit, 0, vec![repeat], why);
            }
        }
        if let Some(norm) = self.dice.one_of(&known.of(Role::Norm)) {
            let drop = Edit::Drop { name: norm.name.clone() };
            let hit = (Some(Role::Norm), Some(norm.name.as_str()));
            self.refuse(Kind::Lost, hit, 0, vec![drop], format!("{} never came", norm.name));
        }
        let attention = known.of(Role::Attention);
        if let Some(one) = attention.first() {
            let layer = block(&one.name);
            let all = attention.iter().filter(|t| block(&t.name) == layer);
            let edits = all.map(|t| Edit::Drop { name: t.name.clone() }).collect();
            let why = format!("the projections of {layer} never came");
            self.refuse(Kind::Lost, (Some(Role::Attention), None), 0, edits, why);
        }
    }

    /// One more: about one in three is right, and the others go through every kind of fault and of tensor.
    fn random(&mut self) {
        let died = self.cases.last().is_some_and(|case| case.kind == Kind::Killed);
        let right = self.cases.iter().filter(|case| case.expect == Expect::Accept).count();
        if died || right * 3 < self.cases.len() {
            let others: Vec<usize> =
                (0..self.known.checkpoints()).filter(|n| died.then_some(self.live) != Some(*n)).collect();
            let number = self.dice.one_of(&others).copied().unwrap_or(0);
            if !died && self.dice.below(3) == 0 {
                let seed = self.dice.bits() >> 11;
                self.accept(Kind::OutOfOrder, number, vec![Edit::Shuffle { seed }], "tensors may come in any order");
            } else {
                self.full(number);
            }
            return;
        }
        if self.deck.is_empty() {
            let classes = self.known.classes();
            self.deck.extend(FAULTS.iter().flat_map(|kind| classes.iter().map(|class| (*kind, Some(*class)))));
            self.deck.extend([(Kind::Killed, None), (Kind::Killed, None)]);
            self.dice.shuffle(&mut self.deck);
        }
        match self.deck.pop() {
            Some((kind, Some(class))) => self.fault(kind, class),
            _ => self.killed(),
        }
    }

    /// Any checkpoint but the live one: then an engine that takes it answers otherwise.
    fn other(&mut self) -> usize {
        let others: Vec<usize> = (0..self.known.checkpoints()).filter(|n| *n != self.live).collect();
        self.dice.one_of(&others).copied().unwrap_or(0)
    }

    fn killed(&mut self) {
        let number = self.other();
        let after = 1 + self.dice.below(self.known.base.len().saturating_sub(1));
        let why = format!("the sender died after {after} tensors: nothing of it is live, and the next update works");
        self.refuse(Kind::Killed, (None, None), number, vec![Edit::Stop { after }], why);
    }

    fn fault(&mut self, kind: Kind, class: Role) {
        let all = self.known.of(class);
        let Some(tensor) = self.dice.one_of(&all).copied() else { return };
        let number = self.other();
        let name = || tensor.name.clone();
        let (edit, why) = match kind {
            Kind::Doubled => self.doubled(tensor, &all, number),
            Kind::Interleaved => self.interleaved(tensor, &all, number),
            Kind::Truncated => {
                let shape = shorter(&tensor.shape);
                let why = format!("{} has shape {:?}, not {shape:?}", name(), tensor.shape);
                (Edit::Truncate { name: name(), shape }, why)
            }
            Kind::Misshapen => {
                let shape = other_shape(&tensor.shape);
                let why = format!("{} has shape {:?}, not {shape:?}", name(), tensor.shape);
                (Edit::Reshape { name: name(), shape }, why)
            }
            Kind::Renamed => {
                let to = self.misnamed(&tensor.name);
                let why = format!("{} never came, and the model has no {to}", name());
                (Edit::Rename { name: name(), to }, why)
            }
            Kind::NonFinite => {
                let index = self.dice.below(tensor.shape.iter().product());
                let value = if self.dice.below(2) == 0 { Poison::Nan } else { Poison::Inf };
                let why = format!("value {index} of {} is no finite number", name());
                (Edit::Poison { name: name(), index, value }, why)
            }
            _ => (Edit::Drop { name: name() }, format!("{} never came", name())),
        };
        self.refuse(kind, (Some(class), Some(&tensor.name)), number, vec![edit], why);
    }

    /// With the same values, with the same values in the place of another tensor, or with other values.
    fn doubled(&mut self, tensor: &Tensor, all: &[&Tensor], number: usize) -> (Edit, String) {
        let name = tensor.name.clone();
        let (way, other) = (self.dice.below(3), self.known.differing(number, &name, &mut self.dice));
        match (way, other, twin(all, tensor)) {
            (0, Some(other), _) => {
                let why = format!("{name} came twice, with other values");
                (Edit::Interleave { with: name_of(other), names: vec![name] }, why)
            }
            (1, _, Some(lost)) => {
                let why = format!("{name} came twice and {} never", lost.name);
                (Edit::Repeat { name, instead_of: Some(lost.name.clone()) }, why)
            }
            _ => {
                let why = format!("{name} came twice: such a stream is not one model");
                (Edit::Repeat { name, instead_of: None }, why)
            }
        }
    }

    /// Up to half of the class comes again, from another checkpoint.
    fn interleaved(&mut self, tensor: &Tensor, all: &[&Tensor], number: usize) -> (Edit, String) {
        let name = tensor.name.clone();
        let Some(other) = self.known.differing(number, &name, &mut self.dice) else {
            let why = format!("{name} came twice: such a stream is not one model");
            return (Edit::Repeat { name, instead_of: None }, why);
        };
        let more = self.dice.below(all.len() / 2 + 1);
        let names: Vec<String> = all.iter().map(|t| &t.name).filter(|n| **n != name).take(more).cloned().collect();
        let names: Vec<String> = std::iter::once(name).chain(names).collect();
        let why = format!("two trainers sent into one update: {} of {} came again", names.len(), name_of(other));
        (Edit::Interleave { with: name_of(other), names }, why)
    }

    /// A name that the model does not have.
    fn misnamed(&mut self, name: &str) -> String {
        let ways = [
            format!("{name}s"),
            format!("transformer.{name}"),
            name.replacen("layers.0.", "layers.97.", 1),
            // Not without its end: some engines know experts by both names.
            name.replacen(".weight", ".wieght", 1),
        ];
        let known = |way: &String| self.known.base.iter().any(|t| t.name == *way);
        let unknown: Vec<String> = ways.iter().filter(|way| !known(way)).cloned().collect();
        self.dice.one_of(&unknown).cloned().unwrap_or_else(|| format!("{name}.unknown"))
    }
}

/// Another tensor of the same shape.
fn twin<'t>(all: &[&'t Tensor], tensor: &Tensor) -> Option<&'t Tensor> {
    all.iter().find(|t| t.name != tensor.name && t.shape == tensor.shape).copied()
}

/// A quarter of the rows less, at least one; of a single row a quarter of the columns.
fn shorter(shape: &[usize]) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if let Some(long) = shape.iter_mut().find(|d| **d > 1) {
        *long -= (*long / 4).max(1);
    }
    shape
}

/// As many values in another shape.
fn other_shape(shape: &[usize]) -> Vec<usize> {
    match *shape {
        [n] if n % 2 == 0 => vec![n / 2, 2],
        [rows, cols] if rows != cols => vec![cols, rows],
        [rows, cols] if rows % 2 == 0 => vec![rows / 2, cols * 2],
        _ => [&[1], shape].concat(),
    }
}
