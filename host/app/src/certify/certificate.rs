//! The certificate: what an engine was asked and what it did, sealed by a digest and signed by whoever answers for it.
//!
//! A file of it has exactly one form (sorted keys, two spaces, a line feed at its end). Any other byte is refused, so that
//! nothing can be changed that the seal does not see.

use std::path::Path;
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::KitError;
use crate::base::Digest;
use crate::base::text::clean;
use crate::trust::{PublicKey, SecretKey, Signature};

/// `type` of a certificate.
pub const TYPE: &str = "patchhost-engine-certificate";
/// Version of its form.
const VERSION: u64 = 1;
/// The most bytes that a certificate or a results file may have.
const MOST_BYTES: u64 = 64 << 20;
/// Most signatures.
const MOST_SIGNATURES: usize = 32;

/// A certificate whose seal and signatures are good.
pub struct Certificate {
    /// What it says.
    pub content: Content,
    /// Its digest.
    pub seal: String,
    /// Good signatures; anybody can make one, so whose they are counts.
    pub signatures: Vec<Signature>,
}

/// What a certificate says, as far as it must.
#[derive(Debug, Clone, Deserialize)]
pub struct Content {
    #[serde(rename = "type")]
    kind: String,
    version: u64,
    /// The engine that was tried.
    pub engine: EngineSaid,
    /// The program that tried it.
    pub kit: String,
    /// When.
    pub date: String,
    /// What the cases were made of.
    pub seed: u64,
    /// The models that it was tried with.
    pub models: Vec<ModelSaid>,
    /// What came of each case.
    pub cases: Vec<CaseSaid>,
    totals: Option<TotalsSaid>,
    verdict: Option<String>,
}

/// The engine of a certificate.
#[derive(Debug, Clone, Deserialize)]
pub struct EngineSaid {
    /// `vllm`, `sglang`, …
    pub name: String,
    /// Its version.
    pub version: String,
    /// How weights came to it.
    pub backend: Option<String>,
}

/// A model of a certificate.
#[derive(Debug, Clone, Deserialize)]
pub struct ModelSaid {
    /// The family, as `--family` names it.
    pub family: String,
    /// `architectures[0]` of config.json.
    pub architecture: String,
    config_sha256: String,
    checkpoint_sha256: String,
}

/// A case of a certificate.
#[derive(Debug, Clone, Deserialize)]
pub struct CaseSaid {
    id: String,
    #[serde(rename = "kind")]
    _kind: String,
    expected: String,
    answered: String,
    /// Whether the engine got it right.
    pub right: bool,
}

#[derive(Debug, Clone, Deserialize)]
struct TotalsSaid {
    cases: usize,
    right: usize,
    wrong: usize,
}

impl Content {
    /// How many cases it got right.
    pub fn right(&self) -> usize {
        self.cases.iter().filter(|case| case.right).count()
    }

    /// `pass` or `fail`.
    pub fn verdict(&self) -> &'static str {
        if self.right() == self.cases.len() { "pass" } else { "fail" }
    }

    /// Reads what a certificate must say, and holds its parts against each other. The error says why not.
    fn read(value: &Value) -> Result<Self, String> {
        let content: Self = serde_json::from_value(value.clone()).map_err(|e| clean(&e.to_string(), 300))?;
        let Self { kind, version, date, models, cases, totals, verdict, .. } = &content;
        if kind != TYPE || *version != VERSION {
            let kind = clean(kind, 80);
            return Err(format!("its type is `{kind}`, version {version}; this host knows {TYPE}, version {VERSION}"));
        }
        humantime::parse_rfc3339(date)
            .map_err(|_| format!("its date is `{}`, not like 2026-12-31T23:59:59Z", clean(date, 40)))?;
        let hex = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        if let Some(odd) = models.iter().flat_map(|m| [&m.config_sha256, &m.checkpoint_sha256]).find(|text| !hex(text))
        {
            return Err(format!("`{}` is no SHA-256 digest: 64 hexadecimal digits", clean(odd, 80)));
        }
        if models.is_empty() || cases.is_empty() {
            return Err(format!("it has {} models and {} cases, and needs one of each", models.len(), cases.len()));
        }
        for case in cases {
            let id = clean(&case.id, 40);
            let answers = ["accepted", "refused", "left-open", "gone", "not-asked"];
            if !["accept", "refuse"].contains(&case.expected.as_str()) || !answers.contains(&case.answered.as_str()) {
                let (expected, answered) = (clean(&case.expected, 40), clean(&case.answered, 40));
                return Err(format!(
                    "case {id} expects `{expected}` and was answered `{answered}`: one of them is no word"
                ));
            }
            let good: &[&str] = if case.expected == "accept" { &["accepted"] } else { &["refused", "left-open"] };
            if case.right && !good.contains(&case.answered.as_str()) {
                return Err(format!(
                    "case {id} is said to be right, with {} where {} is",
                    case.answered, case.expected
                ));
            }
        }
        let (right, all) = (content.right(), cases.len());
        if let Some(said) =
            totals.as_ref().filter(|said| (said.cases, said.right, said.wrong) != (all, right, all - right))
        {
            let TotalsSaid { cases, right: r, wrong } = said;
            return Err(format!(
                "its totals are {cases} cases, {r} right, {wrong} wrong; its cases are {all}, {right} of them right"
            ));
        }
        if let Some(said) = verdict.as_ref().filter(|said| *said != content.verdict()) {
            return Err(format!("its verdict is `{}`; by its cases it is {}", clean(said, 40), content.verdict()));
        }
        Ok(content)
    }
}

/// Reads a results file or a certificate, bounded.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, KitError> {
    patchhost_runtime::files::read(path, MOST_BYTES).map_err(|e| {
        KitError::usage(shown(path), e.to_string(), format!("give a file of at most {} MiB", MOST_BYTES >> 20))
    })
}

/// Reads a results file. Numbers are written so that every reader of JSON reads them back alike.
pub fn results(path: &Path) -> Result<Value, KitError> {
    serde_json::from_slice(&read_bytes(path)?)
        .map_err(|e| KitError::usage(shown(path), e.to_string(), "give the JSON that a kit wrote"))
}

/// Seals what a kit found and signs it, and gives the text of the certificate's file.
pub fn seal(results: &Value, keys: &[SecretKey], now: SystemTime) -> Result<String, KitError> {
    let refused = |why: String| KitError::refused("the results", why, "give what a kit wrote, unchanged");
    let Value::Object(mut content) = plain(results) else { return Err(refused("they are no JSON object".to_owned())) };
    content.remove("seal");
    content.remove("signatures");
    let read = Content::read(&Value::Object(content.clone())).map_err(refused)?;
    let (all, right) = (read.cases.len(), read.right());
    content.entry("totals").or_insert_with(|| json!({ "cases": all, "right": right, "wrong": all - right }));
    content.entry("verdict").or_insert_with(|| read.verdict().into());
    let bytes = canonical(&content)?;
    let signatures: Vec<Signature> = keys.iter().map(|key| Signature::make(&bytes, key, None, None, now)).collect();
    content.insert("seal".to_owned(), json!({ "sha256": Digest::of(&bytes).hex() }));
    content.insert("signatures".to_owned(), serde_json::to_value(signatures).map_err(bug)?);
    let text = render(content)?;
    // A certificate that its own reader refuses would be of no use to anybody.
    parse(text.as_bytes()).map_err(|e| bug(e.why()))?;
    Ok(text)
}

/// Reads a certificate and checks its seal and every signature.
pub fn read(path: &Path) -> Result<Certificate, KitError> {
    parse(&read_bytes(path)?).map_err(|e| {
        let next = "do not believe it: ask whoever made it for the file as it was, or run the kit again";
        KitError::refused(format!("certificate {}", shown(path)), e.why(), next)
    })
}

/// Whether bytes are, or were before somebody changed one, a certificate and no component.
pub fn looks_like(path: &Path, bytes: &[u8]) -> bool {
    let named = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    named || bytes.first() == Some(&b'{') || bytes.windows(TYPE.len()).any(|window| window == TYPE.as_bytes())
}

fn parse(bytes: &[u8]) -> Result<Certificate, KitError> {
    let refused = |why: String| KitError::refused("certificate", why, "do not believe it");
    let value: Value = serde_json::from_slice(bytes).map_err(|e| refused(format!("it is no JSON: {e}")))?;
    let Value::Object(mut content) = value else { return Err(refused("it is no JSON object".to_owned())) };
    if render(content.clone())?.as_bytes() != bytes {
        return Err(refused("its bytes are not those that patchhost writes: somebody changed it".to_owned()));
    }
    let seal = content.remove("seal").ok_or_else(|| refused("it has no seal".to_owned()))?;
    let signatures = content.remove("signatures").ok_or_else(|| refused("it has no list of signatures".to_owned()))?;
    let bytes = canonical(&content)?;
    let digest = Digest::of(&bytes).hex();
    if seal != json!({ "sha256": digest }) {
        return Err(refused(format!("its seal does not fit: the content has {digest}")));
    }
    let listed = signatures.clone();
    let signatures: Vec<Signature> = serde_json::from_value(signatures)
        .map_err(|e| refused(format!("its signatures: {}", clean(&e.to_string(), 300))))?;
    // Digests, for one, can be written in capitals too.
    if serde_json::to_value(&signatures).map_err(bug)? != listed {
        return Err(refused("its signatures are not written as patchhost writes them".to_owned()));
    }
    if signatures.len() > MOST_SIGNATURES {
        return Err(refused(format!("it has {} signatures, at most {MOST_SIGNATURES} are read", signatures.len())));
    }
    for signature in &signatures {
        // The one word of a signature that it does not sign itself.
        if signature.size != bytes.len() as u64 {
            return Err(refused(format!("the signature of {}: it is for {} bytes", signature.key, signature.size)));
        }
        signature.verify(&bytes).map_err(|why| refused(format!("the signature of {}: {why}", signature.key)))?;
    }
    let content = Content::read(&Value::Object(content)).map_err(refused)?;
    Ok(Certificate { content, seal: digest, signatures })
}

impl Certificate {
    /// How many of these keys signed it.
    pub fn signed_by(&self, keys: &[PublicKey]) -> usize {
        keys.iter().filter(|key| self.signatures.iter().any(|s| s.key == **key)).count()
    }
}

/// What is sealed and signed: one line without spaces, keys sorted.
fn canonical(content: &Map<String, Value>) -> Result<Vec<u8>, KitError> {
    let mut value = Value::Object(content.clone());
    value.sort_all_objects();
    serde_json::to_vec(&value).map_err(bug)
}

/// What the file has: the same for people.
fn render(content: Map<String, Value>) -> Result<String, KitError> {
    let mut value = Value::Object(content);
    value.sort_all_objects();
    Ok(serde_json::to_string_pretty(&value).map_err(bug)? + "\n")
}

/// Numbers with at most nine digits: longer ones are read back with another last bit by some readers of JSON, and the seal
/// would break.
fn plain(value: &Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => {
            let short = number.as_f64().and_then(|n| format!("{n:.8e}").parse::<f64>().ok());
            short.map_or_else(|| value.clone(), Value::from)
        }
        Value::Array(all) => all.iter().map(plain).collect(),
        Value::Object(all) => all.iter().map(|(name, value)| (name.clone(), plain(value))).collect(),
        _ => value.clone(),
    }
}

fn shown(path: &Path) -> String {
    format!("`{}`", clean(&path.display().to_string(), 200))
}

fn bug(error: impl std::fmt::Display) -> KitError {
    KitError::host("the certificate as JSON", error.to_string(), "please report this: it is an error of patchhost")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn results() -> Value {
        let digest = Digest::of(b"x").hex();
        let case = |id: &str, expected: &str, answered: &str| {
            json!({ "id": id, "kind": "lost", "class": "norm", "tensor": null, "expected": expected, "answered": answered,
                "held": "base", "right": true, "detail": "größer \u{202e}" })
        };
        json!({
            "type": TYPE, "version": 1, "kit": "k", "date": "2026-12-01T10:00:00Z", "seed": u64::MAX,
            "engine": { "name": "e", "version": "1" }, "tolerance": [0.1 + 0.2, 1e-300, 12_345_678.912_345_678, -0.0],
            "models": [{ "family": "f", "architecture": "A", "config_sha256": digest, "checkpoint_sha256": digest }],
            "cases": [case("1", "accept", "accepted"), case("2", "refuse", "refused"), case("3", "refuse", "left-open")],
        })
    }

    fn sealed(keys: &[SecretKey]) -> String {
        seal(&results(), keys, SystemTime::now()).unwrap()
    }

    #[test]
    fn what_is_sealed_can_be_read() {
        let (ours, other) = (SecretKey::generate(None), SecretKey::generate(None));
        let text = sealed(std::slice::from_ref(&ours));
        let read = parse(text.as_bytes()).unwrap();
        assert_eq!((read.content.right(), read.content.verdict()), (3, "pass"));
        assert_eq!((read.signed_by(&[ours.public()]), read.signed_by(&[other.public()])), (1, 0));
        // Sealed once more, it is the same.
        let again = seal(&serde_json::from_str(&text).unwrap(), &[], SystemTime::now()).unwrap();
        assert_eq!(parse(again.as_bytes()).unwrap().seal, read.seal);
    }

    #[test]
    fn no_byte_can_be_changed() {
        for keys in [&[][..], &[SecretKey::generate(None)]] {
            let text = sealed(keys).into_bytes();
            for at in 0..text.len() {
                for bit in [1, 0x20] {
                    let mut changed = text.clone();
                    changed[at] ^= bit;
                    assert!(parse(&changed).is_err(), "byte {at}: {}", String::from_utf8_lossy(&changed));
                }
            }
            assert!(parse(&[&text[..], b"\n"].concat()).is_err() && parse(&text[..text.len() - 1]).is_err());
        }
    }

    #[test]
    fn results_that_contradict_themselves_are_refused() {
        let changes: [(&str, Value); 8] = [
            ("/type", json!("other")),
            ("/version", json!(2)),
            ("/date", json!("yesterday")),
            ("/models", json!([])),
            ("/models/0/config_sha256", json!("abc")),
            ("/cases", json!([])),
            ("/cases/1/answered", json!("accepted")),
            ("/cases/1/expected", json!("maybe")),
        ];
        for (place, value) in changes {
            let mut results = results();
            *results.pointer_mut(place).unwrap() = value;
            assert!(seal(&results, &[], SystemTime::now()).is_err(), "{place}");
        }
        for more in [json!({ "verdict": "fail" }), json!({ "totals": { "cases": 3, "right": 2, "wrong": 1 } })] {
            let mut results = results();
            results.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            assert!(seal(&results, &[], SystemTime::now()).is_err(), "{more}");
        }
    }
}
