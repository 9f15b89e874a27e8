//! Decoding and what goes on in the background (refits, candidates) on the same cores.
//!
//! A low priority alone does not do it: the scheduler of the system pays a share out in slices of several milliseconds,
//! and a token that meets one comes that much later. A lower priority makes slices rarer, and a refit on a busy machine
//! endless. So threads of the background cut their work into short pieces themselves, and while tokens are being decoded
//! they rest after each: the share is kept, and no token waits longer than for a piece.

use std::cell::{Cell, OnceCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Work between two rests: shorter ones are mostly the cost of waking up.
const PIECE: Duration = Duration::from_micros(100);
/// Rest per time worked: a tenth of the core is the background's, as with `nice -n 10`.
const REST: u32 = 9;
/// The longest piece that counts. A piece that took longer was interrupted, and has waited already.
const LONGEST: Duration = Duration::from_micros(500);

/// Whether tokens are being decoded. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Pace(Arc<AtomicBool>);

thread_local! {
    static STANDS_BACK: OnceCell<Pace> = const { OnceCell::new() };
    /// Worked since the last rest.
    static WORKED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// The end of the last rest of [`breathe`].
    static RESTED: Cell<Option<Instant>> = const { Cell::new(None) };
}

impl Pace {
    /// Whether sequences are being decoded now.
    pub fn is_decoding(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Says whether sequences are being decoded.
    pub fn set_decoding(&self, decoding: bool) {
        self.0.store(decoding, Ordering::Relaxed);
    }

    /// From here on, this thread is one of the background. It stays one.
    pub fn stand_back(&self) {
        STANDS_BACK.with(|pace| {
            pace.get_or_init(|| self.clone());
        });
    }
}

/// Whether this thread is one of the background and tokens are being decoded: then pieces should be short.
pub fn stands_back() -> bool {
    STANDS_BACK.with(|pace| pace.get().is_some_and(Pace::is_decoding))
}

/// The same between two pieces of work that belong to one call: what this thread did since it last rested counts as work,
/// as far as the longest piece.
pub fn breathe() {
    if !stands_back() {
        return;
    }
    let worked = RESTED.get().map_or(Duration::ZERO, |rested| rested.elapsed().min(LONGEST));
    if worked >= PIECE {
        std::thread::sleep(worked * REST);
    }
    if worked >= PIECE || RESTED.get().is_none() {
        RESTED.set(Some(Instant::now()));
    }
}

/// A short piece of work, a panel of a matrix for example. Where this thread is one of the background and tokens are being
/// decoded, it rests afterwards if it has worked for long enough. No lock may be held here that decoding needs.
pub fn piece<R>(work: impl FnOnce() -> R) -> R {
    if !stands_back() {
        return work();
    }
    let began = Instant::now();
    let done = work();
    let worked = WORKED.get() + began.elapsed().min(LONGEST);
    if worked < PIECE {
        WORKED.set(worked);
    } else {
        WORKED.set(Duration::ZERO);
        std::thread::sleep(worked * REST);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A piece that takes as long as several, and how long it took with its rest.
    fn took() -> Duration {
        let began = Instant::now();
        piece(|| std::thread::sleep(PIECE));
        began.elapsed()
    }

    #[test]
    fn the_background_rests_while_tokens_are_decoded() {
        let pace = Pace::default();
        let background = pace.clone();
        // Where nothing is decoded or the thread is none of the background, a rest would be seen in the least of many.
        let least = |busy: bool, back: bool| {
            let background = background.clone();
            background.set_decoding(busy);
            let measure = move || {
                if back {
                    background.stand_back();
                }
                (0..20).map(|_| took()).min()
            };
            std::thread::spawn(measure).join().ok().flatten().unwrap_or_default()
        };
        assert!(least(true, true) >= PIECE * (1 + REST));
        assert!(pace.is_decoding());
        let (other, idle) = (least(true, false), least(false, true));
        assert!(other < PIECE * (1 + REST) && idle < PIECE * (1 + REST), "{other:?} {idle:?}");
    }
}
