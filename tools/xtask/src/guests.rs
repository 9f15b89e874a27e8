//! The two verbs: build, and check.

use crate::compile::{self, Built};
use crate::lock::{Entry, Lock};
use crate::provenance;
use crate::source;
use crate::toolchain::Toolchain;
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

/// Whether the committed guests are what the sources say.
pub enum Verdict {
    /// They are.
    Good,
    /// They are not; each difference was printed.
    Differs,
}

/// Builds everything and writes the files and the lock.
pub fn build(root: &Path) -> Result<Verdict> {
    let toolchain = Toolchain::find()?;
    let built = compile::all(root, &toolchain, &root.join("guests/target"))?;
    let old = Lock::read(root).ok();
    write(&root.join("guests"), &built)?;
    let lock = Lock::of(full_name(root, &toolchain)?, source::digest(root)?, &built);
    lock.write(root)?;
    provenance::write(root, &lock)?;
    for gone in old.iter().flat_map(Lock::entries).filter(|o| lock.entries().all(|e| e.file != o.file)) {
        let path = root.join("guests").join(&gone.file);
        std::fs::remove_file(&path)
            .or_else(ignore_absent)
            .with_context(|| format!("cannot remove {}", path.display()))?;
        eprintln!("removed {}, whose source is gone", gone.file);
    }
    eprintln!("wrote {} guests, guests/guests.lock and guests/provenance.json", built.len());
    Ok(Verdict::Good)
}

/// Prints what a build would be made of: the tools and the sources.
pub fn describe(root: &Path) -> Result<Verdict> {
    let toolchain = full_name(root, &Toolchain::find()?)?;
    let described = toml::Table::from_iter([
        ("toolchain".to_owned(), toml::Value::String(toolchain)),
        ("source".to_owned(), toml::Value::String(source::digest(root)?)),
    ]);
    print!("{described}");
    Ok(Verdict::Good)
}

/// Builds everything from nothing into another folder: for those who compare.
pub fn build_into(root: &Path, folder: &Path) -> Result<Verdict> {
    let toolchain = Toolchain::find()?;
    let aside = tempdir(root)?;
    let built = compile::all(root, &toolchain, &aside);
    std::fs::remove_dir_all(&aside).with_context(|| format!("cannot clear {}", aside.display()))?;
    write(folder, &built?)?;
    Ok(Verdict::Good)
}

/// A folder for one build, below the folder that git ignores.
fn tempdir(root: &Path) -> Result<std::path::PathBuf> {
    let folder = root.join(format!("guests/target/into-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// Proves that the committed files are the locked ones, that the lock is of today's sources, and that a rebuild gives
/// the same bytes or, with another compiler, the same numbers.
pub fn check(root: &Path) -> Result<Verdict> {
    let lock = Lock::read(root)?;
    let mut complaints = Vec::new();
    for entry in lock.entries() {
        complaints.extend(compare_file(root, entry));
    }
    let today = source::digest(root)?;
    if today != lock.source {
        complaints.push(format!("the sources changed since the lock was written ({} then, {today} now)", lock.source));
    }
    complaints.extend(provenance::compare(root, &lock)?);
    eprintln!("checked {} committed files against guests/guests.lock", lock.entries().count());

    let toolchain = Toolchain::find()?;
    let aside = root.join("guests/target/check");
    std::fs::remove_dir_all(&aside)
        .or_else(ignore_absent)
        .with_context(|| format!("cannot clear {}", aside.display()))?;
    let built = compile::all(root, &toolchain, &aside)?;
    let name = full_name(root, &toolchain)?;
    let rebuilt = Lock::of(name.clone(), today, &built);
    if name == lock.toolchain {
        complaints.extend(compare_rebuilt(&lock, &rebuilt));
    } else {
        eprintln!("the lock was written with another toolchain, so bytes may differ and numbers must not");
        eprintln!("  locked: {}\n  here:   {name}", lock.toolchain);
        let folder = aside.join("components");
        write(&folder, &built)?;
        if !golden(root, &folder)? {
            complaints.push("the rebuilt guests fail the golden vectors; the test's words are above".into());
        }
    }
    std::fs::remove_dir_all(&aside).with_context(|| format!("cannot clear {}", aside.display()))?;

    for complaint in &complaints {
        eprintln!("error: {complaint}");
    }
    if complaints.is_empty() {
        if name == lock.toolchain {
            eprintln!("the committed guests are what the sources say, byte for byte");
        } else {
            eprintln!("the rebuilt guests pass the golden vectors (bytes were not compared: another toolchain)");
        }
        return Ok(Verdict::Good);
    }
    eprintln!(
        "next: run `cargo xtask guests` and commit guests/*.wasm, guests/evil/*.wasm and guests/guests.lock together"
    );
    Ok(Verdict::Differs)
}

/// What is wrong with one committed file.
fn compare_file(root: &Path, entry: &Entry) -> Option<String> {
    match std::fs::read(root.join("guests").join(&entry.file)) {
        Ok(bytes) if source::sha256(&bytes) == entry.sha256 && bytes.len() as u64 == entry.size => None,
        Ok(bytes) => Some(format!(
            "guests/{} is not the locked file: sha256 {}, locked {}",
            entry.file,
            source::sha256(&bytes),
            entry.sha256
        )),
        Err(e) => Some(format!("guests/{} is locked but cannot be read: {e}", entry.file)),
    }
}

/// What differs between the lock and a rebuild by the same compiler.
fn compare_rebuilt(lock: &Lock, rebuilt: &Lock) -> Vec<String> {
    let mut complaints = Vec::new();
    for new in rebuilt.entries() {
        match lock.entries().find(|old| old.file == new.file) {
            None => complaints.push(format!("guest `{}` is in the sources but not in the lock", new.name)),
            Some(old) if old != new => complaints.push(format!(
                "guest `{}` rebuilt has other bytes: sha256 {}, locked {}",
                new.name, new.sha256, old.sha256
            )),
            Some(_) => {}
        }
    }
    let gone = lock.entries().filter(|old| rebuilt.entries().all(|new| new.file != old.file));
    complaints.extend(gone.map(|old| format!("guest `{}` is in the lock but not in the sources", old.name)));
    complaints
}

/// Runs the golden vectors against the guests in `folder`.
fn golden(root: &Path, folder: &Path) -> Result<bool> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(root)
        .args(["test", "--release", "-p", "patchhost-tests", "--test", "golden"])
        .env("PATCHHOST_GUESTS_DIR", folder)
        .status()
        .context("cannot run cargo test")?;
    Ok(status.success())
}

fn write(folder: &Path, built: &[Built]) -> Result<()> {
    for one in built {
        let path = folder.join(one.file());
        let parent = path.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        std::fs::write(&path, &one.bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Everything that decides the bytes besides the sources. The component encoder's version is in the workspace's lock.
fn full_name(root: &Path, toolchain: &Toolchain) -> Result<String> {
    let path = root.join("Cargo.lock");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let lock: toml::Table = text.parse().with_context(|| format!("{} is not TOML", path.display()))?;
    let packages = lock.get("package").and_then(toml::Value::as_array).map_or(&[][..], Vec::as_slice);
    let version = |p: &toml::Value| {
        let is_it = p.get("name").and_then(toml::Value::as_str) == Some("wit-component");
        if is_it { p.get("version").and_then(toml::Value::as_str).map(String::from) } else { None }
    };
    let encoder = packages.iter().find_map(version).context("Cargo.lock does not name wit-component")?;
    Ok(format!("{}, wit-component {encoder}", toolchain.name))
}

fn ignore_absent(e: std::io::Error) -> std::io::Result<()> {
    if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) }
}
