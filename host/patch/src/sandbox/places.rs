//! Where the instances of a pool wait for the next call.
//!
//! A call is short (half a microsecond), so its way to an instance is too: a thread has a slot, whose lock nobody else wants,
//! and calls the instance that lies in it. The lock is held during the call. Whoever finds a slot locked goes on to the next
//! one and never waits; so an instance has one caller, and there are never many more of them than callers at once, however many
//! threads come and go. A slot belongs to a pool, not to a thread: with the pool go all of its instances.

use super::Stats;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};

/// Most slots of a pool.
const MOST_SLOTS: usize = 64;

/// Places for instances (`I`).
pub(super) enum Places<I> {
    /// Any number of callers at once.
    Many {
        /// As many as a power of two.
        slots: Box<[Slot<I>]>,
        /// For callers that find every slot locked.
        spare: Mutex<Vec<Box<I>>>,
    },
    /// One instance, and one caller at a time.
    One {
        only: Mutex<Only<I>>,
        /// Wakes a caller that waits.
        free: Condvar,
    },
}

/// In lines of its own: two threads must not write to one line.
#[repr(align(128))]
pub(super) struct Slot<I> {
    /// Boxed: what is taken out and put back is a pointer.
    lies: Mutex<Option<Box<I>>>,
    /// Of the calls whose caller holds the lock.
    stats: Stats,
}

/// The place of the only instance.
pub(super) struct Only<I> {
    lies: Option<Box<I>>,
    /// Whether it is being called or made.
    taken: bool,
}

/// A caller's place. What lies in `back` when it is dropped waits there for the next call; after a fault or a panic that is
/// nothing, and the place is free.
pub(super) struct Place<'a, I> {
    at: At<'a, I>,
    pub(super) back: Option<Box<I>>,
}

enum At<'a, I> {
    Slot(MutexGuard<'a, Option<Box<I>>>, &'a Stats),
    Spare(&'a Mutex<Vec<Box<I>>>),
    Only(&'a Mutex<Only<I>>, &'a Condvar),
}

impl<I> Places<I> {
    /// For any number of callers; `threads` of them at once find a slot.
    pub(super) fn many(threads: usize) -> Self {
        // Twice: threads of another pool (a refit in the background) call too, and numbers of threads may meet in a slot.
        let slots = threads.clamp(1, MOST_SLOTS / 2).next_power_of_two() * 2;
        let slot = || Slot { lies: Mutex::new(None), stats: Stats::default() };
        Self::Many { slots: (0..slots).map(|_| slot()).collect(), spare: Mutex::default() }
    }

    /// For one.
    pub(super) fn one() -> Self {
        Self::One { only: Mutex::new(Only { lies: None, taken: false }), free: Condvar::new() }
    }

    /// Whether there is one instance at most.
    pub(super) fn is_one(&self) -> bool {
        matches!(self, Self::One { .. })
    }

    /// A place, and an instance where one waits. Where there may be one only, this waits for it: no longer than the call that
    /// has it may take.
    pub(super) fn take(&self) -> (Place<'_, I>, Option<Box<I>>) {
        match self {
            Self::Many { slots, spare } => {
                let home = seat() & (slots.len() - 1);
                if let Some(mut lies) = slots[home].try_lock()
                    && let Some(instance) = lies.take()
                {
                    return (Place { at: At::Slot(lies, &slots[home].stats), back: None }, Some(instance));
                }
                take_elsewhere(slots, spare, home)
            }
            Self::One { only, free } => {
                let mut one = lock(only);
                while one.taken {
                    one = free.wait(one).unwrap_or_else(PoisonError::into_inner);
                }
                one.taken = true;
                let lies = one.lies.take();
                (Place { at: At::Only(only, free), back: None }, lies)
            }
        }
    }

    /// Counters of the calls at each slot.
    pub(super) fn stats(&self) -> impl Iterator<Item = &Stats> {
        let slots = match self {
            Self::Many { slots, .. } => &slots[..],
            Self::One { .. } => &[],
        };
        slots.iter().map(|slot| &slot.stats)
    }
}

/// An instance that waits at any slot, at that slot; else a free slot. No lock is held while another one is tried: a caller that
/// only looks must not hide two.
#[cold]
fn take_elsewhere<'a, I>(
    slots: &'a [Slot<I>],
    spare: &'a Mutex<Vec<Box<I>>>,
    home: usize,
) -> (Place<'a, I>, Option<Box<I>>) {
    let round = || (home..slots.len()).chain(0..home).map(|i| &slots[i]);
    for slot in round() {
        if let Some(mut lies) = slot.try_lock()
            && let Some(instance) = lies.take()
        {
            return (Place { at: At::Slot(lies, &slot.stats), back: None }, Some(instance));
        }
    }
    // Before a new one is made.
    let instance = lock(spare).pop();
    for slot in round() {
        if let Some(mut lies) = slot.try_lock() {
            let instance = match lies.take() {
                Some(came) => {
                    lock(spare).extend(instance);
                    Some(came)
                }
                None => instance,
            };
            return (Place { at: At::Slot(lies, &slot.stats), back: None }, instance);
        }
    }
    (Place { at: At::Spare(spare), back: None }, instance)
}

impl<I> Slot<I> {
    fn try_lock(&self) -> Option<MutexGuard<'_, Option<Box<I>>>> {
        match self.lies.try_lock() {
            Ok(lies) => Some(lies),
            // Somebody panicked in a call: its instance went with it.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl<I> Place<'_, I> {
    /// Counters that nobody else writes to as long as the place is held.
    pub(super) fn own_stats(&self) -> Option<&Stats> {
        match self.at {
            At::Slot(_, stats) => Some(stats),
            At::Spare(_) | At::Only(..) => None,
        }
    }
}

impl<I> Drop for Place<'_, I> {
    fn drop(&mut self) {
        let back = self.back.take();
        match &mut self.at {
            At::Slot(lies, _) => **lies = back,
            At::Spare(spare) => lock(spare).extend(back),
            At::Only(only, free) => {
                let mut one = lock(only);
                one.lies = back;
                one.taken = false;
                drop(one);
                free.notify_one();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of the calling thread: threads that live at the same time have different ones.
fn seat() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static SEAT: usize = NEXT.fetch_add(1, Relaxed));
    // A thread that ends may call in its last destructors.
    SEAT.try_with(|seat| *seat).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::AtomicU64;

    /// Something that is made where nothing waits, as instances are, and called.
    struct Made<'a> {
        alive: &'a AtomicUsize,
        called: AtomicU64,
    }

    impl Drop for Made<'_> {
        fn drop(&mut self) {
            self.alive.fetch_sub(1, Relaxed);
        }
    }

    /// A call: true if a new one was made for it.
    fn call<'a>(places: &Places<Made<'a>>, alive: &'a AtomicUsize, during: impl FnOnce()) -> bool {
        let (mut place, waits) = places.take();
        let new = waits.is_none();
        let made = waits.unwrap_or_else(|| {
            alive.fetch_add(1, Relaxed);
            Box::new(Made { alive, called: AtomicU64::new(0) })
        });
        let before = made.called.fetch_add(1, Relaxed);
        during();
        assert_eq!(made.called.load(Relaxed), before + 1, "an instance has one caller at a time");
        place.back = Some(made);
        new
    }

    #[test]
    fn threads_that_come_and_go_find_the_instance_of_those_before() {
        let alive = AtomicUsize::new(0);
        let places = Places::many(2);
        for thread in 0..100 {
            let new =
                std::thread::scope(|scope| scope.spawn(|| call(&places, &alive, || ())).join().expect("no panic"));
            assert_eq!(new, thread == 0);
        }
        assert_eq!(alive.load(Relaxed), 1);
        drop(places);
        assert_eq!(alive.load(Relaxed), 0, "with the pool go its instances");
    }

    #[test]
    fn more_callers_at_once_than_slots_have_an_instance_each() {
        let alive = AtomicUsize::new(0);
        let places = Places::many(1);
        for round in 0..3 {
            let together = Barrier::new(11);
            std::thread::scope(|scope| {
                for _ in 0..11 {
                    scope.spawn(|| call(&places, &alive, || _ = together.wait()));
                }
            });
            assert_eq!(alive.load(Relaxed), 11, "round {round}");
        }
    }

    #[test]
    fn there_are_never_many_more_than_callers_at_once() {
        let alive = AtomicUsize::new(0);
        let places = Places::many(4);
        for _ in 0..20 {
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| (0..500).for_each(|_| _ = call(&places, &alive, std::thread::yield_now)));
                }
            });
            assert!(alive.load(Relaxed) <= 8, "one for each slot at most: {}", alive.load(Relaxed));
        }
    }

    #[test]
    fn a_call_within_a_call_gets_another_instance() {
        let alive = AtomicUsize::new(0);
        let places = Places::many(1);
        assert!(call(&places, &alive, || assert!(call(&places, &alive, || ()))));
        assert!(!call(&places, &alive, || assert!(!call(&places, &alive, || ()))));
        assert_eq!(alive.load(Relaxed), 2);
    }

    #[test]
    fn after_a_panic_the_place_is_free_and_the_instance_is_gone() {
        let alive = AtomicUsize::new(0);
        for places in [Places::many(1), Places::one()] {
            for _ in 0..3 {
                let panics = || call(&places, &alive, || panic!("as said"));
                std::thread::scope(|scope| assert!(scope.spawn(panics).join().is_err()));
                assert_eq!(alive.load(Relaxed), 0);
            }
            assert!(call(&places, &alive, || ()));
            assert!(!call(&places, &alive, || ()));
            assert_eq!(alive.load(Relaxed), 1);
        }
    }

    #[test]
    fn the_only_instance_has_one_caller_at_a_time() {
        let alive = AtomicUsize::new(0);
        let places = Places::one();
        let made: usize = std::thread::scope(|scope| {
            let calls = || (0..200).filter(|_| call(&places, &alive, std::thread::yield_now)).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(calls)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!((made, alive.load(Relaxed)), (1, 1));
    }
}
