//! Detached signatures: `X.wasm.sig` beside `X.wasm`. What is signed is the whole file and everything that the signature
//! says about itself, under a name of its own, so that no signature made for something else fits.

use super::TrustError;
use super::key::{ALGORITHM, PublicKey, SecretKey, bytes};
use crate::base::Digest;
use crate::base::file::{self, Guard};
use crate::base::text::clean;
use crate::base::{Day, explain, stamp};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use patchhost_runtime::files;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// First line of what is signed.
const DOMAIN: &str = "patchhost signature v1";
const KIND: &str = "signature file";
/// Version of the file.
const VERSION: u32 = 1;
/// The most bytes that a signature file may have.
const MOST_BYTES: u64 = 64 << 10;
/// Most signatures of one component.
pub(super) const MOST: usize = 32;
/// The most bytes that the comment of a signature may have.
const COMMENT_BYTES: usize = 1_000;

/// One signature of one component, with what was signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// The algorithm; only `ed25519` is known.
    pub algorithm: String,
    /// Public key of the signer.
    pub key: PublicKey,
    /// Digest of the file that was signed.
    pub digest: Digest,
    /// How many bytes the signed file has.
    pub size: u64,
    /// When, as the signer says.
    pub signed_at: String,
    /// The signature counts until this day ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Day>,
    /// Whatever the signer wants to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// 64 bytes in base64.
    pub signature: String,
}

impl Signature {
    /// Signs a whole file.
    pub fn make(file: &[u8], key: &SecretKey, not_after: Option<Day>, comment: Option<&str>, now: SystemTime) -> Self {
        let mut made = Self {
            algorithm: ALGORITHM.to_owned(),
            key: key.public(),
            digest: Digest::of(file),
            size: file.len() as u64,
            signed_at: stamp(now),
            not_after,
            comment: comment.map(|comment| clean(comment, COMMENT_BYTES)),
            signature: String::new(),
        };
        made.signature = STANDARD.encode(key.sign(&made.message(file)));
        made
    }

    /// Whether the key made this signature of this file, and of every other word in it.
    pub fn verify(&self, file: &[u8]) -> Result<(), String> {
        if self.algorithm != ALGORITHM {
            return Err(format!("its algorithm is `{}`, this host knows {ALGORITHM}", clean(&self.algorithm, 40)));
        }
        let digest = Digest::of(file);
        if digest != self.digest {
            return Err(format!("it is for {}, the file is {digest}", self.digest));
        }
        let signature = bytes::<64>(&self.signature).ok_or("it is not 64 bytes in base64")?;
        match self.key.verifies(&self.message(file), &signature) {
            true => Ok(()),
            false => Err(format!("{} did not make it for these bytes and words", self.key)),
        }
    }

    /// A line for each thing that is said, then the file. Texts are quoted, so that no value can look like a line.
    fn message(&self, file: &[u8]) -> Vec<u8> {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let or_none = |text: Option<String>| text.map_or_else(|| "none".to_owned(), |text| quoted(&text));
        let head = format!(
            "{DOMAIN}\nkey {}\nsigned-at {}\nnot-after {}\ncomment {}\nsize {}\n{}\n\n",
            self.key,
            quoted(&self.signed_at),
            or_none(self.not_after.map(|day| day.to_string())),
            or_none(self.comment.clone()),
            file.len(),
            Digest::of(file),
        );
        [head.as_bytes(), file].concat()
    }
}

/// The signatures of one component: the file `X.wasm.sig` beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signatures {
    version: u32,
    /// The signatures, at most one of each key.
    #[serde(default, rename = "signature")]
    pub all: Vec<Signature>,
}

impl Default for Signatures {
    fn default() -> Self {
        Self { version: VERSION, all: Vec::new() }
    }
}

impl Signatures {
    /// Where the signatures of a component lie: `X.wasm.sig`.
    pub fn path_of(component: &Path) -> PathBuf {
        let mut path = OsString::from(component);
        path.push(".sig");
        path.into()
    }

    /// Reads a file; an empty list if there is none.
    pub fn read(path: &Path) -> Result<Self, TrustError> {
        let what = || format!("signature file `{}`", clean(&path.display().to_string(), 200));
        let next = "make it anew with `patchhost sign`, or remove it";
        let text = match files::read_text(path, MOST_BYTES) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !path.is_symlink() => return Ok(Self::default()),
            Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::FileTooLarge) => {
                return Err(TrustError::refused(what(), e.to_string(), next));
            }
            Err(e) => return Err(TrustError::io(what(), &e, next)),
        };
        Self::parse(&text).map_err(|why| TrustError::refused(what(), why, next))
    }

    /// Reads the text of a signature file; the error says why it cannot be understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: Self = toml::from_str(text).map_err(|e| explain(text, &e))?;
        if file.version != VERSION {
            return Err(format!("its version is {}, this host knows {VERSION}", file.version));
        }
        if file.all.len() > MOST {
            return Err(format!("{} signatures, at most {MOST} are read", file.all.len()));
        }
        Ok(file)
    }

    /// Adds a signature to a file, and says how many it has then.
    pub fn update(path: &Path, signature: Signature) -> Result<usize, TrustError> {
        let _guard = Guard::take(path, KIND)?;
        let mut file = Self::read(path)?;
        file.add(signature);
        let what = || file::shown(KIND, path);
        if file.all.len() > MOST {
            let why = format!("it would have more than {MOST} signatures");
            return Err(TrustError::refused(what(), why, "remove signatures that nobody needs"));
        }
        let text = file.to_text().map_err(|e| TrustError::refused(what(), e.to_string(), "give a plain --comment"))?;
        file::write(path, KIND, &text)?;
        Ok(file.all.len())
    }

    /// Adds a signature; one by the same key goes, and those of other bytes go too.
    pub fn add(&mut self, signature: Signature) {
        self.all.retain(|old| old.key != signature.key && old.digest == signature.digest);
        self.all.push(signature);
    }

    /// As it is written.
    pub fn to_text(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn now() -> SystemTime {
        humantime::parse_rfc3339("2026-11-28T12:00:00Z").unwrap()
    }

    /// Every byte of a signed file counts. The digest is taken out of the comparison, so that the signature is what refuses.
    #[test]
    fn every_byte_of_a_signed_file_is_bound() {
        let mut file: Vec<u8> = (0..25_423_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let key = SecretKey::generate(None);
        let signature = Signature::make(&file, &key, None, None, now());
        signature.verify(&file).unwrap();
        for at in 0..file.len() {
            file[at] ^= 1 << (at % 8);
            let changed = Signature { digest: Digest::of(&file), ..signature.clone() };
            assert!(signature.verify(&file).unwrap_err().contains("it is for"), "byte {at}");
            assert!(changed.verify(&file).unwrap_err().contains("did not make it"), "byte {at}");
            file[at] ^= 1 << (at % 8);
        }
        signature.verify(&file).unwrap();
        for other in [&file[..file.len() - 1], &[&file[..], &[0]].concat(), &[]] {
            assert!(signature.verify(other).is_err());
        }
    }

    #[test]
    fn everything_that_a_signature_says_is_signed() {
        let key = SecretKey::generate(None);
        let good = Signature::make(b"file", &key, Some("2026-12-31".parse().unwrap()), Some("for the test"), now());
        good.verify(b"file").unwrap();
        let s = || good.clone();
        let tampered = [
            Signature { not_after: Some("2036-12-31".parse().unwrap()), ..s() },
            Signature { not_after: None, ..s() },
            Signature { comment: None, ..s() },
            Signature { comment: Some("for the test\nsize 5".into()), ..s() },
            Signature { signed_at: "2020-01-01T00:00:00Z".into(), ..s() },
            Signature { key: SecretKey::generate(None).public(), ..s() },
            Signature { algorithm: "none".into(), ..s() },
            Signature { signature: STANDARD.encode([0; 64]), ..s() },
            Signature { signature: String::new(), ..s() },
            Signature { signature: "A".repeat(100_000), ..s() },
        ];
        for bad in tampered {
            assert!(bad.verify(b"file").is_err(), "{bad:?}");
        }
        for at in 0..64 {
            let mut raw = bytes::<64>(&good.signature).unwrap();
            raw[at] ^= 1;
            assert!(Signature { signature: STANDARD.encode(raw), ..s() }.verify(b"file").is_err(), "byte {at}");
        }
    }

    #[test]
    fn files_are_read_back_and_one_key_signs_once() {
        let (a, b) = (SecretKey::generate(None), SecretKey::generate(None));
        let mut file = Signatures::default();
        file.add(Signature::make(b"old", &b, None, None, now()));
        for key in [&a, &b, &a] {
            file.add(Signature::make(b"x", key, None, Some("\u{202e}\n\"quoted\""), now()));
        }
        assert_eq!(file.all.iter().map(|s| s.key).collect::<Vec<_>>(), [b.public(), a.public()]);
        let again = Signatures::parse(&file.to_text().unwrap()).unwrap();
        assert_eq!(again, file);
        again.all.iter().for_each(|s| s.verify(b"x").unwrap());
        for (text, why) in [
            ("", "version"),
            ("version = 2", "version is 2"),
            ("version = 1\n[[signature]]\n", "missing field"),
            ("version = 1\nsigner = 1", "unknown field"),
        ] {
            assert!(Signatures::parse(text).unwrap_err().contains(why), "{text}");
        }
    }
}
