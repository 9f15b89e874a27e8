//! Grammars, compiled once and kept: a trainer sends the same schema with every prompt of a step.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::{Matcher, ParserFactory};
use toktrie::InferenceCapabilities;

use super::ending::{Quotes, ending};
use super::source::Source;
use super::vocabulary::Vocabulary;
use crate::caught::caught;
use crate::error::{Result, RuntimeError};
use crate::tokenizer::Tokenizer;

/// Most grammars that are kept.
const KEPT: usize = 64;
/// Stack of a thread that compiles: schemas are compiled by recursion.
const STACK: usize = 64 << 20;
/// Ways to the end of a grammar that are tried when it is compiled.
const TRIES: u64 = 4;
/// Most states of a grammar's lexer, each of one or two kilobytes.
const MOST_STATES: usize = 50_000;
/// Most states that the parser may be in at once: a schema of a thousand optional members needs some thousands.
const MOST_AT_ONCE: usize = 20_000;
/// Most symbols of a grammar, some tens of bytes each.
const MOST_SYMBOLS: usize = 200_000;

/// The grammars of one tokenizer.
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    /// Built with the first grammar: most servers never see one.
    factory: OnceLock<Built>,
    kept: Mutex<VecDeque<Arc<Grammar>>>,
}

/// The vocabulary, and what compiles grammars for it; or why there is none.
type Built = std::result::Result<(Arc<Vocabulary>, ParserFactory), String>;

/// A compiled grammar. Every sequence that follows it begins with a copy.
pub struct Grammar {
    key: String,
    pub(super) is_json: bool,
    pub(super) vocabulary: Arc<Vocabulary>,
    /// Tokens of a short text of it, where one was found.
    pub(super) shortest: Option<usize>,
    start: Mutex<Matcher>,
}

impl Grammars {
    /// For this tokenizer.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, factory: OnceLock::new(), kept: Mutex::default() }
    }

    /// The grammar of `source`. It takes milliseconds, the first one some hundred of them: not for threads that must not wait.
    pub fn compile(&self, source: &Source) -> Result<Arc<Grammar>> {
        let key = source.key()?;
        if let Some(kept) = self.kept(&key) {
            return Ok(kept);
        }
        let compiled = std::thread::scope(|scope| {
            let work = || caught(|| self.build(source, key.clone()));
            let started = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
            let thread = started.map_err(|e| RuntimeError::Internal(format!("no thread to compile on: {e}")))?;
            let done = thread.join().unwrap_or_else(|_| Err("the thread that compiles it ended".to_owned()));
            done.unwrap_or_else(|panic| Err(source.refuse(format!("its compiler gave up: {panic}"), "simplify it")))
        })?;
        let compiled = Arc::new(compiled);
        let mut kept = self.lock();
        kept.push_front(Arc::clone(&compiled));
        kept.truncate(KEPT);
        Ok(compiled)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<Grammar>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self, key: &str) -> Option<Arc<Grammar>> {
        let mut kept = self.lock();
        let at = kept.iter().position(|grammar| grammar.key == key)?;
        let found = kept.remove(at)?;
        kept.push_front(Arc::clone(&found));
        Some(found)
    }

    fn build(&self, source: &Source, key: String) -> Result<Grammar> {
        let grammar = source.grammar()?;
        let built = self.factory.get_or_init(|| factory(&self.tokenizer));
        let (vocabulary, factory) = built.as_ref().map_err(|why| {
            source.refuse(format!("this model's tokenizer serves no grammar: {why}"), "ask for plain text")
        })?;
        let mut matcher = Matcher::new(factory.create_parser(grammar));
        let next = "see the syntax of llguidance, which reads it, or simplify it";
        if let Some(error) = matcher.get_error() {
            return Err(source.refuse(first_line(&error), next));
        }
        if !matcher.is_stopped()
            && let Err(error) = matcher.compute_mask()
        {
            let why = format!("no token can begin a text of it: {}", first_line(&error.to_string()));
            return Err(source.refuse(why, "describe a text that exists"));
        }
        let is_json = source.is_json();
        let quotes = is_json.then(Quotes::default);
        let shortest = ending(&matcher, vocabulary, quotes, usize::MAX, TRIES).map(|way| way.len());
        Ok(Grammar { key, is_json, vocabulary: Arc::clone(vocabulary), shortest, start: Mutex::new(matcher) })
    }
}

fn factory(tokenizer: &Tokenizer) -> Built {
    let vocabulary = Vocabulary::of(tokenizer);
    let capabilities = InferenceCapabilities::default();
    let slices = llguidance::earley::SlicedBiasComputer::general_slices();
    let mut factory =
        ParserFactory::new(&vocabulary.env, capabilities, &slices).map_err(|e| first_line(&e.to_string()))?;
    factory.quiet();
    let limits = factory.limits_mut();
    limits.max_lexer_states = MOST_STATES;
    limits.max_items_in_row = MOST_AT_ONCE;
    limits.max_grammar_size = MOST_SYMBOLS;
    limits.verbose_errors = false;
    Ok((vocabulary, factory))
}

/// An error of the parser without the states and backtraces behind it.
pub(super) fn first_line(error: &str) -> String {
    const MOST: usize = 600;
    let error = error.split("\n<").next().unwrap_or(error).trim();
    let mut text = error.split_whitespace().collect::<Vec<_>>().join(" ");
    text.truncate(text.floor_char_boundary(MOST));
    text
}

impl Grammar {
    /// Where a sequence begins. Nothing is shared between sequences: what one of them does costs no other.
    pub(super) fn matcher(&self) -> Matcher {
        self.start.lock().unwrap_or_else(PoisonError::into_inner).deep_clone()
    }

    /// Bytes of what describes it.
    pub(super) fn bytes(&self) -> usize {
        self.key.len()
    }
}

impl PartialEq for Grammar {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Grammar").field(&self.key).finish()
    }
}
