//! The forward passes of a step, one per set of weights.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rayon::prelude::*;

use super::choose::Choice;
use super::sequence::{Ended, Running};
use super::state::{Inner, count};
use super::worker::{Worker, panicked};
use crate::error::{Result, RuntimeError};
use crate::hooks::{HookCause, HookError};
use crate::model::{Logits, Rows, Sequence};
use crate::tokenizer::Tokenizer;
use crate::weights::WeightSet;

/// Logits of a step from which tokens are chosen on several threads.
const PARALLEL: usize = 1 << 16;

impl Worker {
    /// Every sequence computes what the plan says; those that are through get a token.
    pub(super) fn step(&mut self) {
        let chunks = self.plan();
        count(&self.inner.counters.steps, 1);
        // Sequences whose prompt's rows are wanted go apart: the output head is the dearest layer of a prompt. The groups are
        // settled before the first pass: a pass starts its sequences, which then want no rows of their prompt any more.
        let of: Vec<Option<(u64, bool)>> = self
            .running
            .iter()
            .zip(&chunks)
            .map(|(r, chunk)| (*chunk > 0).then(|| (r.weights.id(), r.wants_prompt())))
            .collect();
        let mut groups: Vec<(u64, bool)> = Vec::new();
        for group in of.iter().flatten() {
            if !groups.contains(group) {
                groups.push(*group);
            }
        }
        for group in groups {
            let mut members: Vec<Member<'_>> = self
                .running
                .iter_mut()
                .zip(chunks.iter().copied())
                .zip(&of)
                .filter(|(_, of)| **of == Some(group))
                .map(|(member, _)| member)
                .collect();
            let rows = if group.1 { Rows::All } else { Rows::Last };
            pass(&self.inner, &mut self.logits, &mut members, rows);
        }
    }
}

/// A sequence of a pass, and how many tokens it computes.
type Member<'a> = (&'a mut Running, usize);

/// One forward pass over sequences of the same weights, and what follows from it. Where it fails, each of them gets a pass of its
/// own: one sequence that cannot be computed costs nobody else anything. Caches are then as before the pass.
fn pass(inner: &Inner, logits: &mut Logits, members: &mut [Member<'_>], rows: Rows) {
    let Some(weights) = members.first().map(|(r, _)| r.weights.clone()) else { return };
    let forward = || forward(&inner.engine, &weights, members, rows, logits);
    let computed = catch_unwind(AssertUnwindSafe(forward));
    match computed.unwrap_or_else(|panic| Err(panicked("a forward pass", panic.as_ref()))) {
        Ok(()) => give_out(inner, logits.values_mut(), members, rows),
        Err(e) if members.len() > 1 && may_be_of_one(&e) => {
            tracing::warn!(sequences = members.len(), "a forward pass failed; each sequence is computed alone: {e}");
            members.chunks_mut(1).for_each(|one| pass(inner, logits, one, rows));
        }
        Err(e) => members.iter_mut().for_each(|(r, _)| r.ended = Some(Ended::failed(e.again()))),
    }
}

/// Whether a failure may be the doing of a single sequence. A patch that has run out of its time or fuel is not asked once more
/// for each of them: that would take as long every time.
fn may_be_of_one(e: &RuntimeError) -> bool {
    !matches!(e, RuntimeError::Hook(HookError { cause: HookCause::Limit, .. }))
}

/// Takes the rows of a pass apart: log-probabilities of prompts, and the next tokens of those that are through.
fn give_out(inner: &Inner, mut left: &mut [f32], members: &mut [Member<'_>], rows: Rows) {
    let vocab = inner.engine.model().vocab();
    let mut through = Vec::new();
    for (r, chunk) in members {
        let n = if rows == Rows::All { *chunk } else { 1 };
        let (own, rest) = std::mem::take(&mut left).split_at_mut(n * vocab);
        left = rest;
        if rows == Rows::All {
            let first = r.cache.len() - n;
            let taken = catch_unwind(AssertUnwindSafe(|| r.prompt_rows(first, own, vocab)));
            if let Err(panic) = taken {
                r.ended = Some(Ended::failed(panicked("a prompt's log-probabilities", panic.as_ref())));
                continue;
            }
        }
        if r.pending() == 0 {
            through.push((&mut **r, &mut own[(n - 1) * vocab..]));
        }
    }
    let chosen = choose(&mut through, &inner.tokenizer, inner.engine.model().max_positions());
    for ((r, _), choice) in through.into_iter().zip(chosen) {
        if !r.started {
            count(&inner.counters.prompt_tokens, r.prompt_len);
        }
        let before = r.generated();
        let accepted = choice.and_then(|choice| {
            catch_unwind(AssertUnwindSafe(|| r.accept(choice, &inner.engine, &inner.tokenizer)))
                .unwrap_or_else(|panic| Err(panicked("the tokenizer", panic.as_ref())))
        });
        count(&inner.counters.generation_tokens, r.generated() - before);
        if let Err(e) = accepted {
            r.ended = Some(Ended::failed(e));
        }
    }
}

fn forward(
    engine: &crate::engine::Engine,
    weights: &Arc<WeightSet>,
    members: &mut [Member<'_>],
    rows: Rows,
    logits: &mut Logits,
) -> Result<()> {
    let mut batch: Vec<Sequence<'_>> = members
        .iter_mut()
        .map(|(r, chunk)| {
            let first = r.cache.len();
            Sequence { tokens: &r.tokens[first..first + *chunk], cache: &mut r.cache }
        })
        .collect();
    engine.model().forward_into(weights, &mut batch, rows, logits)
}

/// The next token of each sequence. A row's choice depends on nothing but the row and its sequence.
fn choose(
    through: &mut [(&mut Running, &mut [f32])],
    tokenizer: &Tokenizer,
    positions: usize,
) -> Vec<Result<Option<Choice>>> {
    let one = |(r, row): &mut (&mut Running, &mut [f32])| {
        catch_unwind(AssertUnwindSafe(|| r.choose(row, tokenizer, positions)))
            .unwrap_or_else(|panic| Err::<_, RuntimeError>(panicked("sampling", panic.as_ref())))
    };
    match through.iter().map(|(_, row)| row.len()).sum::<usize>() < PARALLEL {
        true => through.iter_mut().map(one).collect(),
        false => through.par_iter_mut().map(one).collect(),
    }
}
