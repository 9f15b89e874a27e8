//! kill -9 at random moments of a training run with swaps, and of a server that is refitted: what is on the disk is
//! whole, the ledger verifies, and a resumed run is the run that was never killed. `PATCHHOST_CRASH_ROUNDS=50` for more.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::serving::{Serving, guest};
use crate::support::{patchhost, tmp};

fn rounds(default: usize) -> usize {
    std::env::var("PATCHHOST_CRASH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

struct Run {
    folder: PathBuf,
    component: PathBuf,
}

impl Run {
    fn new(folder: &Path) -> Self {
        let component = folder.join("fp8_block.wasm");
        std::fs::write(&component, guest("fp8_block")).unwrap();
        Self { folder: folder.to_path_buf(), component }
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn start(&self, steps: usize, resume: bool) -> Child {
        let component = self.component.display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_patchhost-under-test"));
        command.args([
            "train",
            "--steps",
            &steps.to_string(),
            "--prompts-per-step",
            "2",
            "--samples",
            "2",
            "--max-tokens",
            "8",
        ]);
        command.args(["--component", &component, "--watch", &component, "--save-every", "1"]);
        command.args(["--checkpoint-dir", &self.path("checkpoints"), "--metrics-out", &self.path("metrics.jsonl")]);
        command.args(["--ledger", &self.path("ledger.jsonl")]);
        if resume {
            command.arg("--resume");
        }
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// The metrics without what no two runs share.
    fn metrics(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("metrics.jsonl")).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole
            .map(|line| {
                let mut row: Value = serde_json::from_str(line).unwrap();
                let object = row.as_object_mut().unwrap();
                object.remove("timing");
                // Numbers of refits count in one process; a resumed one starts anew.
                object.remove("refit");
                row
            })
            .collect()
    }

    #[track_caller]
    fn ledger_verifies(&self) {
        patchhost(["log", "verify", &self.path("ledger.jsonl")]).good();
    }
}

#[test]
fn a_killed_run_resumes_as_if_it_had_not_been() {
    let steps = 6;
    let (whole, tmp) = (tmp(), tmp());
    let never = Run::new(whole.path());
    assert!(never.start(steps, false).wait().unwrap().success());
    let expected = never.metrics();
    assert_eq!(expected.len(), steps);

    let run = Run::new(tmp.path());
    let mut rng = StdRng::seed_from_u64(1);
    let mut resume = false;
    for round in 0.. {
        assert!(round < 200, "it never gets to the end");
        let mut child = run.start(steps, resume);
        std::thread::sleep(Duration::from_millis(rng.random_range(100..4000)));
        let ended = child.try_wait().unwrap();
        if ended.is_none() {
            child.kill().unwrap();
        }
        let status = child.wait_with_output().unwrap();
        if ended.is_some() {
            assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
            break;
        }
        if run.folder.join("ledger.jsonl").exists() {
            run.ledger_verifies();
        }
        let so_far = run.metrics();
        assert_eq!(so_far, expected[..so_far.len()], "round {round}");
        resume = run.folder.join("checkpoints").exists();
    }
    assert_eq!(run.metrics(), expected);
    run.ledger_verifies();
}

/// A server that is refitted and swapped all the time is killed; the ledger tells what was published, and a new server
/// continues it.
#[test]
fn a_killed_server_leaves_a_whole_ledger() {
    let tmp = tmp();
    let ledger = tmp.path().join("ledger.jsonl");
    let ledger = ledger.to_str().unwrap();
    let mut rng = StdRng::seed_from_u64(2);
    for _ in 0..rounds(4) {
        let server = Serving::start(tmp.path(), &["--component", "fp8_block.wasm", "--ledger", ledger]);
        let staged = server.admin("POST", "/admin/v1/stage?name=fp8_block&set=block=64x64", guest("fp8_block"));
        let swap = json!({ "to": staged["generation"], "when": "now" });
        server.admin_json("/admin/v1/swap", swap);
        let url = server.url.clone();
        let swapping = std::thread::spawn(move || while Serving::rollback_at(&url).is_some() {});
        std::thread::sleep(Duration::from_millis(rng.random_range(50..1500)));
        server.kill();
        swapping.join().unwrap();
        patchhost(["log", "verify", ledger]).good();
    }
    let shown = patchhost(["log", "show", ledger, "--format", "json"]).good();
    let starts = shown.stdout.matches("host.started").count();
    assert_eq!(starts, rounds(4), "one ledger for all of them");
}
