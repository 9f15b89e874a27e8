//! Signals: SIGHUP has the files of the patches looked at again, SIGTERM and SIGINT end the run after the step that is
//! under way, with a checkpoint where there is a folder for them. A second one ends it at once, which loses no more than
//! the steps since the last checkpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

/// What was asked for by signals.
#[derive(Debug, Clone, Default)]
pub(super) struct Signals {
    hangup: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

impl Signals {
    /// Listens from now on, on a thread of its own.
    pub(super) fn listen() -> std::io::Result<Self> {
        let signals = Self::default();
        let heard = signals.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Registered here, so that a signal right after this counts.
        let guard = runtime.enter();
        let mut hangup = signal(SignalKind::hangup())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        drop(guard);
        std::thread::Builder::new().name("signals".to_string()).spawn(move || {
            runtime.block_on(async move {
                loop {
                    tokio::select! {
                        _ = hangup.recv() => heard.hangup.store(true, Ordering::Release),
                        _ = terminate.recv() => heard.end(15),
                        _ = interrupt.recv() => heard.end(2),
                    }
                }
            });
        })?;
        Ok(signals)
    }

    fn end(&self, number: i32) {
        if self.stop.swap(true, Ordering::AcqRel) {
            std::process::exit(128 + number);
        }
    }

    /// Whether there was a SIGHUP since the last question.
    pub(super) fn hangup(&self) -> bool {
        self.hangup.swap(false, Ordering::AcqRel)
    }

    /// Whether the run should end.
    pub(super) fn stop(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}
