//! Knowing when to look: events of the folders that the paths go through, and a look now and then for what events do not
//! tell (a folder above that was renamed, a file system without events, a watch that was lost).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::inner::Inner;
use super::places::Places;

/// Events within this time are one.
const DEBOUNCE: Duration = Duration::from_millis(60);
/// How often paths are looked at without an event.
const POLL: Duration = Duration::from_secs(1);
/// The same where the system has no events for us.
const POLL_ALONE: Duration = Duration::from_millis(250);
/// How often the places are looked up again where they change while they are being watched.
const TRIES: usize = 5;

enum Wake {
    Event(Event),
    /// Events were lost, or cannot be had.
    Trouble(String),
    Stop,
}

/// Two threads, one that looks and one that stages, until it is dropped.
pub(super) struct Follower {
    wake: Sender<Wake>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It has ended already, or it ends now.
        let _ = self.wake.send(Wake::Stop);
    }
}

impl Follower {
    /// Begins. When this returns, every change from now on is seen.
    pub(super) fn start(inner: Arc<Inner>) -> io::Result<Self> {
        let (wake, wakes) = channel();
        let events = wake.clone();
        let handler = move |event: notify::Result<Event>| {
            let woken = match event {
                // Our own reading makes these.
                Ok(event) if is_reading(event.kind) => return,
                Ok(event) => Wake::Event(event),
                Err(error) => Wake::Trouble(words(&error)),
            };
            // Nobody listens any more.
            let _ = events.send(woken);
        };
        let (notify, trouble) = match notify::recommended_watcher(handler) {
            Ok(notify) => (Some(notify), None),
            Err(error) => (None, Some(words(&error))),
        };
        let (ready, work) = channel();
        let (places, armed) = (Places::default(), BTreeMap::new());
        let mut watch = Watch { inner: inner.clone(), notify, places, armed, trouble: None, ready };
        watch.say(trouble);
        watch.arm();
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        thread("patchhost-staging").spawn(move || {
            while work.recv().is_ok() {
                inner.bring();
            }
        })?;
        thread("patchhost-watch").spawn(move || watch.run(&wakes))?;
        Ok(Self { wake })
    }
}

struct Watch {
    inner: Arc<Inner>,
    /// None: the system has no events for us.
    notify: Option<RecommendedWatcher>,
    places: Places,
    /// The folders that are watched, each as the file that it was then: a folder made anew under the name is another one.
    armed: BTreeMap<PathBuf, Option<(u64, u64)>>,
    /// What was said about events that cannot be had.
    trouble: Option<String>,
    /// Something is to be staged.
    ready: Sender<()>,
}

impl Watch {
    fn run(mut self, wakes: &Receiver<Wake>) {
        while let Some(touched) = self.wait(wakes) {
            self.arm();
            if self.inner.look(touched) && self.ready.send(()).is_err() {
                return;
            }
        }
    }

    /// Waits for something that matters, or until it is time to look anyway; none: it is over.
    fn wait(&mut self, wakes: &Receiver<Wake>) -> Option<bool> {
        let mut touched = false;
        let mut until = Instant::now() + if self.trouble.is_some() { POLL_ALONE } else { POLL };
        loop {
            let now = Instant::now();
            // Asked first: what others do in the folder must not keep us from looking.
            if now >= until {
                return Some(touched);
            }
            let matters = match wakes.recv_timeout(until - now) {
                Ok(Wake::Event(event)) => self.concerns(&event),
                Ok(Wake::Trouble(why)) => {
                    self.say(Some(why));
                    true
                }
                Err(RecvTimeoutError::Timeout) => return Some(touched),
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
            };
            if matters && !touched {
                touched = true;
                until = until.min(now + DEBOUNCE);
            }
        }
    }

    fn concerns(&mut self, event: &Event) -> bool {
        if matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))) {
            // What went away or came under another name is watched no more, here or in the system.
            let gone = |folder: &Path| event.paths.iter().any(|path| folder.starts_with(path));
            let lost: Vec<PathBuf> = self.armed.keys().filter(|folder| gone(folder)).cloned().collect();
            lost.iter().for_each(|folder| self.disarm(folder));
        }
        event.need_rescan() || event.paths.iter().any(|path| self.places.concern(path))
    }

    /// Watches the folders that the paths go through now.
    fn arm(&mut self) {
        let mut trouble = self.trouble.clone().filter(|_| self.notify.is_none());
        for _ in 0..TRIES {
            self.places = self.inner.places();
            let old = |(folder, was): (&PathBuf, &Option<(u64, u64)>)| {
                (!self.places.folders.contains(folder) || identity(folder) != *was).then(|| folder.clone())
            };
            let old: Vec<PathBuf> = self.armed.iter().filter_map(old).collect();
            old.iter().for_each(|folder| self.disarm(folder));
            let new: Vec<PathBuf> =
                self.places.folders.iter().filter(|folder| !self.armed.contains_key(*folder)).cloned().collect();
            let Some(notify) = &mut self.notify else { break };
            let mut changed = false;
            for folder in new {
                let is = identity(&folder);
                match notify.watch(&folder, RecursiveMode::NonRecursive) {
                    Ok(()) => {
                        changed = true;
                        self.armed.insert(folder, is);
                    }
                    // It is gone meanwhile.
                    Err(_) if !folder.exists() => {}
                    Err(error) => trouble = Some(format!("{}: {}", folder.display(), words(&error))),
                }
            }
            // A link may have changed before its folder was watched.
            if !changed {
                break;
            }
            trouble = None;
        }
        self.say(trouble);
    }

    fn disarm(&mut self, folder: &Path) {
        self.armed.remove(folder);
        if let Some(notify) = &mut self.notify {
            // Of a folder that is gone there is nothing left to end.
            let _ = notify.unwatch(folder);
        }
    }

    /// Keeps what is wrong, and says it once.
    fn say(&mut self, trouble: Option<String>) {
        if let Some(why) = trouble.as_ref().filter(|_| self.trouble != trouble) {
            let every = POLL_ALONE.as_millis();
            tracing::warn!(
                target: super::LOG,
                "the system tells of no changes ({why}); watched files are looked at every {every} ms instead"
            );
        }
        self.trouble = trouble;
    }
}

fn is_reading(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

/// What went wrong, with what a person can change.
fn words(error: &notify::Error) -> String {
    let full = |name: &str, now: &str| format!("no inotify {now} is left; fs.inotify.{name} sets how many there are");
    match &error.kind {
        notify::ErrorKind::MaxFilesWatch => full("max_user_watches", "watch"),
        notify::ErrorKind::Io(error) if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
            full("max_user_instances", "instance")
        }
        notify::ErrorKind::Io(error) => error.to_string(),
        notify::ErrorKind::Generic(why) => why.clone(),
        notify::ErrorKind::PathNotFound => "it is gone".to_owned(),
        _ => "it cannot be watched".to_owned(),
    }
}

#[cfg(unix)]
fn identity(folder: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    folder.metadata().ok().map(|data| (data.dev(), data.ino()))
}

#[cfg(not(unix))]
fn identity(folder: &Path) -> Option<(u64, u64)> {
    folder.exists().then_some((0, 0))
}
