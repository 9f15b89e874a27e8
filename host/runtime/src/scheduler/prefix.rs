//! The prefix cache: keys and values of sequences that ended, for prompts that begin as they do.
//!
//! An entry belongs to one set of weights and one adapter. Publishing new weights needs no sweep: nothing finds the old
//! entries any more, and they go when the old set goes.

use std::sync::{Arc, Weak};

use crate::kv::KvCache;
use crate::lora::Adapter;
use crate::weights::WeightSet;

/// Bytes of an entry besides its cache and tokens.
const OVERHEAD: usize = 512;

/// What keys and values depend on besides the tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    weights: u64,
    adapter: Option<(String, u64)>,
    /// Nothing depends on it: who gives another one must not learn, by how quick an answer is, what others asked.
    salt: Option<Arc<str>>,
}

impl Key {
    pub(super) fn new(weights: &WeightSet, adapter: Option<&Arc<Adapter>>, salt: Option<&Arc<str>>) -> Self {
        let adapter = adapter.map(|a| (a.name().to_string(), a.version()));
        Self { weights: weights.id(), adapter, salt: salt.cloned() }
    }
}

struct Entry {
    key: Key,
    weights: Weak<WeightSet>,
    /// The tokens whose keys and values these are.
    tokens: Vec<u32>,
    cache: KvCache,
    bytes: usize,
    used: u64,
}

/// The least recently used entries go first.
#[derive(Default)]
pub(super) struct PrefixCache {
    limit: usize,
    entries: Vec<Entry>,
    bytes: usize,
    clock: u64,
}

/// Length of the common prefix.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl PrefixCache {
    /// Of at most so many bytes; 0 keeps nothing.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    pub(super) fn is_off(&self) -> bool {
        self.limit == 0
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keys and values of the longest known prefix of `tokens`, longer than `at_least`.
    pub(super) fn find(&mut self, key: &Key, tokens: &[u32], at_least: usize) -> Option<KvCache> {
        self.clock += 1;
        let usable = |e: &Entry| match common(&e.tokens, tokens) {
            n if e.cache.is_recurrent() && n < e.tokens.len() => 0,
            n => n,
        };
        let same = self.entries.iter_mut().filter(|e| e.key == *key).map(|e| (usable(e), e));
        let (len, entry) = same.filter(|(n, _)| *n > at_least).max_by_key(|(n, _)| *n)?;
        entry.used = self.clock;
        entry.cache.prefix(len)
    }

    /// Takes what a sequence leaves behind; `tokens` are those of its cache.
    pub(super) fn give(&mut self, key: Key, weights: &Arc<WeightSet>, tokens: &[u32], mut cache: KvCache) {
        self.prune();
        let bytes = cache.bytes() + cache.overhead() + 4 * tokens.len() + OVERHEAD;
        if bytes > self.limit || tokens.is_empty() || cache.len() != tokens.len() {
            return;
        }
        self.clock += 1;
        // A state of a recurrent layer serves its own length only; keys and values serve every shorter one.
        let serves = |long: &[u32], short: &[u32]| match cache.is_recurrent() {
            true => long == short,
            false => long.starts_with(short),
        };
        if let Some(e) = self.entries.iter_mut().find(|e| e.key == key && serves(&e.tokens, tokens)) {
            e.used = self.clock;
            return;
        }
        self.entries.retain(|e| !(e.key == key && serves(tokens, &e.tokens)));
        self.bytes = self.entries.iter().map(|e| e.bytes).sum();
        while self.bytes + bytes > self.limit {
            let Some((oldest, _)) = self.entries.iter().enumerate().min_by_key(|(_, e)| e.used) else { break };
            self.bytes -= self.entries.swap_remove(oldest).bytes;
        }
        cache.shrink();
        self.bytes += bytes;
        let entry =
            Entry { key, weights: Arc::downgrade(weights), tokens: tokens.to_vec(), cache, bytes, used: self.clock };
        self.entries.push(entry);
    }

    /// Forgets entries whose weights nobody holds any more.
    pub(super) fn prune(&mut self) {
        self.entries.retain(|e| e.weights.strong_count() > 0);
        self.bytes = self.entries.iter().map(|e| e.bytes).sum();
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.entries = Vec::new();
        self.bytes = 0;
    }
}
