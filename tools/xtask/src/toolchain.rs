//! Which compiler builds the guests: rustup's with its wasm target, or Debian's with the standard library from source.

use anyhow::{Context, Result, bail};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target of every guest: no WASI, so no imports.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// What the compiler is told besides the paths that it must not name. The most memory is what `Limits::memory_bytes` allows,
/// declared so that `patchhost audit` can see it.
pub const FLAGS: [&str; 2] = ["-Ctarget-feature=+simd128", "-Clink-arg=--max-memory=67108864"];

/// A compiler that can build guests.
pub struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    /// A linker of its own; none where the compiler brings one.
    linker: Option<PathBuf>,
    /// The compiler has no standard library for the target: build it too.
    build_std: bool,
    sysroot: PathBuf,
    /// Compiler and linker with their versions, as the lock records them.
    pub name: String,
}

/// No compiler here can build guests.
#[derive(Debug)]
pub struct Missing {
    why: String,
}

impl std::error::Error for Missing {}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "no compiler here can build guests for {TARGET}")?;
        writeln!(f, "  why:  {}", self.why)?;
        writeln!(f, "  next: with rustup:        rustup target add {TARGET}")?;
        write!(f, "        on Debian, Ubuntu:  apt-get install rustc cargo rust-src lld")
    }
}

impl Toolchain {
    /// The first that works: the current compiler with the target installed, then Debian's with its sources.
    pub fn find() -> Result<Self> {
        let rustc = PathBuf::from("rustc");
        let current = match sysroot(&rustc) {
            Ok(sysroot) if sysroot.join("lib/rustlib").join(TARGET).is_dir() => {
                let name = version(&rustc, "-V")?;
                return Ok(Self { cargo: "cargo".into(), rustc, linker: None, build_std: false, sysroot, name });
            }
            Ok(sysroot) => format!("{} has no lib/rustlib/{TARGET}", sysroot.display()),
            Err(e) => format!("{e:#}"),
        };
        Self::debian().map_err(|e| Missing { why: format!("{current}; and {e:#}") }.into())
    }

    /// Debian's packages rustc, cargo, rust-src and lld-NN.
    fn debian() -> Result<Self> {
        let (rustc, cargo) = (PathBuf::from("/usr/bin/rustc"), PathBuf::from("/usr/bin/cargo"));
        for tool in [&rustc, &cargo] {
            if !tool.is_file() {
                bail!("there is no {}", tool.display());
            }
        }
        let linker = newest_linker(Path::new("/usr/bin")).context("there is no /usr/bin/wasm-ld-NN")?;
        let sysroot = sysroot(&rustc)?;
        if !sysroot.join("lib/rustlib/src/rust/library/std/Cargo.toml").is_file() {
            bail!("{}/lib/rustlib/src/rust/library does not hold the standard library's sources", sysroot.display());
        }
        let name = format!("{}, {}", version(&rustc, "-V")?, version(&linker, "--version")?);
        Ok(Self { cargo, rustc, linker: Some(linker), build_std: true, sysroot, name })
    }

    /// `cargo build --release` of the guests workspace at `guests` into `target`, with nothing of this machine in the
    /// bytes: no setting from outside, no absolute path.
    pub fn cargo_build(&self, guests: &Path, target: &Path) -> Result<Command> {
        // Before the paths are looked up: on a fresh machine, the folder of the crates comes into being here.
        output(self.cargo(guests).args(["fetch", "--locked"]))?;
        let mut flags: Vec<String> = FLAGS.map(String::from).into();
        flags.extend(self.remaps(guests)?);
        let mut cargo = self.cargo(guests);
        cargo
            .args(["build", "--release", "--locked", "--target", TARGET, "--workspace", "--exclude", "kit"])
            .args(["--lib", "--examples"])
            .env("CARGO_TARGET_DIR", target)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        if let Some(linker) = &self.linker {
            cargo.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
        }
        if self.build_std {
            cargo.args(["-Zbuild-std=std,panic_abort"]).env("RUSTC_BOOTSTRAP", "1");
        }
        Ok(cargo)
    }

    /// This toolchain's cargo in `guests`, without what cargo and rustup pass on to the programs they run, this one
    /// included.
    fn cargo(&self, guests: &Path) -> Command {
        let mut cargo = Command::new(&self.cargo);
        for (key, _) in std::env::vars_os() {
            let name = key.to_string_lossy();
            let foreign = name.starts_with("CARGO_") && name != "CARGO_HOME" && !name.starts_with("CARGO_NET");
            if foreign
                || matches!(&*name, "CARGO" | "RUSTFLAGS" | "RUSTC" | "RUSTC_WRAPPER" | "RUSTC_WORKSPACE_WRAPPER")
            {
                cargo.env_remove(&key);
            }
        }
        cargo.current_dir(guests).env("RUSTC", &self.rustc);
        cargo
    }

    /// Where each absolute path that panics could mention goes. Of several that fit, the compiler takes the last.
    fn remaps(&self, guests: &Path) -> Result<Vec<String>> {
        let root = guests.parent().context("guests/ has no parent folder")?;
        let library = self.sysroot.join("lib/rustlib/src/rust");
        let home = cargo_home()?;
        let mut from = vec![(root.to_path_buf(), "/patchhost"), (home.clone(), "/cargo"), (library.clone(), "/rustc")];
        if let Ok(real) = library.canonicalize() {
            from.push((real, "/rustc"));
        }
        // Sources of crates lie in a folder whose name depends on where the registry was reached.
        let mut registries: Vec<PathBuf> = std::fs::read_dir(home.join("registry/src"))
            .map(|entries| entries.filter_map(|e| Some(e.ok()?.path())).collect())
            .unwrap_or_default();
        registries.sort();
        from.extend(registries.into_iter().map(|registry| (registry, "/cargo")));
        Ok(from.iter().map(|(path, to)| format!("--remap-path-prefix={}={to}", path.display())).collect())
    }
}

fn cargo_home() -> Result<PathBuf> {
    match std::env::var_os("CARGO_HOME") {
        Some(home) => Ok(home.into()),
        None => {
            Ok(PathBuf::from(std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?).join(".cargo"))
        }
    }
}

fn sysroot(rustc: &Path) -> Result<PathBuf> {
    Ok(PathBuf::from(output(Command::new(rustc).args(["--print", "sysroot"]))?))
}

/// The first line that a tool says about its version.
fn version(tool: &Path, flag: &str) -> Result<String> {
    let text = output(Command::new(tool).arg(flag))?;
    Ok(text.lines().next().unwrap_or_default().to_string())
}

fn output(command: &mut Command) -> Result<String> {
    let what = format!("{command:?}");
    let out = command.output().with_context(|| format!("cannot run {what}"))?;
    if !out.status.success() {
        bail!("{what} failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_string())
}

/// `wasm-ld-NN` with the greatest NN.
fn newest_linker(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let numbered = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let number: u32 = path.file_name()?.to_str()?.strip_prefix("wasm-ld-")?.parse().ok()?;
        Some((number, path))
    });
    numbered.max().map(|(_, path)| path)
}
