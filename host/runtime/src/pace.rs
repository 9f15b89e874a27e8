//! Decoding and what goes on in the background (refits, candidates) on the same cores: neither may starve the other.
//!
//! Threads of the background have a low priority, so a step of the decode thread has the cores nearly to itself. But a
//! priority is a share, and the scheduler of the system pays a share out in slices of several milliseconds: a low one
//! starves a refit, a higher one stalls a token. So the decode thread itself makes room: while anything waits in the
//! background, it stands still for a moment after each step, shorter than anybody sees, and the background has all cores.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Which part of its time the decode thread gives away: a ninth.
const SHARE: u32 = 8;
/// The shortest moment: below it, threads are hardly awake before it ends.
const LEAST: Duration = Duration::from_micros(200);
/// The longest: half of the millisecond that a token may come later because of a refit.
const MOST: Duration = Duration::from_micros(500);

/// Who is at work on an engine. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Pace(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    background: AtomicUsize,
    decoding: AtomicBool,
}

/// Something is going on in the background, until this is dropped.
#[derive(Debug)]
pub struct Background(Arc<Shared>);

impl Pace {
    /// Says that something begins in the background.
    pub fn background(&self) -> Background {
        self.0.background.fetch_add(1, Ordering::Relaxed);
        Background(self.0.clone())
    }

    /// Whether sequences are being decoded now.
    pub fn is_decoding(&self) -> bool {
        self.0.decoding.load(Ordering::Relaxed)
    }

    /// Says whether sequences are being decoded.
    pub fn set_decoding(&self, decoding: bool) {
        self.0.decoding.store(decoding, Ordering::Relaxed);
    }

    /// Stands still for a moment after a step that took `step`, if anything waits in the background.
    pub fn give_way(&self, step: Duration) {
        if self.0.background.load(Ordering::Relaxed) > 0 {
            std::thread::sleep((step / SHARE).clamp(LEAST, MOST));
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.background.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn only_where_something_waits() {
        let pace = Pace::default();
        let slept = |pace: &Pace| {
            let began = Instant::now();
            pace.give_way(Duration::ZERO);
            began.elapsed() >= LEAST
        };
        let (one, two) = (pace.background(), pace.background());
        assert!(slept(&pace));
        drop(one);
        assert!(slept(&pace));
        drop(two);
        assert_eq!(pace.0.background.load(Ordering::Relaxed), 0);
        assert!(!pace.is_decoding());
        pace.set_decoding(true);
        assert!(pace.clone().is_decoding());
    }
}
