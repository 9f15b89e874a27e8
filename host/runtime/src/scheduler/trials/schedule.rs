//! One random schedule: requests, aborts, pauses, new weights and everything else at random moments between the turns of a worker, and
//! what must hold in the end.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::asks::{any, asks, one_in, options, stems};
use super::model::{Kind, kinds, tokenizer};
use super::reference::{Ask, Log};
use super::verdict::{Case, Manner, Track, ended};
use crate::error::{Refusal, RuntimeError};
use crate::scheduler::handle::{Scheduler, SchedulerOptions};
use crate::scheduler::job::{Event, Job, SubmitError};
use crate::scheduler::pause::PauseMode;
use crate::scheduler::worker::Worker;
use crate::weights::WeightSet;

/// Which weights a request gets, by its id.
struct Choice {
    live: Arc<WeightSet>,
    /// For those whose id begins with `canary`.
    canary: Option<Arc<WeightSet>>,
    /// Those whose id begins with `lost` get none.
    failing: bool,
}

/// A schedule under way.
pub(super) struct Trial {
    pub(super) kind: &'static Kind,
    rng: StdRng,
    pub(super) options: SchedulerOptions,
    scheduler: Scheduler,
    worker: Worker,
    choice: Arc<Mutex<Choice>>,
    stems: Vec<Vec<u32>>,
    pub(super) cases: Vec<Case>,
    /// Weights that only this schedule has.
    pub(super) fresh: Vec<Arc<WeightSet>>,
    pub(super) aborted: Arc<Mutex<HashSet<String>>>,
    pub(super) aborts: usize,
    pub(super) failed_once: bool,
    /// Tokens that all receivers together got.
    tokens: Arc<AtomicUsize>,
    submitted: usize,
}

/// Runs the schedule of this seed.
pub(super) fn run(seed: u64) {
    let mut trial = Trial::new(seed);
    for _ in 0..trial.rng.random_range(10..40) {
        trial.act();
    }
    trial.settle();
    trial.check();
}

impl Trial {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let kinds = kinds();
        let kind = &kinds[rng.random_range(0..kinds.len())];
        let options = options(&mut rng, kind);
        let choice = Choice { live: kind.sets[0].clone(), canary: None, failing: false };
        let choice = Arc::new(Mutex::new(choice));
        let weights = {
            let choice = choice.clone();
            Arc::new(move |id: &str| {
                let choice = choice.lock().unwrap();
                match &choice.canary {
                    _ if choice.failing && id.starts_with("lost") => {
                        drop(choice);
                        if id.ends_with('7') {
                            std::panic::resume_unwind(Box::new("no weights"));
                        }
                        Err(RuntimeError::Request(Refusal::new("weights", "no weights", "try again")))
                    }
                    Some(canary) if id.starts_with("canary") => Ok(canary.clone()),
                    _ => Ok(choice.live.clone()),
                }
            })
        };
        let (scheduler, worker) = Scheduler::by_hand(kind.engine.clone(), tokenizer(), weights, options);
        let stems = stems(&mut rng);
        Self {
            kind,
            rng,
            options,
            scheduler,
            worker,
            choice,
            stems,
            cases: Vec::new(),
            fresh: Vec::new(),
            aborted: Arc::default(),
            aborts: 0,
            failed_once: false,
            tokens: Arc::default(),
            submitted: 0,
        }
    }

    fn act(&mut self) {
        match self.rng.random_range(0..100) {
            0..32 => self.submit(),
            32..76 => (0..self.rng.random_range(1..7)).for_each(|_| self.turn()),
            76..80 => {
                let Some(case) = self.cases.get(self.rng.random_range(0..self.cases.len().max(1))) else { return };
                let id = case.ask.id.clone();
                self.aborted.lock().unwrap().insert(id.clone());
                self.silence(|case| case.ask.id == id);
                self.scheduler.abort(&[id]);
            }
            80 => {
                self.abort_all();
                self.scheduler.abort_all();
            }
            81..90 => self.pause_or_resume(),
            90..95 => {
                let next = any(&mut self.rng, &self.kind.sets);
                self.choice.lock().unwrap().live = next;
            }
            95 => {
                let next = one_in(&mut self.rng, 2).then(|| any(&mut self.rng, &self.kind.sets));
                self.choice.lock().unwrap().canary = next;
            }
            96 => {
                let mut choice = self.choice.lock().unwrap();
                choice.failing = !choice.failing;
                self.failed_once = true;
            }
            97 => self.scheduler.reset_prefix_cache(),
            98 => match self.scheduler.is_sleeping() {
                None => drop(self.scheduler.sleep(1)),
                Some(_) => self.scheduler.wake(),
            },
            _ if one_in(&mut self.rng, 4) => {
                let n = self.fresh.len() as u64;
                let fresh = self.kind.weights(100 + n, &format!("fresh{n}"));
                self.fresh.push(fresh.clone());
                self.choice.lock().unwrap().live = fresh;
            }
            _ => {}
        }
    }

    /// Jobs that live now must not hear of another token.
    fn silence(&mut self, which: impl Fn(&Case) -> bool) {
        for case in self.cases.iter_mut().filter(|c| c.aborted_at.is_none() && which(c)) {
            let log = case.log.lock().unwrap();
            if !ended(&case.manner, &log) {
                case.aborted_at = Some(log.len());
            }
        }
    }

    fn abort_all(&mut self) {
        self.aborts += 1;
        self.silence(|_| true);
    }

    fn pause_or_resume(&mut self) {
        if self.scheduler.is_paused().is_some() && one_in(&mut self.rng, 2) {
            return self.scheduler.resume();
        }
        let mode = any(
            &mut self.rng,
            &[PauseMode::Abort, PauseMode::Wait, PauseMode::Keep, PauseMode::Keep, PauseMode::Keep, PauseMode::Retract],
        );
        if mode == PauseMode::Abort {
            self.abort_all();
        }
        let (ticket, _) = self.scheduler.begin_pause(mode);
        if !one_in(&mut self.rng, 2) {
            return;
        }
        // As the caller of `pause` waits. Asleep, what runs cannot end.
        for _ in 0..2000 {
            let state = self.scheduler.inner().state();
            if state.pause.as_ref().is_none_or(|p| p.ticket != ticket || p.reached) || state.asleep.is_some() {
                return;
            }
            drop(state);
            self.turn();
        }
        panic!("pause {mode:?} is never reached");
    }

    fn submit(&mut self) {
        let k = self.cases.len();
        let name = any(&mut self.rng, &["r", "r", "r", "canary", "lost"]);
        let id = match self.cases.last() {
            Some(last) if one_in(&mut self.rng, 12) => last.ask.id.clone(),
            _ => format!("{name}{k}"),
        };
        let mut all = asks(&mut self.rng, self.kind, &self.stems, &id);
        if one_in(&mut self.rng, 8) {
            all.extend(asks(&mut self.rng, self.kind, &self.stems, &format!("{id}-b")));
        }
        let cases: Vec<Case> = all.into_iter().map(|ask| self.case(ask)).collect();
        let jobs = cases.iter().map(|case| self.job(case)).collect();
        let model = self.kind.engine.model();
        let fits = |case: &Case| {
            let n = case.ask.prompt.len();
            n > 0 && n <= model.max_positions() && model.cache_bytes(n) <= self.options.kv_cache_bytes
        };
        let good = cases.iter().all(fits);
        let waiting = self.scheduler.load().waiting;
        match self.scheduler.submit_all(jobs) {
            Ok(()) => {
                assert!(good && waiting + cases.len() <= self.options.max_waiting);
                let tickets: Vec<u64> = {
                    let state = self.scheduler.inner().state();
                    state.waiting.iter().skip(waiting).map(|q| q.ticket).collect()
                };
                assert_eq!(tickets.len(), cases.len());
                self.submitted += cases.len();
                self.cases.extend(cases.into_iter().zip(tickets).map(|(case, ticket)| Case { ticket, ..case }));
            }
            Err(e) => {
                match e {
                    SubmitError::Full { .. } => assert!(waiting + cases.len() > self.options.max_waiting),
                    SubmitError::Invalid(_) => assert!(!good),
                    SubmitError::Stopped => panic!("{e}"),
                }
                assert!(cases.iter().all(|c| c.log.lock().unwrap().is_empty()));
            }
        }
    }

    fn case(&mut self, ask: Ask) -> Case {
        let at = self.rng.random_range(0..6);
        let manner = match self.rng.random_range(0..24) {
            0 => Manner::Leaves(at),
            1 => Manner::Panics(at),
            2 => Manner::Aborts(at, self.cases.last().map_or("r0".to_string(), |c| c.ask.id.clone())),
            _ => Manner::Listens,
        };
        Case { ask, manner, log: Log::default(), ticket: 0, track: None, aborts: self.aborts, aborted_at: None }
    }

    fn job(&self, case: &Case) -> Job {
        let (log, manner, tokens) = (case.log.clone(), case.manner.clone(), self.tokens.clone());
        let (scheduler, aborted) = (self.scheduler.clone(), self.aborted.clone());
        case.ask.job(self.kind, move |event| {
            if matches!(event, Event::Token(_)) {
                tokens.fetch_add(1, Ordering::Relaxed);
            }
            let n = log.lock().unwrap().len();
            log.lock().unwrap().push(event);
            match &manner {
                Manner::Leaves(at) if n >= *at => return false,
                Manner::Panics(at) if n >= *at => std::panic::resume_unwind(Box::new("a receiver")),
                Manner::Aborts(at, id) if n == *at => {
                    aborted.lock().unwrap().insert(id.clone());
                    scheduler.abort(std::slice::from_ref(id));
                }
                _ => {}
            }
            true
        })
    }

    /// One turn of the worker, if there is anything to do.
    fn turn(&mut self) {
        let still = {
            let state = self.scheduler.inner().state();
            if !self.worker.has_work(&state) {
                return;
            }
            !state.steps()
        };
        let before = self.tokens.load(Ordering::Relaxed);
        assert!(self.worker.turn());
        assert!(!still || self.tokens.load(Ordering::Relaxed) == before, "a token during a pause");
        let running = &self.worker.running;
        assert!(running.len() <= self.options.max_num_seqs);
        let held: Vec<usize> = running.iter().filter(|r| !r.cache.is_empty()).map(|r| r.cache.bytes()).collect();
        assert!(held.len() < 2 || held.iter().sum::<usize>() <= self.options.kv_cache_bytes, "{held:?}");
        for r in running {
            let case = self.cases.iter_mut().find(|c| c.ticket == r.ticket).unwrap();
            let kept = case.track.take();
            let moves = kept.as_ref().map(|t| t.next(&r.weights, r.preempted)).unwrap_or_default();
            let (start, mut all) = kept.map_or((r.weights.clone(), Vec::new()), |t| (t.start, t.moves));
            all.extend(moves);
            case.track = Some(Track {
                start,
                moves: all,
                now: r.weights.clone(),
                held: r.cache.len(),
                generated: r.generated(),
                preempted: r.preempted,
                mixed: r.mixed,
                started: r.started,
            });
            let same = |o: &&crate::scheduler::sequence::Running| o.request == r.request;
            assert!(
                running.iter().filter(same).all(|o| o.weights.id() == r.weights.id()),
                "samples of {:?}",
                r.request
            );
        }
    }

    /// Everything ends.
    fn settle(&mut self) {
        self.scheduler.resume();
        self.scheduler.wake();
        for _ in 0..20_000 {
            let state = self.scheduler.inner().state();
            if !self.worker.has_work(&state) {
                return;
            }
            drop(state);
            self.turn();
        }
        panic!("it does not end");
    }

    /// Nothing is left behind, and every answer is that of the request alone.
    fn check(mut self) {
        {
            let state = self.scheduler.inner().state();
            let left = (state.waiting.len(), state.dying.len(), state.running.len(), state.jobs.len());
            assert_eq!(left, (0, 0, 0, 0));
        }
        assert_eq!((self.worker.running.len(), self.worker.pins.len()), (0, 0));
        let load = self.scheduler.load();
        assert_eq!((load.running, load.waiting, load.kv_bytes), (0, 0, 0));
        assert_eq!(load.finished + load.failed + load.aborted, self.submitted as u64);
        assert!(load.prefix_bytes <= self.options.prefix_cache_bytes);
        for case in std::mem::take(&mut self.cases) {
            self.check_case(&case);
        }
        self.choice.lock().unwrap().live = self.kind.sets[0].clone();
        for set in &self.fresh {
            assert_eq!(Arc::strong_count(set), 1, "{} is held by somebody", set.label());
        }
    }
}
