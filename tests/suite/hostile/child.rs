//! Runs the command line on an attack in a child process, with a guard against hangs, and measures its memory.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::support::{Ran, binary, matrix_file};

/// No input may keep the host busy for longer, its children included.
pub const BUSY: Duration = Duration::from_secs(10);

/// No input may make it wait for longer, however busy the machine is. A guard, not a measurement: what is killed has failed.
pub const HANG: Duration = Duration::from_secs(60);

/// What an attack may take beyond the policy's own limit.
pub const SLACK_KIB: u64 = 64 << 10;

/// How a child ended.
pub struct Ended {
    pub ran: Ran,
    /// Its largest resident set, in KiB, as the kernel counted it (the last value seen before it ended).
    pub peak_kib: u64,
}

/// Runs the program with one worker thread and without a cache. Panics if it must be killed.
pub fn run<S: AsRef<std::ffi::OsStr>>(what: &str, args: impl IntoIterator<Item = S>) -> Ended {
    let mut child = Command::new(binary())
        .args(args)
        .args(["--threads", "1"])
        .env("PATCHHOST_CACHE", "off")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let drain = |mut from: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).map(|_| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
        })
    };
    let stdout = drain(Box::new(child.stdout.take().unwrap()));
    let stderr = drain(Box::new(child.stderr.take().unwrap()));
    let (status_file, stat_file) = (format!("/proc/{}/status", child.id()), format!("/proc/{}/stat", child.id()));
    let (start, mut peak_kib) = (Instant::now(), 0);
    let status = loop {
        peak_kib = peak_kib.max(high_water(&status_file));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > HANG || cpu_time(&stat_file) > BUSY {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{what}: it still ran after {:?}: {}", start.elapsed(), stderr.join().unwrap());
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let ran = Ran { code: status.code().unwrap_or(-1), stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() };
    Ended { ran, peak_kib }
}

/// Of the process and of those of its children that ended.
fn cpu_time(stat_file: &str) -> Duration {
    let text = std::fs::read_to_string(stat_file).unwrap_or_default();
    // After the name, which is in parentheses and may hold anything: fields 14 to 17 of proc(5), in hundredths of a second.
    let after = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let hundredths: u64 = after.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(hundredths * 10)
}

fn high_water(status_file: &str) -> u64 {
    let text = std::fs::read_to_string(status_file).unwrap_or_default();
    // For a moment after it was started the child still has this process's memory, and its name.
    if !text.starts_with("Name:\tpatchhost") {
        return 0;
    }
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Where attacks are tried: a matrix to quantize.
pub struct Place {
    pub folder: tempfile::TempDir,
    input: PathBuf,
    /// A model without experts, and ids for it.
    model: PathBuf,
    ids: PathBuf,
}

impl Place {
    pub fn new() -> Self {
        let folder = crate::support::tmp();
        let input = matrix_file(folder.path(), 1024, 600);
        let model = crate::support::copy_model("llama", folder.path());
        std::fs::remove_file(model.join("golden.safetensors")).unwrap();
        let ids = crate::support::ids_file(folder.path(), &[1, 2, 3]);
        Self { folder, input, model, ids }
    }

    /// Writes a component, and gives its path.
    pub fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.folder.path().join(format!("{name}.wasm"));
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out.safetensors")
    }

    /// The verb that asks the hooks of a world.
    pub fn verb(&self, world: &str, component: &str) -> Vec<String> {
        let words: Vec<&str> = match world {
            "quant-patch" | "quant-rows-patch" => {
                vec!["quantize", self.input.to_str().unwrap(), "OUT", "--force", "--component", component]
            }
            // The bundled model needs a loader that knows experts.
            "loader-patch" => {
                let (model, ids) = (self.model.to_str().unwrap(), self.ids.to_str().unwrap());
                vec!["logits", model, "--ids", ids, "--out", "OUT", "--component", component]
            }
            "layout-patch" => {
                vec!["run", "--max-tokens", "2", "--no-kl", "--component", "fp8_block", "--component", component]
            }
            _ => vec!["run", "--max-tokens", "2", "--no-kl", "--component", component],
        };
        let out = self.out().display().to_string();
        words.into_iter().map(|word| if word == "OUT" { out.clone() } else { word.to_string() }).collect()
    }
}

/// Peak memory of the honest patch of a world, in KiB.
pub fn honest_peak(world: &'static str) -> u64 {
    static PEAKS: OnceLock<Vec<(&'static str, u64)>> = OnceLock::new();
    let peaks = PEAKS.get_or_init(|| {
        let place = Place::new();
        let peak = |world: &'static str| {
            let component = place.file("honest", &super::wat::honest(world));
            let ended = run(world, place.verb(world, &component));
            assert_eq!(ended.ran.code, 0, "the honest {world} fails: {}", ended.ran.stderr);
            let _ = std::fs::remove_file(place.out());
            (world, ended.peak_kib)
        };
        super::wat::WORLDS.into_iter().map(peak).collect()
    });
    peaks.iter().find(|(name, _)| *name == world).map(|(_, peak)| *peak).unwrap()
}

/// One attack through the command line: refused in three parts with these words, in time, in bounded memory and text,
/// with nothing left behind. `allowed_kib`: what the policy lets the component itself have.
pub fn refused(
    place: &Place,
    name: &str,
    world: &'static str,
    bytes: &[u8],
    code: i32,
    words: &[&str],
    allowed_kib: u64,
) {
    let component = place.file(name, bytes);
    let _ = std::fs::remove_file(place.out());
    let ended = run(name, place.verb(world, &component));
    let text = ended.ran.refused(code, place.folder.path());
    for word in words {
        assert!(text.contains(word), "{name}: no `{word}` in {text}");
    }
    assert!(text.len() < 8192, "{name}: {} bytes of text", text.len());
    plain(name, &ended.ran.stderr);
    plain(name, &ended.ran.stdout);
    assert!(!place.out().exists(), "{name}: half-written output");
    let most = honest_peak(world) + allowed_kib + SLACK_KIB;
    assert!(ended.peak_kib <= most, "{name}: {} KiB, at most {most} are allowed", ended.peak_kib);
    std::fs::remove_file(Path::new(&component)).unwrap();
}

/// A component that misbehaves within its limits: it runs, in time and in bounded memory.
pub fn harmless(place: &Place, name: &str, world: &'static str, bytes: &[u8], allowed_kib: u64) {
    let component = place.file(name, bytes);
    let ended = run(name, place.verb(world, &component));
    assert_eq!(ended.ran.code, 0, "{name}: {}", ended.ran.stderr);
    plain(name, &ended.ran.stderr);
    plain(name, &ended.ran.stdout);
    let most = honest_peak(world) + allowed_kib + SLACK_KIB;
    assert!(ended.peak_kib <= most, "{name}: {} KiB, at most {most} are allowed", ended.peak_kib);
    std::fs::remove_file(component).unwrap();
    let _ = std::fs::remove_file(place.out());
}

/// No control characters but line ends, and nothing that turns the direction of text.
#[track_caller]
pub fn plain(name: &str, text: &str) {
    let odd = |c: &char| {
        (c.is_control() && *c != '\n')
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if let Some(c) = text.chars().find(odd) {
        panic!("{name}: {c:?} reaches the terminal: {text:?}");
    }
}
