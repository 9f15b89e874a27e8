//! Policy, lock, grants, signatures and revocations, from outside.

mod errors;
mod identity;
mod live;
mod provenance;
mod seals;
mod signing;
mod verbs;
mod writers;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Ran, repo, tmp};

/// A folder in which somebody works: where policy and lock are found.
pub struct Desk(tempfile::TempDir);

impl Desk {
    /// With these guests as files.
    pub fn new(guests: &[&str]) -> Self {
        let desk = Self(tmp());
        for name in guests {
            std::fs::copy(guest(name), desk.path(&format!("{name}.wasm"))).unwrap();
        }
        desk
    }

    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let text = self.text(name);
        assert!(text.contains(from), "{from} is not in {text}");
        self.write(name, &text.replacen(from, to, 1));
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_patchhost-under-test"));
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("aot");
        command.current_dir(self.folder()).env("PATCHHOST_CACHE", cache).env("USER", "reviewer");
        command
    }

    /// Runs a line in this folder.
    #[track_caller]
    pub fn run(&self, line: &str) -> Ran {
        ran(self.command().args(line.split(' ')))
    }

    /// A short run with a patch.
    #[track_caller]
    pub fn load(&self, line: &str) -> Ran {
        self.run(&format!("quantize {} {} --force {line}", self.tensors(), self.path("out.safetensors").display()))
    }

    fn tensors(&self) -> String {
        let path = self.path("in.safetensors");
        match path.exists() {
            true => path.display().to_string(),
            false => crate::support::matrix_file(self.folder(), 256, 256).display().to_string(),
        }
    }

    /// Asserts that a run is refused with the command that accepts it; a shell runs that command.
    #[track_caller]
    pub fn accept(&self, refused: &Ran) {
        refused.refused(1, self.folder());
        let line = refused.stderr.lines().find_map(|line| line.find("patchhost lock").map(|at| &line[at..]));
        let line = line.unwrap_or_else(|| panic!("no command in {}", refused.stderr));
        let script = format!("patchhost() {{ \"$PATCHHOST\" \"$@\"; }}\n{line}\n");
        let mut shell = Command::new("bash");
        shell
            .current_dir(self.folder())
            .args(["-c", &script])
            .env("PATCHHOST", env!("CARGO_BIN_EXE_patchhost-under-test"));
        ran(&mut shell).good();
    }
}

pub fn guest(name: &str) -> PathBuf {
    repo().join("guests").join(format!("{name}.wasm"))
}

pub fn ran(command: &mut Command) -> Ran {
    let out = command.output().unwrap();
    let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
    Ran { code: out.status.code().unwrap_or(-1), stdout: text(out.stdout), stderr: text(out.stderr) }
}
