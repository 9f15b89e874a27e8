//! A small team of threads that share out short pieces of work: a forward pass has hundreds of products of a few
//! microseconds each, too short to wake a sleeping thread for.
//!
//! The members spin for a moment after each job and sleep afterwards. A job never waits for a member that is late: who
//! asks does all of the work that nobody else has taken, and then waits only for those who are at it. A team that is
//! busy with another caller's job, or one of whose members asks, lets the caller work alone. So a team never deadlocks,
//! and several callers do not put more threads to work than the machine has cores.

use std::any::Any;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::environment::{self, MOST_THREADS, THREADS_VARIABLE};

/// How long a member looks out for the next job before it sleeps. Longer than the pauses within a forward pass and
/// between two of them (sampling, handing out text), short enough to leave an idle machine alone.
const SPIN: Duration = Duration::from_micros(100);

/// How long it looks out without letting others run.
const EAGER: Duration = Duration::from_micros(20);

/// A job, as its members see it.
#[derive(Clone, Copy)]
struct Job {
    /// Called with the number of each task.
    run: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

// SAFETY: the pointer is followed only by members that joined the job while it was open, and the caller of `Team::run`
// keeps the closure, which is `Sync`, alive until the last of them has left. Afterwards it may dangle unused.
unsafe impl Send for Job {}

/// `state`: the number of the job in the upper half; then whether it is open; then how many members are at it.
///
/// Members change it by read-modify-write only, and only join while it is open; the caller overwrites it only while it is
/// closed and nobody is at it. So a job, once written, stays until its last member has left. Numbers return after 2^32
/// jobs: a member that slept for exactly as many misses one, which costs its help and nothing else.
const OPEN: u64 = 1 << 31;
const MEMBERS: u64 = OPEN - 1;

struct Shared {
    state: AtomicU64,
    /// The next task that nobody has taken.
    next: AtomicUsize,
    job: Mutex<Option<Job>>,
    /// What a task panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Members that sleep or are about to.
    sleeping: AtomicUsize,
    stop: AtomicBool,
}

/// Threads that work on one job at a time; see the module.
pub struct Team {
    shared: Arc<Shared>,
    members: Vec<JoinHandle<()>>,
    handles: Vec<Thread>,
    /// Held by the caller whose job it is.
    busy: Mutex<()>,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Team({} threads)", self.threads())
    }
}

/// `PATCHHOST_THREADS`, else `RAYON_NUM_THREADS`, else the cores that this process may use.
fn default_threads() -> usize {
    let own = std::env::var_os(THREADS_VARIABLE).and_then(|text| environment::threads(&text).ok());
    let rayon = || std::env::var("RAYON_NUM_THREADS").ok()?.parse().ok().filter(|n: &usize| *n > 0);
    let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
    own.or_else(rayon).unwrap_or_else(cores).min(MOST_THREADS)
}

impl Team {
    /// A team of `threads` threads, of which the caller of each job is one. Threads that the system refuses are done
    /// without.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: Mutex::new(None),
            panic: Mutex::new(None),
            sleeping: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let member = |i: usize| {
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("patchhost-team-{i}")).spawn(move || work(&shared)).ok()
        };
        let members: Vec<JoinHandle<()>> = (1..threads.max(1)).map_while(member).collect();
        let handles = members.iter().map(|m| m.thread().clone()).collect();
        Self { shared, members, handles, busy: Mutex::new(()) }
    }

    /// The team of this process: as many threads as `PATCHHOST_THREADS` or `RAYON_NUM_THREADS` say, else as there are
    /// cores.
    pub fn global() -> &'static Team {
        static TEAM: LazyLock<Team> = LazyLock::new(|| Team::new(default_threads()));
        &TEAM
    }

    /// Threads that work on a job, the caller's included.
    pub fn threads(&self) -> usize {
        self.members.len() + 1
    }

    /// Calls `task` with every number below `tasks`, each once, in any order and on any thread of the team, and returns
    /// when all are done. Allocates nothing.
    ///
    /// # Panics
    /// If a task panics: with its panic, after all threads have left the job.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let alone = || (0..tasks).for_each(task);
        if tasks < 2 || self.members.is_empty() {
            return alone();
        }
        match self.busy.try_lock() {
            Ok(turn) => self.share(tasks, task, turn),
            Err(TryLockError::Poisoned(turn)) => self.share(tasks, task, turn.into_inner()),
            Err(TryLockError::WouldBlock) => alone(),
        }
    }

    /// Runs one job with the members' help; `_turn` proves that it is the only one.
    fn share(&self, tasks: usize, task: &(dyn Fn(usize) + Sync), _turn: MutexGuard<'_, ()>) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. The pointer is followed by members between joining and leaving; `Close`
        // below, which is dropped before this function returns or unwinds, waits until all have left.
        let run = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(task)
        };
        // The last job left one behind if its caller panicked too. Payloads are forgotten, not dropped: that may panic.
        std::mem::forget(lock(&shared.panic).take());
        *lock(&shared.job) = Some(Job { run, tasks });
        shared.next.store(0, Ordering::Relaxed);
        let number = (shared.state.load(Ordering::Relaxed) >> 32).wrapping_add(1) << 32;
        // Sequentially consistent with the member that counts itself as sleeping and then looks once more.
        // It also publishes the job and what the tasks read to those who join.
        shared.state.store(number | OPEN, Ordering::SeqCst);
        let close = Close(shared);
        if shared.sleeping.load(Ordering::SeqCst) > 0 {
            self.handles.iter().for_each(Thread::unpark);
        }
        loop {
            let i = shared.next.fetch_add(1, Ordering::Relaxed);
            if i >= tasks {
                break;
            }
            task(i);
        }
        drop(close);
        if let Some(panic) = lock(&shared.panic).take() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.handles.iter().for_each(Thread::unpark);
        for member in self.members.drain(..) {
            // A member catches the panics of tasks; it has none of its own.
            let _ = member.join();
        }
    }
}

/// A slice whose parts several tasks write.
pub(crate) struct Disjoint<'a>(*mut f32, usize, PhantomData<&'a mut [f32]>);

// SAFETY: it stands for an exclusive slice of `f32`, which other threads may write too (`f32` is `Send`), and the callers of
// `part` promise that no two parts in use overlap.
unsafe impl Sync for Disjoint<'_> {}

impl<'a> Disjoint<'a> {
    pub(crate) fn new(slice: &'a mut [f32]) -> Self {
        Self(slice.as_mut_ptr(), slice.len(), PhantomData)
    }

    /// # Safety
    /// No other part is used at the same time that overlaps this one.
    ///
    /// # Panics
    /// If the part does not lie within the slice.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, from: usize, len: usize) -> &mut [f32] {
        assert!(from <= self.1 && len <= self.1 - from, "a part of the slice");
        // SAFETY: within the slice, which is borrowed exclusively as long as `self` lives and reached through this
        // pointer only; the caller keeps parts apart.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(from), len) }
    }
}

/// Closes the job and waits until its members have left, also when the caller's own task panics.
struct Close<'a>(&'a Shared);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        // No task begins after this; after a panic some are never done.
        self.0.next.store(usize::MAX / 2, Ordering::Relaxed);
        // Acquires, here or below, what each member wrote before it left: all changes since the job was opened are
        // read-modify-writes, one release sequence.
        let mut state = self.0.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looked = 0u32;
        while state & MEMBERS != 0 {
            looked += 1;
            // A member that was taken off its core needs ours.
            if looked.is_multiple_of(4096) {
                std::thread::yield_now()
            } else {
                std::hint::spin_loop()
            }
            state = self.0.state.load(Ordering::Acquire);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A member's life.
fn work(shared: &Shared) {
    let mut seen = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        let number = wait(shared, seen);
        if let Some(number) = number {
            seen = number;
            join(shared, number);
        }
    }
}

/// The number of an open job that is not `seen`; none when it was woken for another reason.
fn wait(shared: &Shared, seen: u64) -> Option<u64> {
    let fresh = |state: u64| (state & OPEN != 0 && state >> 32 != seen).then_some(state >> 32);
    let begun = Instant::now();
    let mut looked = 0u32;
    loop {
        if let Some(number) = fresh(shared.state.load(Ordering::Acquire)) {
            return Some(number);
        }
        looked += 1;
        if !looked.is_multiple_of(64) {
            std::hint::spin_loop();
            continue;
        }
        let waited = begun.elapsed();
        if waited > SPIN {
            break;
        }
        if waited > EAGER {
            std::thread::yield_now();
        }
    }
    shared.sleeping.fetch_add(1, Ordering::SeqCst);
    let number = fresh(shared.state.load(Ordering::SeqCst));
    if number.is_none() && !shared.stop.load(Ordering::SeqCst) {
        std::thread::park();
    }
    shared.sleeping.fetch_sub(1, Ordering::SeqCst);
    number
}

/// Joins the job unless it is over, works, leaves.
fn join(shared: &Shared, number: u64) {
    let mut state = shared.state.load(Ordering::Acquire);
    loop {
        if state & OPEN == 0 || state >> 32 != number {
            return;
        }
        match shared.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => break,
            Err(now) => state = now,
        }
    }
    let job = *lock(&shared.job);
    if let Some(Job { run, tasks }) = job {
        // SAFETY: this thread is a member of an open job: the caller waits for it to leave before the closure ends.
        let run = unsafe { &*run };
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let i = shared.next.fetch_add(1, Ordering::Relaxed);
                if i >= tasks {
                    break;
                }
                run(i);
            }
        }));
        if let Err(panic) = result {
            let mut first = lock(&shared.panic);
            match &*first {
                None => *first = Some(panic),
                // Dropping it may panic, and this member must leave.
                Some(_) => std::mem::forget(panic),
            }
        }
    }
    shared.state.fetch_sub(1, Ordering::AcqRel);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds of a test; few in Miri, which tries another interleaving with each seed instead.
    fn rounds(usual: usize) -> usize {
        if cfg!(miri) { 2 } else { usual }
    }

    #[test]
    fn every_task_is_done_once() {
        for threads in [1, 2, 5] {
            let team = Team::new(threads);
            assert_eq!(team.threads(), threads);
            for tasks in [0, 1, 2, 3, rounds(100), rounds(1000)] {
                for _ in 0..rounds(20) {
                    let done: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    team.run(tasks, &|i| {
                        done[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(done.iter().all(|d| d.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn members_that_sleep_are_woken() {
        let team = Team::new(2);
        for _ in 0..3 {
            std::thread::sleep(SPIN * 20);
            let first = std::thread::current().id();
            let other = AtomicBool::new(false);
            // Until another thread has helped: on a machine of one core that takes a while.
            for _ in 0..10_000 {
                team.run(8, &|_| {
                    std::thread::sleep(Duration::from_micros(50));
                    other.fetch_or(std::thread::current().id() != first, Ordering::Relaxed);
                });
                if other.load(Ordering::Relaxed) {
                    break;
                }
            }
            assert!(other.load(Ordering::Relaxed));
        }
    }

    #[test]
    fn a_panic_comes_through_and_the_team_goes_on() {
        let team = Team::new(3);
        for at in [0, 7, 63] {
            let run = || team.run(64, &|i| assert_ne!(i, at, "task"));
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        }
        let sum = AtomicUsize::new(0);
        team.run(64, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 63 * 32);
    }

    #[test]
    fn two_panics_in_one_job_leave_nothing_behind() {
        /// What a panic may carry: more trouble.
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("a payload that panics when it is dropped");
            }
        }
        let team = Team::new(3);
        for threads in [2, 3] {
            let begun = AtomicUsize::new(0);
            // Each thread of the job takes a task and waits for the others: all of them panic, the caller too.
            let run = || {
                team.run(threads, &|_| {
                    begun.fetch_add(1, Ordering::SeqCst);
                    while begun.load(Ordering::SeqCst) < threads {
                        std::thread::yield_now();
                    }
                    std::panic::panic_any(Bomb);
                });
            };
            std::mem::forget(catch_unwind(AssertUnwindSafe(run)).expect_err("the caller's own panic"));
            let sum = AtomicUsize::new(0);
            team.run(64, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 63 * 32);
        }
    }

    #[test]
    fn the_number_of_a_job_may_wrap_around() {
        let team = Team::new(2);
        team.shared.state.store((u64::from(u32::MAX) - 2) << 32, Ordering::SeqCst);
        for _ in 0..6 {
            let done = AtomicUsize::new(0);
            team.run(100, &|_| {
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 100);
        }
        assert_eq!(team.shared.state.load(Ordering::SeqCst) >> 32, 3);
    }

    #[test]
    fn callers_at_once_and_jobs_within_jobs() {
        let team = Team::new(3);
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..rounds(200) {
                        team.run(4, &|_| {
                            team.run(5, &|_| {
                                sum.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * rounds(200) * 20);
    }
}
