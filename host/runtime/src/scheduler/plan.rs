//! What one step computes: pieces of prompts, shared prefixes, the limit of memory.

use super::prefix::common;
use super::sequence::Running;
use super::state::count;
use super::worker::Worker;

/// Tokens that a prefix must have in common before another sequence waits for it: below, computing is as quick.
const WORTH_WAITING: usize = 16;

impl Worker {
    /// How many tokens each sequence computes in this step, by its index. Sequences that decode always take part; the
    /// others share the budget in the order of their admission.
    pub(super) fn plan(&mut self) -> Vec<usize> {
        let options = self.inner.options;
        let inner = self.inner.clone();
        let model = inner.engine.model();
        let mut budget = options.max_batched_tokens.max(1);
        let mut bytes = 0;
        let mut chunks = Vec::with_capacity(self.running.len());
        for i in 0..self.running.len() {
            let waits = self.look_up(i);
            let r = &mut self.running[i];
            // A sequence without keys and values must leave room to grow, or it would lose them in the next step.
            let room = if r.cache.is_empty() { options.kv_cache_bytes / 16 } else { 0 };
            let needed = model.cache_bytes(r.tokens.len());
            if bytes + needed + room > options.kv_cache_bytes && i > 0 {
                if r.retract(model) {
                    count(&inner.counters.preempted, 1);
                }
                chunks.push(0);
                continue;
            }
            bytes += needed;
            let chunk = match r.decodes() {
                true => 1,
                false if waits || budget == 0 => 0,
                false => r.piece(budget, model.split_matters_beyond()),
            };
            if !r.decodes() {
                budget = budget.saturating_sub(chunk);
            }
            chunks.push(chunk);
        }
        chunks
    }

    /// Looks for keys and values of the sequence's first tokens, in sequences that run and in the prefix cache. True if
    /// it should wait, because an older sequence is computing them.
    fn look_up(&mut self, i: usize) -> bool {
        let (older, rest) = self.running.split_at_mut(i);
        let Some((r, younger)) = rest.split_first_mut() else { return false };
        if r.looked_up || !r.cache.is_empty() {
            return false;
        }
        // The last token is always computed: its logits are wanted. So are all, for log-probabilities of the prompt.
        let wanted = &r.tokens[..r.tokens.len() - 1];
        let model = self.inner.engine.model();
        let unsplit = model.split_matters_beyond().is_some_and(|n| r.tokens.len() > n);
        let mut prefix = self.inner.prefix();
        if prefix.is_off() || r.wants_prompt() || unsplit || wanted.is_empty() {
            r.looked_up = true;
            return false;
        }
        let key = r.key();
        let usable = |o: &&Running| !o.mixed && o.ended.is_none() && o.key() == key;
        let held = |o: &Running| match common(&o.tokens[..o.cache.len()], wanted) {
            n if o.cache.is_recurrent() && n < o.cache.len() => 0,
            n => n,
        };
        let splits = |o: &Running| model.split_matters_beyond().is_some_and(|n| o.tokens.len() > n);
        let others = older.iter().chain(younger.iter()).filter(usable).filter(|o| !splits(o));
        let best = others.map(|o| (held(o), o)).max_by_key(|(n, _)| *n).filter(|(n, _)| *n > 0);
        let have = best.as_ref().map_or(0, |(n, _)| *n);
        let mut found = prefix.find(&key, wanted, have);
        if found.is_none() {
            found = best.and_then(|(n, o)| o.cache.prefix(n));
        }
        let len = found.as_ref().map_or(0, |c| c.len());
        let coming = |o: &Running| match o.decodes() || o.cache.is_recurrent() || splits(o) {
            true => 0,
            false => common(&o.tokens, wanted),
        };
        if older.iter().filter(usable).any(|o| coming(o) >= len + WORTH_WAITING) {
            return true;
        }
        r.looked_up = true;
        if !r.started {
            count(&self.inner.counters.prefix_queries, r.prompt_len);
            count(&self.inner.counters.prefix_hits, len);
            r.cached_tokens = len;
        }
        if let Some(cache) = found {
            r.cache = cache;
        }
        false
    }

    /// What a sequence leaves behind for prompts that begin as it does.
    pub(super) fn leave_prefix(&self, r: &mut Running) {
        let model = self.inner.engine.model();
        let mut prefix = self.inner.prefix();
        let unsplit = model.split_matters_beyond().is_some_and(|n| r.tokens.len() > n);
        if prefix.is_off() || r.mixed || r.cache.is_empty() || unsplit {
            return;
        }
        let cache = std::mem::replace(&mut r.cache, model.new_cache());
        let tokens = &r.tokens[..cache.len()];
        prefix.give(r.key(), &r.weights, tokens, cache);
    }
}
