//! Ed25519 keys: public ones as text, secret ones in files that only their owner may read.

use super::TrustError;
use crate::base::explain;
use crate::base::file::{Access, Whole};
use crate::base::text::clean;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// How a public key begins.
pub const ALGORITHM: &str = "ed25519";
/// The most bytes that a key file may have.
const MOST_BYTES: u64 = 16 << 10;

/// A public key, shown as `ed25519:` and 44 characters of base64.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Whether this key made the signature of the message. Strictly: no key of small order, no malleable signature.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature)).is_ok()
    }

    /// The first eight characters after `ed25519:`, for messages.
    pub fn short(&self) -> String {
        let text = self.to_string();
        text.get(..ALGORITHM.len() + 9).unwrap_or(&text).to_owned() + "…"
    }
}

impl PartialOrd for PublicKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PublicKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.as_bytes().cmp(other.0.as_bytes())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ALGORITHM}:{}", STANDARD.encode(self.0.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shown = || clean(text, 80);
        let coded =
            text.strip_prefix("ed25519:").ok_or_else(|| format!("`{}` is no key: it begins with ed25519:", shown()))?;
        let bytes =
            bytes::<32>(coded).ok_or_else(|| format!("`{}` is no key: 32 bytes in base64 follow ed25519:", shown()))?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| format!("`{}` is no point of the curve", shown()))?;
        if key.is_weak() {
            return Err(format!("`{}` is a weak key: it would accept signatures that nobody made", shown()));
        }
        Ok(Self(key))
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Exactly `N` bytes of base64.
pub(super) fn bytes<const N: usize>(coded: &str) -> Option<[u8; N]> {
    // Bounded before it is decoded.
    if coded.len() > N * 2 {
        return None;
    }
    STANDARD.decode(coded).ok()?.try_into().ok()
}

/// A secret key. It is never shown, and overwritten when it is dropped.
pub struct SecretKey {
    key: SigningKey,
    name: Option<String>,
}

/// As it stands in a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    public: PublicKey,
    secret: String,
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.public())
    }
}

impl SecretKey {
    /// A new one, of the operating system's randomness.
    pub fn generate(name: Option<String>) -> Self {
        let seed: [u8; 32] = rand::random();
        Self { key: SigningKey::from_bytes(&seed), name }
    }

    /// The public key that belongs to it: the part that may be given to others.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.key.verifying_key())
    }

    /// Who it belongs to, as `keygen --name` said.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }

    /// Writes the key to `path` (mode 0600) and its public key to `path`.pub. Neither may exist.
    pub fn write(&self, path: &Path) -> Result<PathBuf, TrustError> {
        let mut public = path.as_os_str().to_owned();
        public.push(".pub");
        let public = PathBuf::from(public);
        let shown = |path: &Path| clean(&path.display().to_string(), 200);
        let fail = |path: &Path, error: std::io::Error| {
            let next = match error.kind() {
                std::io::ErrorKind::AlreadyExists => "a key is never overwritten: name another file, or move this one",
                _ => "name a file in a folder that exists and can be written",
            };
            TrustError::io(format!("key file `{}`", shown(path)), &error, next)
        };
        if let Some(taken) = [path, public.as_path()].into_iter().find(|path| path.symlink_metadata().is_ok()) {
            return Err(fail(taken, std::io::ErrorKind::AlreadyExists.into()));
        }
        let file = KeyFile {
            version: 1,
            name: self.name.clone(),
            public: self.public(),
            secret: STANDARD.encode(self.key.as_bytes()),
        };
        let text = toml::to_string(&file).map_err(|e| {
            TrustError::refused(format!("key file `{}`", shown(path)), e.to_string(), "give a plain --name")
        })?;
        let text = format!("# A secret key of patchhost: whoever has it can sign. Keep it to yourself.\n{text}");
        let who = self.name.as_deref().map(|name| format!(" {}", clean(name, 80))).unwrap_or_default();
        let made = |path: &Path, access: Access, text: &str| {
            Whole::make(path, access, true, |file| file.write_all(text.as_bytes())).map_err(|e| fail(path, e))
        };
        // Both are on the disk before one has its name: half a key pair is none.
        let secret = made(path, Access::Private, &text)?;
        let beside = made(&public, Access::Shared, &format!("{}{who}\n", self.public()))?;
        secret.put().map_err(|e| fail(path, e))?;
        beside.put().map_err(|e| {
            // Ours, made a moment ago.
            let _ = std::fs::remove_file(path);
            fail(&public, e)
        })?;
        Ok(public)
    }

    /// Reads a key that only its owner may read.
    pub fn read(path: &Path) -> Result<Self, TrustError> {
        let what = || format!("key file `{}`", clean(&path.display().to_string(), 200));
        let next = "give the file that `patchhost keygen --out FILE` wrote";
        let bad = |why: String| TrustError::usage(what(), why, next);
        let io = |e: std::io::Error| TrustError::io(what(), &e, next);
        let file = patchhost_runtime::files::open(path).map_err(io)?;
        let data = file.metadata().map_err(io)?;
        if !data.is_file() || data.len() > MOST_BYTES {
            return Err(bad(format!("a key is a file of at most {MOST_BYTES} bytes")));
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let mode = data.mode() & 0o777;
            if mode & 0o077 != 0 {
                let why = format!("its mode is {mode:04o}: others than its owner may use it");
                return Err(TrustError::usage(what(), why, "chmod 600 it; if others had it, make another key"));
            }
        }
        let text = std::io::read_to_string(file).map_err(io)?;
        // The parser's own text would quote the line, and with it the secret.
        let file: KeyFile = toml::from_str(&text).map_err(|e| bad(explain_key(&text, &e)))?;
        if file.version != 1 {
            return Err(bad(format!("its version is {}, this host knows 1", file.version)));
        }
        let seed = bytes::<32>(&file.secret).ok_or_else(|| bad("its secret is not 32 bytes in base64".to_owned()))?;
        let key = Self { key: SigningKey::from_bytes(&seed), name: file.name };
        if key.public() != file.public {
            return Err(bad("its public key does not belong to its secret one".to_owned()));
        }
        Ok(key)
    }
}

/// Why a key file was not read, without a piece of the file where that piece could hold the secret: errors of the
/// parser quote the line that they are about, and error texts are copied into tickets and logs.
fn explain_key(text: &str, error: &toml::de::Error) -> String {
    let all = explain(text, error);
    if text.contains("secret") && !all.contains("unknown field") {
        return "it is no key file of patchhost: version, public and secret are needed".to_owned();
    }
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_key_goes_to_a_file_and_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("infra.key");
        let key = SecretKey::generate(Some("infra".into()));
        let public = key.write(&path).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(std::fs::read_to_string(&public).unwrap(), format!("{} infra\n", key.public()));
        let again = SecretKey::read(&path).unwrap();
        assert_eq!((again.public(), again.name()), (key.public(), Some("infra")));
        assert!(again.public().verifies(b"m", &key.sign(b"m")));
        assert!(!again.public().verifies(b"n", &key.sign(b"m")));
        // Never overwritten, and never shown.
        assert!(key.write(&path).unwrap_err().next.contains("never overwritten"));
        assert!(!format!("{key:?}").contains(&STANDARD.encode(key.key.as_bytes())));
        std::fs::remove_file(&path).unwrap();
        assert!(key.write(&path).unwrap_err().what.contains(".pub"));
    }

    #[test]
    #[cfg(unix)]
    fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k");
        SecretKey::generate(None).write(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(SecretKey::read(&path).unwrap_err().why.contains("0640"));
    }

    #[test]
    fn broken_key_files_do_not_show_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k");
        let key = SecretKey::generate(None);
        key.write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let secret = STANDARD.encode(key.key.as_bytes());
        let other = SecretKey::generate(None).public().to_string();
        for broken in [
            text.replace("secret = \"", "secret = "),
            text.replace(&secret, &format!("{secret}AAAA")),
            text.replace(&key.public().to_string(), &other),
            text.replace("version = 1", "version = 2"),
            format!("secret = \"{secret}\""),
        ] {
            std::fs::write(&path, &broken).unwrap();
            let error = SecretKey::read(&path).unwrap_err().to_string();
            assert!(!error.contains(&secret), "{error}");
        }
    }

    #[test]
    fn keys_that_are_none_are_refused() {
        let weak = format!("ed25519:{}", STANDARD.encode([0_u8; 32]));
        for text in ["", "ed25519:", "ed25519:AAAA", "rsa:AAAA", &weak, &format!("ed25519:{}", "A".repeat(10_000))] {
            assert!(text.parse::<PublicKey>().is_err(), "{text}");
        }
    }
}
