//! An engine that the kit starts itself, and ends.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::error::KitError;
use super::http::Client;
use crate::base::quoted;
use crate::base::text::clean;

/// How long an engine may take until it answers.
const PATIENCE: Duration = Duration::from_secs(900);
/// How often it is asked meanwhile.
const PAUSE: Duration = Duration::from_millis(200);
/// So much of its last words is shown where it ends.
const LAST_WORDS: usize = 600;

/// How an engine is started: a command for the shell, with `{model}` and `{port}` in it.
#[derive(Debug, Clone)]
pub struct Launcher {
    command: String,
    log: PathBuf,
}

/// A running engine; it is ended, with all its children, when this is dropped.
pub struct Launched {
    child: Child,
    /// Where it listens.
    pub url: String,
}

impl Launcher {
    /// A command with both places; what the engine prints goes to `log`.
    pub fn new(command: &str, log: PathBuf) -> Result<Self, KitError> {
        match ["{model}", "{port}"].iter().find(|place| !command.contains(*place)) {
            None => Ok(Self { command: command.to_owned(), log }),
            Some(place) => Err(KitError::usage(
                format!("--launch {}", clean(command, 200)),
                format!("it has no {place}: the kit starts the engine on several models, each at a port of its own"),
                "write it like 'patchhost serve {model} --listen 127.0.0.1:{port}'",
            )),
        }
    }

    /// Starts the engine on a model folder, and waits until it answers.
    pub fn start(&self, model: &Path) -> Result<Launched, KitError> {
        let free = TcpListener::bind(("127.0.0.1", 0)).and_then(|socket| socket.local_addr());
        let port = free.map_err(|e| self.failed(&e.to_string()))?.port();
        let model = quoted(model.as_os_str());
        let command = self.command.replace("{model}", &model).replace("{port}", &port.to_string());
        let log = || File::options().create(true).append(true).open(&self.log).map_err(|e| self.failed(&e.to_string()));
        let mut shell = Command::new("sh");
        shell.args(["-c", &command]).stdin(Stdio::null()).stdout(log()?).stderr(log()?);
        // A group of its own, so that its children can be ended with it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut shell, 0);
        let child = shell.spawn().map_err(|e| self.failed(&e.to_string()))?;
        let mut launched = Launched { child, url: format!("http://127.0.0.1:{port}") };
        let client = Client::new(&launched.url, None)?;
        let since = Instant::now();
        loop {
            // 503: it is there, and its weights are not yet. Engines without such a call answer 404.
            let loading = || client.get("/readyz").is_ok_and(|answer| answer.status == 503);
            if client.get("/v1/models").is_ok_and(|answer| answer.good()) && !loading() {
                return Ok(launched);
            }
            if let Ok(Some(status)) = launched.child.try_wait() {
                return Err(self.failed(&format!("it ended with {status}; its last words: {}", self.last_words())));
            }
            if since.elapsed() > PATIENCE {
                let seconds = PATIENCE.as_secs();
                return Err(self.failed(&format!("no answer in {seconds} s; its last words: {}", self.last_words())));
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn last_words(&self) -> String {
        let all = std::fs::read(&self.log).unwrap_or_default();
        let last = String::from_utf8_lossy(&all[all.len().saturating_sub(LAST_WORDS)..]).into_owned();
        clean(last.trim(), 2 * LAST_WORDS)
    }

    fn failed(&self, why: &str) -> KitError {
        let next = "try the command in a shell, with a model folder and a free port";
        KitError::host(format!("--launch {}", clean(&self.command, 200)), why, next)
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            use rustix::process::{Signal, kill_process_group};
            // Asked first: engines have shared memory to clean up. One that is gone already needs nothing.
            let _ = kill_process_group(group, Signal::TERM);
            for _ in 0..50 {
                if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
