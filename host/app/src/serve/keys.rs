//! API keys (`--api-key`, `--api-key-file`): who may ask the model, where not everybody may. They are apart from the tokens of
//! trainers and admins, which open doors of their own.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::http::HeaderMap;
use hmac::digest::CtOutput;
use hmac::{Hmac, KeyInit, Mac};
use patchhost_runtime::error::Refusal;
use sha2::Sha256;

use super::auth::{bearer_of, private_text};
use super::error::ApiError;
use crate::base::text::clean;

/// What names a file of keys.
const FLAG: &str = "--api-key-file";
/// Most bytes of a file of keys.
const MAX_FILE: u64 = 256 << 10;
/// Most keys of one server: each request is compared with all of them.
const MOST_KEYS: usize = 1024;
/// Longest key.
const MAX_KEY: usize = 1024;
/// A shorter key can be guessed.
const GUESSABLE: usize = 16;

type Tag = CtOutput<Hmac<Sha256>>;

/// A key as it is given on the command line: it is never shown, and reading it never fails, so that no error quotes it.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl FromStr for ApiKey {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_string()))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// The keys of a server. Only keyed digests of them are kept.
#[derive(Default)]
pub struct ApiKeys {
    known: ArcSwap<Known>,
    given: Vec<ApiKey>,
    file: Option<PathBuf>,
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKeys({})", self.count())
    }
}

#[derive(Default)]
struct Known {
    key: [u8; 32],
    tags: Vec<Tag>,
    guessable: usize,
}

impl ApiKeys {
    /// The keys that were given, and those of a file; none of both: everybody may ask. `flag` is what the keys were given by.
    pub fn open(flag: &str, given: Vec<ApiKey>, file: Option<PathBuf>) -> Result<Self, Refusal> {
        let keys = Self { known: ArcSwap::default(), given, file };
        keys.known.store(Arc::new(keys.read(flag)?));
        Ok(keys)
    }

    /// Reads the file again. On an error the keys stay as they were. Gives how many there are now.
    pub fn reload(&self) -> Result<usize, Refusal> {
        let known = self.read("--api-key")?;
        let count = known.tags.len();
        self.known.store(Arc::new(known));
        Ok(count)
    }

    /// Whether only who has a key may ask.
    pub fn are_asked_for(&self) -> bool {
        !self.given.is_empty() || self.file.is_some()
    }

    /// Whether there is a file that can be read again.
    pub fn have_file(&self) -> bool {
        self.file.is_some()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.known.load().tags.len()
    }

    /// How many are so short that they can be guessed.
    pub fn guessable(&self) -> usize {
        self.known.load().guessable
    }

    /// Whether a request brings one of them, as `Authorization: Bearer …`. It takes the same time whichever it is.
    pub fn allow(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let known = self.known.load();
        let Some(given) = bearer_of(headers) else { return Err(ApiError::no_key("no key was sent")) };
        let found = tag(&known.key, given)
            .is_some_and(|given| known.tags.iter().fold(false, |found, known| found | (*known == given)));
        match found {
            true => Ok(()),
            false => Err(ApiError::no_key("the key in `Authorization` is none of the server's")),
        }
    }

    fn read(&self, flag: &str) -> Result<Known, Refusal> {
        let mut all = BTreeSet::new();
        for ApiKey(key) in &self.given {
            checked(key).map_err(|why| {
                // The key itself is not quoted: errors end in logs.
                Refusal::new(flag, why, "give a key such as `openssl rand -hex 32` prints, or --api-key-file FILE")
            })?;
            all.insert(key.clone());
        }
        if let Some(path) = &self.file {
            all.extend(of_file(path)?);
        }
        if all.len() > MOST_KEYS {
            let why = format!("there are {} keys; a server has at most {MOST_KEYS}", all.len());
            return Err(Refusal::new(flag, why, "put a proxy before the server that knows its users"));
        }
        let key: [u8; 32] = rand::random();
        let tags = all.iter().filter_map(|text| tag(&key, text.as_bytes())).collect();
        let guessable = all.iter().filter(|text| text.len() < GUESSABLE).count();
        Ok(Known { key, tags, guessable })
    }
}

/// The keys of a file: one a line, but for comments.
fn of_file(path: &Path) -> Result<Vec<String>, Refusal> {
    let text = private_text(FLAG, path, MAX_FILE)?;
    let bad = |why: String| {
        let what = format!("{FLAG} {}", clean(&path.to_string_lossy(), 300));
        Refusal::new(what, why, "write one key a line; lines that begin with # are comments")
    };
    let lines = text.lines().map(str::trim).enumerate();
    let keys: Vec<String> = lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, key)| match checked(key) {
            Ok(()) => Ok(key.to_string()),
            Err(why) => Err(bad(format!("line {}: {why}", number + 1))),
        })
        .collect::<Result<_, _>>()?;
    match keys.is_empty() {
        true => Err(bad("it holds no key".to_string())),
        false => Ok(keys),
    }
}

/// Whether a key can come in a header; why not, without the key.
fn checked(key: &str) -> Result<(), String> {
    match key {
        "" => Err("the key is empty".to_string()),
        key if key.len() > MAX_KEY => Err(format!("the key has {} characters; it has at most {MAX_KEY}", key.len())),
        key if !key.bytes().all(|b| b.is_ascii_graphic()) => {
            Err("the key has other characters than printable ASCII without spaces".to_string())
        }
        _ => Ok(()),
    }
}

fn tag(key: &[u8; 32], text: &[u8]) -> Option<Tag> {
    // HMAC takes keys of any length; there is no error to handle.
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).ok()?;
    mac.update(text);
    Some(mac.finalize())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn sent(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(axum::http::header::AUTHORIZATION, value.parse().unwrap())])
    }

    fn given(keys: &[&str]) -> Vec<ApiKey> {
        keys.iter().map(|key| key.parse().unwrap()).collect()
    }

    fn write(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn every_key_opens_and_nothing_else_does() {
        let keys = ApiKeys::open("--api-key", given(&["one-key", "another-key"]), None).unwrap();
        assert_eq!((keys.count(), keys.guessable(), keys.are_asked_for()), (2, 2, true));
        for good in ["Bearer one-key", "bearer another-key", "BEARER  one-key "] {
            assert!(keys.allow(&sent(good)).is_ok(), "{good}");
        }
        for bad in
            ["Bearer one-ke", "Bearer one-keyy", "one-key", "Basic one-key", "Bearer", "Bearer ", "Bearer ONE-KEY"]
        {
            let error = keys.allow(&sent(bad)).unwrap_err();
            assert_eq!(error.status(), 401, "{bad}");
            assert!(!error.message().contains("one-ke"), "{error}");
        }
        assert_eq!(keys.allow(&HeaderMap::new()).unwrap_err().status(), 401);
        assert!(!ApiKeys::default().are_asked_for());
    }

    #[test]
    fn a_file_holds_one_key_a_line_and_is_read_again() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("keys");
        write(&path, "# of the team\n\nfirst-key\r\n  second-key  \n", 0o600);
        let keys = ApiKeys::open("--api-key", given(&["of-the-flag"]), Some(path.clone())).unwrap();
        assert_eq!(keys.count(), 3);
        for key in ["first-key", "second-key", "of-the-flag"] {
            assert!(keys.allow(&sent(&format!("Bearer {key}"))).is_ok(), "{key}");
        }
        write(&path, "third-key\n", 0o600);
        assert_eq!(keys.reload().unwrap(), 2);
        assert!(keys.allow(&sent("Bearer third-key")).is_ok() && keys.allow(&sent("Bearer first-key")).is_err());
        // What cannot be read changes nothing.
        for (text, mode, why) in
            [("", 0o600, "no key"), ("a-key", 0o644, "0644"), ("a key", 0o600, "line 1"), ("x\nsché", 0o600, "line 2")]
        {
            write(&path, text, mode);
            let refusal = keys.reload().unwrap_err();
            assert!(refusal.why.contains(why) && refusal.what.contains("--api-key-file"), "{refusal}");
            assert!(keys.allow(&sent("Bearer third-key")).is_ok());
        }
        // A key that both name is one.
        write(&path, "of-the-flag\n", 0o600);
        assert_eq!(keys.reload().unwrap(), 1);
    }

    #[test]
    fn no_key_is_shown() {
        let long = "k".repeat(MAX_KEY + 1);
        for (key, why) in [("", "empty"), ("secret word", "spaces"), ("secret\u{e9}", "ASCII"), (long.as_str(), "1025")]
        {
            let refusal = ApiKeys::open("--api-key", given(&[key]), None).unwrap_err();
            assert!(refusal.why.contains(why) && !refusal.to_string().contains("secret"), "{refusal}");
        }
        let keys = ApiKeys::open("--api-key", given(&["secret-word"]), None).unwrap();
        assert!(!format!("{keys:?} {:?}", given(&["secret-word"])).contains("secret"));
    }
}
