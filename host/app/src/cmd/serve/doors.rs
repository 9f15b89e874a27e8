//! Who may reach which endpoints and files of a server. It is decided before anything is loaded.

use std::path::PathBuf;

use patchhost_runtime::error::Refusal;

use super::super::failure::UsageError;
use super::Args;
use crate::serve::{Address, AdminAuth, ApiKey, ApiKeys, Hosts, RlAuth, Roots, Secret};

/// A key that the environment gives, where no flag does.
const KEY_VARIABLE: &str = "PATCHHOST_API_KEY";

/// Who may ask the model, and by which name.
#[derive(Debug, clap::Args)]
pub struct DoorArgs {
    /// A key that requests must bring, as `Authorization: Bearer KEY`; can be repeated. Other users of this machine see what is
    /// on a command line: --api-key-file is better [default: $PATCHHOST_API_KEY]
    #[arg(long, value_name = "KEY")]
    api_key: Vec<ApiKey>,
    /// A file of such keys, one a line, that only its owner can read; it is read again at SIGHUP
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// A name that requests may have for this server (`Host`) besides those of this machine; * allows all; can be repeated
    #[arg(long, value_name = "HOST")]
    allowed_host: Vec<String>,
}

/// Everything that decides who may.
pub struct Doors {
    pub roots: Roots,
    pub admin: AdminAuth,
    pub rl: RlAuth,
    pub keys: ApiKeys,
    pub hosts: Hosts,
}

impl Doors {
    pub fn open(args: &Args) -> Result<Self, UsageError> {
        let secret = |flag: &str, path: &Option<PathBuf>| {
            path.as_deref().map(|path| Secret::from_file(flag, path)).transpose().map_err(usage)
        };
        let token = secret("--admin-token-file", &args.admin_token_file)?;
        let rl_token = secret("--rl-token-file", &args.rl_token_file)?;
        let local = args.listen.iter().all(Address::is_local);
        let rl = RlAuth::new(args.rl, rl_token, token.clone(), local).map_err(usage)?;
        let roots = Roots::open(&args.roots).map_err(|e| usage(e.into_refusal()))?;
        let keys = args.doors.keys()?;
        let hosts = Hosts::new(&args.doors.allowed_host).map_err(usage)?;
        Ok(Self { roots, admin: AdminAuth { socket: args.admin.clone(), token }, rl, keys, hosts })
    }
}

impl DoorArgs {
    fn keys(&self) -> Result<ApiKeys, UsageError> {
        let of_environment = std::env::var_os(KEY_VARIABLE).filter(|key| self.api_key.is_empty() && !key.is_empty());
        let (flag, given) = match of_environment {
            // What is no UTF-8 becomes a character that no key has, and is refused as one.
            Some(key) => (KEY_VARIABLE, key.to_string_lossy().parse().into_iter().collect()),
            None => ("--api-key", self.api_key.clone()),
        };
        ApiKeys::open(flag, given, self.api_key_file.clone()).map_err(usage)
    }
}

fn usage(refusal: Refusal) -> UsageError {
    UsageError::new(refusal.what, refusal.why, refusal.next)
}
