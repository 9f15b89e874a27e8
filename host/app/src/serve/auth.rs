//! Who may do what.
//!
//! Three circles:
//! - **Requests** (generate, tokenize, health, metrics): everybody who reaches a listener; where there are API keys, who has
//!   one ([`super::keys`], and [`super::guard`] for which route asks for what).
//! - **RL control** (weights, adapters, pauses, caches): with `--rl on`, everybody who reaches a listener, and so the
//!   server starts only if all of them are loopback addresses or unix sockets, or a token is configured; with
//!   `--rl token`, who has the token; with `--rl off`, nobody. A page in a browser is never let in.
//! - **Admin** (which patches run): who may open the admin socket (mode 0600, and the kernel says that the peer is the
//!   server's own user or root), or who has the admin token. Neither is configured: nobody.
//!
//! Tokens come in the `Authorization` header only, never in a URL, which ends in logs.

use std::path::{Path, PathBuf};

use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, StatusCode, header};
use hmac::{Hmac, KeyInit, Mac};
use patchhost_runtime::error::Refusal;
use sha2::Sha256;

use super::error::ApiError;
use crate::base::text::clean;
use crate::patch::Actor;

/// Fewest bytes of a token: 16 random bytes cannot be guessed.
const MIN_TOKEN: usize = 16;
/// Most bytes of a token's file.
const MAX_TOKEN: u64 = 4096;

/// A token. Only its keyed digest is kept, and comparing takes the same time whatever is given.
#[derive(Clone)]
pub struct Secret {
    key: [u8; 32],
    tag: [u8; 32],
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// Keeps a token's keyed digest, and forgets its bytes.
    pub fn new(token: &[u8]) -> Self {
        let key: [u8; 32] = rand::random();
        let tag = mac(&key, token).map(|m| m.finalize().into_bytes().into()).unwrap_or(key);
        Self { key, tag }
    }

    /// From the file that `flag` names: only its owner may read it, and it holds one line of at least 16 characters.
    pub fn from_file(flag: &str, path: &Path) -> Result<Self, Refusal> {
        let bad = |why: String| not_private(flag, path, why);
        let text = private_text(flag, path, MAX_TOKEN)?;
        let token = text.trim_end_matches(['\r', '\n']);
        if token.len() < MIN_TOKEN {
            return Err(bad(format!("it holds {} characters; a token has at least {MIN_TOKEN}", token.len())));
        }
        if !token.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            return Err(bad("a token is one line of printable ASCII characters".to_string()));
        }
        Ok(Self::new(token.as_bytes()))
    }

    /// Whether this is the token.
    pub fn matches(&self, given: &[u8]) -> bool {
        mac(&self.key, given).is_some_and(|m| m.verify_slice(&self.tag).is_ok())
    }
}

/// The text of a file of secrets that `flag` names: only its owner may read it, and it has `most` bytes at most.
pub(super) fn private_text(flag: &str, path: &Path, most: u64) -> Result<String, Refusal> {
    let bad = |why: String| not_private(flag, path, why);
    let file = patchhost_runtime::files::open(path).map_err(|e| bad(e.to_string()))?;
    let data = file.metadata().map_err(|e| bad(e.to_string()))?;
    if !data.is_file() || data.len() > most {
        return Err(bad(format!("a token is a file of at most {most} bytes")));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let mode = data.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(bad(format!("its mode is {mode:04o}: others than its owner may use it (chmod 600)")));
        }
    }
    // It may have grown since.
    std::io::read_to_string(std::io::Read::take(file, most)).map_err(|e| bad(e.to_string()))
}

fn not_private(flag: &str, path: &Path, why: String) -> Refusal {
    let next = "make it with: umask 077; openssl rand -hex 32 > FILE";
    Refusal::new(format!("{flag} {}", clean(&path.to_string_lossy(), 300)), why, next)
}

fn mac(key: &[u8; 32], token: &[u8]) -> Option<Hmac<Sha256>> {
    // HMAC takes keys of any length; there is no error to handle.
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).ok()?;
    mac.update(token);
    Some(mac)
}

/// Over which listener a request came: an extension of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// A TCP port: whoever can reach it.
    Tcp,
    /// A unix socket given to `--listen`.
    Unix,
    /// The unix socket given to `--admin`: its file mode is the permission.
    Admin,
}

/// The user at the other end of a unix socket, as the kernel knows it: an extension of every request over one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerUid(pub u32);

/// Where a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The listener it came over.
    pub via: Via,
    /// The user, where the kernel says it.
    pub uid: Option<u32>,
}

impl Caller {
    /// A request that no listener marked is treated as one from the network.
    pub(super) fn of(extensions: &Extensions) -> Self {
        let via = extensions.get().copied().unwrap_or(Via::Tcp);
        Self { via, uid: extensions.get().map(|PeerUid(uid)| *uid) }
    }

    /// Whether it came over the admin socket, from a user who may do what the server may.
    pub(super) fn is_admin(&self) -> bool {
        self.via == Via::Admin && self.uid.is_some_and(trusted)
    }
}

/// Who may change patches.
#[derive(Debug, Clone, Default)]
pub struct AdminAuth {
    /// The unix socket of the admin API.
    pub socket: Option<PathBuf>,
    /// What `Authorization: Bearer …` must say over any other listener; without it nobody is let in there.
    pub token: Option<Secret>,
}

impl AdminAuth {
    /// Who asks, in the words of the ledger; an error says why it is not allowed.
    pub fn allow(&self, caller: Caller, headers: &HeaderMap) -> Result<Actor, ApiError> {
        if caller.via == Via::Admin {
            return match caller.uid {
                Some(uid) if caller.is_admin() => Ok(Actor::new(format!("unix:uid={uid}"))),
                _ => Err(forbidden(
                    "this connection to the admin socket",
                    "its peer is neither the server's own user nor root",
                    "connect as the user that runs the server",
                )),
            };
        }
        match &self.token {
            Some(token) => bearer(token, headers, "an admin verb").map(|()| Actor::new("token")),
            None => Err(forbidden(
                "an admin verb",
                match &self.socket {
                    Some(_) => "it came over another listener than the admin socket, and no admin token is configured",
                    None => "neither an admin socket nor an admin token is configured",
                },
                "connect to the socket of --admin unix:PATH, or start the server with --admin-token-file FILE and send \
                 `Authorization: Bearer …`",
            )),
        }
    }
}

/// Who may control weights, adapters, pauses and caches (`--rl`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum RlMode {
    /// Nobody
    Off,
    /// Everybody who reaches the server, if it listens on loopback or unix sockets only; else who has the token
    #[default]
    On,
    /// Who has the token
    Token,
}

/// Who may control weights, adapters, pauses and caches, once `--rl` and the token files have been read.
#[derive(Debug, Clone, Default)]
pub struct RlAuth {
    access: Access,
    /// Tokens of trainers and admins, also where none is asked for: with API keys they open what trainers read.
    tokens: Vec<Secret>,
}

#[derive(Debug, Clone, Default)]
enum Access {
    Off,
    #[default]
    Local,
    Token,
}

impl RlAuth {
    /// `local`: every listener is a loopback address or a unix socket. `admin`: the admin token, which opens this door
    /// too. Refused where everybody on a network could change the weights.
    pub fn new(mode: RlMode, token: Option<Secret>, admin: Option<Secret>, local: bool) -> Result<Self, Refusal> {
        let tokens: Vec<Secret> = token.into_iter().chain(admin).collect();
        let access = match mode {
            RlMode::Off => Access::Off,
            RlMode::On if local => Access::Local,
            _ if !tokens.is_empty() => Access::Token,
            RlMode::On => {
                return Err(Refusal::new(
                    "--listen on an address that others can reach",
                    "whoever reaches it could change weights, adapters and pauses: no token is configured",
                    "give --rl-token-file FILE, or --rl off, or listen on 127.0.0.1 or on a unix socket",
                ));
            }
            RlMode::Token => {
                let why = "no token is configured";
                return Err(Refusal::new("--rl token", why, "give --rl-token-file FILE or --admin-token-file FILE"));
            }
        };
        Ok(Self { access, tokens })
    }

    /// Whether a request brings a trainer's or the admin's token.
    pub(super) fn knows(&self, headers: &HeaderMap) -> bool {
        let Some(given) = bearer_of(headers) else { return false };
        // Each token is tried: which one it was must not show in the time.
        self.tokens.iter().fold(false, |found, token| found | token.matches(given))
    }

    /// Who asks, in the words of the ledger; an error says why it is not allowed.
    pub fn allow(&self, caller: Caller, headers: &HeaderMap) -> Result<Actor, ApiError> {
        match &self.access {
            Access::Off => Err(forbidden(
                "an endpoint that controls weights, adapters, pauses or caches",
                "the server was started with --rl off",
                "start it with --rl on or --rl token",
            )),
            Access::Local => {
                // Browsers add these to what pages ask for; trainers do not.
                if let Some(name) =
                    [header::ORIGIN.as_str(), "sec-fetch-site"].iter().find(|n| headers.contains_key(**n))
                {
                    return Err(forbidden(
                        "a request of a page in a browser",
                        format!("it has the header `{name}`, and this endpoint controls weights, adapters or pauses"),
                        "ask from a program, or start the server with --rl token",
                    ));
                }
                Ok(Actor::new(match caller.uid {
                    Some(uid) => format!("rl:uid={uid}"),
                    None => "rl:tcp".to_string(),
                }))
            }
            Access::Token if caller.is_admin() => Ok(Actor::new("rl:admin-socket")),
            Access::Token if self.knows(headers) => Ok(Actor::new("rl:token")),
            Access::Token => Err(unauthorized("this endpoint", headers)),
        }
    }
}

/// A caller that may control weights, adapters, pauses and caches. As an argument of a handler it refuses all others
/// before the body is read.
#[derive(Debug, Clone)]
pub struct RlControl(pub Actor);

impl<S: Send + Sync> FromRequestParts<S> for RlControl
where
    RlAuth: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        RlAuth::from_ref(state).allow(Caller::of(&parts.extensions), &parts.headers).map(Self)
    }
}

/// A caller that may change patches.
#[derive(Debug, Clone)]
pub struct Admin(pub Actor);

impl<S: Send + Sync> FromRequestParts<S> for Admin
where
    AdminAuth: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        AdminAuth::from_ref(state).allow(Caller::of(&parts.extensions), &parts.headers).map(Self)
    }
}

/// Whether a local user may do what the server may: its own, and root.
fn trusted(uid: u32) -> bool {
    #[cfg(target_os = "linux")]
    return uid == 0 || uid == rustix::process::geteuid().as_raw();
    #[cfg(not(target_os = "linux"))]
    return uid == 0;
}

/// What a request says in `Authorization: Bearer …`.
pub(super) fn bearer_of(headers: &HeaderMap) -> Option<&[u8]> {
    let given = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, value) = given.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| value.trim_ascii())
}

fn bearer(token: &Secret, headers: &HeaderMap, what: &str) -> Result<(), ApiError> {
    match bearer_of(headers).is_some_and(|given| token.matches(given)) {
        true => Ok(()),
        false => Err(unauthorized(what, headers)),
    }
}

fn unauthorized(what: &str, headers: &HeaderMap) -> ApiError {
    let why = match headers.contains_key(header::AUTHORIZATION) {
        true => "the token in `Authorization` is not the server's",
        false => "no token was sent",
    };
    let next = "send the header `Authorization: Bearer …` with the token of the server's token file";
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", what, why, next)
}

fn forbidden(what: &str, why: impl Into<String>, next: &str) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "forbidden", what, why, next)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (header::HeaderName::from_static(k), v.parse().unwrap())).collect()
    }

    fn tcp() -> Caller {
        Caller { via: Via::Tcp, uid: None }
    }

    #[test]
    fn a_token_file_is_private_and_long_enough() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("token");
        let try_with = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            Secret::from_file("--admin-token-file", &path)
        };
        assert!(try_with(&format!("{TOKEN}\n"), 0o600).unwrap().matches(TOKEN.as_bytes()));
        assert!(try_with(TOKEN, 0o400).is_ok());
        for (text, mode, why) in [
            (TOKEN, 0o644, "0644"),
            (TOKEN, 0o640, "0640"),
            ("short", 0o600, "5 characters"),
            ("", 0o600, "0 characters"),
            ("two lines of text\nof a token", 0o600, "one line"),
        ] {
            let refusal = try_with(text, mode).unwrap_err();
            assert!(refusal.why.contains(why), "{refusal}");
        }
        assert!(Secret::from_file("--admin-token-file", tmp.path()).is_err());
        assert!(Secret::from_file("--admin-token-file", &tmp.path().join("none")).is_err());
        assert!(!format!("{:?}", Secret::new(TOKEN.as_bytes())).contains('0'));
    }

    #[test]
    fn admin_needs_the_socket_or_the_token() {
        let none = AdminAuth::default();
        let own = rustix::process::geteuid().as_raw();
        for caller in [tcp(), Caller { via: Via::Unix, uid: Some(own) }] {
            let error = none.allow(caller, &headers(&[("authorization", "Bearer x")])).unwrap_err();
            assert_eq!(error.status(), 403);
            assert!(error.message().contains("--admin-token-file"));
        }
        let socket = |uid| none.allow(Caller { via: Via::Admin, uid }, &headers(&[]));
        assert_eq!(socket(Some(own)).unwrap().as_str(), format!("unix:uid={own}"));
        assert!(socket(Some(own + 12345)).is_err() && socket(None).is_err());

        let auth = AdminAuth { token: Some(Secret::new(TOKEN.as_bytes())), ..AdminAuth::default() };
        let good = format!("Bearer {TOKEN}");
        assert_eq!(auth.allow(tcp(), &headers(&[("authorization", &good)])).unwrap().as_str(), "token");
        assert!(auth.allow(tcp(), &headers(&[("authorization", &format!("bearer  {TOKEN}"))])).is_ok());
        for bad in ["Bearer 0123456789abcdeF", "Bearer", "Bearer ", "", TOKEN, "Basic 0123456789abcdef"] {
            let error = auth.allow(tcp(), &headers(&[("authorization", bad)])).unwrap_err();
            assert_eq!(error.status(), 401, "{bad}");
        }
        assert_eq!(auth.allow(tcp(), &headers(&[])).unwrap_err().status(), 401);
    }

    #[test]
    fn rl_control_is_safe_by_default() {
        let token = || Some(Secret::new(TOKEN.as_bytes()));
        assert!(RlAuth::new(RlMode::On, None, None, false).is_err(), "open to a network");
        assert!(RlAuth::new(RlMode::Token, None, None, true).is_err());
        let local = RlAuth::new(RlMode::On, None, None, true).unwrap();
        assert!(local.allow(tcp(), &headers(&[])).is_ok());
        for browser in [("origin", "http://evil"), ("sec-fetch-site", "cross-site")] {
            assert_eq!(local.allow(tcp(), &headers(&[browser])).unwrap_err().status(), 403);
        }
        let good = format!("Bearer {TOKEN}");
        for auth in [
            RlAuth::new(RlMode::On, token(), None, false).unwrap(),
            RlAuth::new(RlMode::Token, token(), None, true).unwrap(),
            RlAuth::new(RlMode::Token, None, token(), true).unwrap(),
            RlAuth::new(RlMode::Token, Some(Secret::new(b"another token of it")), token(), true).unwrap(),
        ] {
            assert_eq!(auth.allow(tcp(), &headers(&[])).unwrap_err().status(), 401);
            assert!(auth.allow(tcp(), &headers(&[("authorization", &good)])).is_ok());
        }
        let off = RlAuth::new(RlMode::Off, None, None, false).unwrap();
        assert_eq!(off.allow(tcp(), &headers(&[("authorization", &good)])).unwrap_err().status(), 403);
    }
}
