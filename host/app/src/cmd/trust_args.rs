//! Where policy and lock lie: what verbs that load or lock patches share.

use super::failure::{Result, UsageError};
use crate::base::{Dir, DirMode};
use crate::trust::{Gate, GrantChange, Places, Policy};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::sync::Arc;

/// Which policy and which lock hold.
#[derive(Debug, Clone, Default, Args)]
pub struct TrustFiles {
    /// The policy (TOML): signers, limits, audit rules, what happens when a hook fails; see docs/trust.md
    /// [default: patchhost.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// The lock: which patches may run, with which settings, limits and grants
    /// [default: patchhost.lock beside the policy, if there is one]
    #[arg(long, value_name = "FILE")]
    pub lock: Option<PathBuf>,
}

/// Which policy and which lock hold, for verbs that load patches.
#[derive(Debug, Clone, Default, Args)]
pub struct TrustArgs {
    #[command(flatten)]
    pub files: TrustFiles,
    /// Load only what the lock has, and fail where there is none (the rule wherever there is one)
    #[arg(long)]
    pub locked: bool,
}

impl TrustFiles {
    /// Reads the policy, and says where the lock lies.
    pub fn read(&self) -> Result<(Policy, Places)> {
        Ok(Policy::found(self.policy.as_deref(), self.lock.as_deref())?)
    }

    /// A gate for verbs that write the lock.
    pub fn for_writing(&self) -> Result<Gate> {
        let (policy, places) = self.read()?;
        Ok(Gate::for_writing(&policy, places))
    }
}

impl TrustArgs {
    /// The policy, and the gate that every component goes through.
    pub fn gate(&self) -> Result<(Policy, Arc<Gate>)> {
        let (policy, places) = self.files.read()?;
        let gate = Gate::new(&policy, places);
        if self.locked {
            gate.require_lock();
        }
        gate.check()?;
        if let Some(remark) = gate.remark() {
            errln!("note: {remark}");
        }
        Ok((policy, Arc::new(gate)))
    }
}

/// What a patch may reach and use.
#[derive(Debug, Default, Args)]
pub struct GrantArgs {
    /// WASI with nothing behind it (inert), or take every grant back (none)
    #[arg(long, value_enum, value_name = "WHAT")]
    pub wasi: Option<WasiWord>,
    /// A folder: HOST=GUEST, read-only, or HOST=GUEST:rw; can be repeated
    #[arg(long = "dir", value_name = "HOST=GUEST[:ro|rw]")]
    pub dirs: Vec<String>,
    /// An environment variable of the host, by name; can be repeated
    #[arg(long = "env", value_name = "NAME")]
    pub env: Vec<String>,
    /// The host's clocks: answers may then differ between ranks
    #[arg(long)]
    pub clocks: bool,
    /// Random numbers: answers may then differ between ranks
    #[arg(long)]
    pub random: bool,
    /// A limit of its own, for example memory_bytes=32MiB; can be repeated
    #[arg(long = "limit", value_name = "NAME=NUMBER")]
    pub limits: Vec<String>,
}

/// What `--wasi` can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WasiWord {
    /// Linked, with nothing behind it
    Inert,
    /// Not linked; every grant is taken back
    None,
}

impl GrantArgs {
    /// The change of grants that a lock entry is to get.
    pub fn change(&self) -> Result<GrantChange, UsageError> {
        Ok(GrantChange {
            none: self.wasi == Some(WasiWord::None),
            inert: self.wasi == Some(WasiWord::Inert),
            dirs: self.dirs.iter().map(|text| folder(text)).collect::<Result<_, _>>()?,
            env: self.env.iter().map(|name| variable(name)).collect::<Result<_, _>>()?,
            clocks: self.clocks,
            random: self.random,
        })
    }

    /// Nothing is granted and nothing limited.
    pub fn is_empty(&self) -> bool {
        let Self { wasi, dirs, env, clocks, random, limits } = self;
        wasi.is_none() && dirs.is_empty() && env.is_empty() && !clocks && !random && limits.is_empty()
    }
}

/// HOST=GUEST[:ro|rw]. The last `=` counts: a guest path has none.
fn folder(text: &str) -> Result<Dir, UsageError> {
    let bad = |why: &str| {
        UsageError::new(format!("--dir {}", text.escape_debug()), why, "write for example --dir /srv/tables=/tables:ro")
    };
    let (host, guest) =
        text.rsplit_once('=').filter(|(host, _)| !host.is_empty()).ok_or_else(|| bad("a folder is HOST=GUEST"))?;
    let (guest, mode) = match guest.rsplit_once(':') {
        None => (guest, DirMode::Ro),
        Some((guest, "ro")) => (guest, DirMode::Ro),
        Some((guest, "rw")) => (guest, DirMode::Rw),
        Some(_) => return Err(bad("after `:` comes ro or rw")),
    };
    if !guest.starts_with('/') || guest.split('/').any(|part| part == "..") {
        return Err(bad("the path in the guest begins with / and has no .."));
    }
    let host = std::path::absolute(host).map_err(|e| bad(&e.to_string()))?;
    if !host.is_dir() {
        return Err(bad("there is no such folder on the host"));
    }
    Ok(Dir { host, guest: guest.to_owned(), mode })
}

fn variable(name: &str) -> Result<String, UsageError> {
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    match plain {
        true => Ok(name.to_owned()),
        false => Err(UsageError::new(
            format!("--env {}", name.escape_debug()),
            "a variable is named by letters, digits and _; its value comes from the host",
            "write for example --env HF_HOME",
        )),
    }
}
