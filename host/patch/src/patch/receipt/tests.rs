#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use patchhost_runtime::refit::{Arrivals, Begin, Manifest, Promise, RefitReport, Source};
use serde_json::{Value, json};

use super::*;
use crate::base::{Code, Exit};

fn handed(name: &str, dtype: &str, shape: &[u64], bytes: &[u8]) -> Handed {
    Handed { name: name.into(), dtype: dtype.into(), shape: shape.into(), sha256: Digest::of(bytes) }
}

/// A matrix that became FP8, and a vector that was kept.
fn tensors(weight: &[u8]) -> Vec<TensorReceipt> {
    let codes = handed("w", "F8_E4M3", &[2, 2], weight);
    let scales = handed("w_scale_inv", "F32", &[1, 1], b"1234");
    vec![
        TensorReceipt {
            name: "n".into(),
            dtype: "BF16".into(),
            shape: vec![2],
            before: Digest::of(b"nnnn"),
            after: vec![handed("n", "BF16", &[2], b"nnnn")],
            kept: true,
            blocks: 0,
            saturated: 0,
        },
        TensorReceipt {
            name: "w".into(),
            dtype: "BF16".into(),
            shape: vec![2, 2],
            before: Digest::of(weight),
            after: vec![codes, scales],
            kept: false,
            blocks: 1,
            saturated: 3,
        },
    ]
}

fn source(manifest: Option<Manifest>) -> Source {
    let tensor = |name: &str, shape: Vec<usize>| {
        let bytes = vec![0u8; 2 * shape.iter().product::<usize>()];
        let len = bytes.len();
        CheckpointTensor::new(
            name,
            serde_json::from_value(json!("BF16")).unwrap(),
            shape,
            TensorBytes::new(Arc::new(bytes), 0..len).unwrap(),
        )
    };
    let checkpoint = Checkpoint::from_tensors([tensor("n", vec![2]), tensor("w", vec![2, 2])]).unwrap();
    Arrivals::new(Begin { manifest, ..Begin::default() }, 100).whole(checkpoint).unwrap()
}

fn receipt(digests: Option<Digests>) -> Receipt {
    let report = RefitReport {
        label: "step-7".into(),
        quantized: 1,
        kept: 1,
        blocks_proved: 1,
        saturated: 3,
        relative_rmse: Some(0.025_123_456_789_123),
        seconds: 0.123_456_789,
        bytes_before: 12,
        bytes_after: 12,
        ..RefitReport::default()
    };
    Receipt::of(RefitAt { refit: 3, step: Some(7) }, &report, Digest::of(b"set"), &source(None), digests)
}

fn full() -> Receipt {
    receipt(Some(Digests::of_tensors(tensors(b"wwww"))))
}

fn parsed(value: &Value) -> Result<Receipt, ReceiptError> {
    Receipt::parse(&value.to_string(), "a receipt")
}

#[test]
fn a_root_is_the_digest_of_sorted_lines() {
    let n = Digest::of(b"nnnn").hex();
    let (codes, scales) = (Digest::of(b"wwww").hex(), Digest::of(b"1234").hex());
    let after = format!("n BF16 [2] {n}\nw F8_E4M3 [2,2] {codes}\nw_scale_inv F32 [1,1] {scales}\n");
    assert_eq!(full().root_after, Some(Digest::of(after.as_bytes())));
    assert_eq!(full().root_before, Some(Digest::of(format!("n BF16 [2] {n}\nw BF16 [2,2] {codes}\n").as_bytes())));
    let mut turned = tensors(b"wwww");
    turned.reverse();
    assert_eq!(roots(&turned), roots(&tensors(b"wwww")));
    // A name cannot pass for a line of its own.
    let odd = seal::line("a BF16\nb", "BF16", &[], &Digest::ZERO);
    assert!(odd.starts_with(r#""a BF16\nb" BF16 [] 0"#), "{odd}");
}

#[test]
fn what_was_written_is_read() {
    for receipt in [full(), full().summary(), receipt(None)] {
        let json = serde_json::to_string_pretty(&receipt).unwrap();
        let read = Receipt::parse(&json, "a receipt").unwrap();
        assert_eq!((&read, read.difference(&receipt).is_empty()), (&receipt, receipt.root_after.is_some()));
    }
    assert_eq!((full().counts.tensors, full().counts.elements, full().counts.seconds), (2, 6, 0.123_457));
}

#[test]
fn every_changed_leaf_is_refused() {
    fn leaves(value: &Value, at: String, into: &mut Vec<String>) {
        match value {
            Value::Object(members) => members.iter().for_each(|(k, v)| leaves(v, format!("{at}/{k}"), into)),
            Value::Array(items) => items.iter().enumerate().for_each(|(i, v)| leaves(v, format!("{at}/{i}"), into)),
            _ => into.push(at),
        }
    }
    let good = serde_json::to_value(full()).unwrap();
    let mut all = Vec::new();
    leaves(&good, String::new(), &mut all);
    assert!(all.len() > 40, "{all:?}");
    for at in all {
        let mut bad = good.clone();
        let leaf = bad.pointer_mut(&at).unwrap();
        *leaf = match leaf {
            Value::Number(n) if n.is_f64() => json!(n.as_f64().unwrap() + 0.001),
            Value::Number(n) => json!(n.as_u64().unwrap() + 1),
            Value::Bool(yes) => json!(!*yes),
            Value::String(text) if text.starts_with("sha256:") => json!(Digest::of(b"other")),
            Value::String(text) => json!(format!("{text}x")),
            _ => json!(Digest::of(b"other")),
        };
        let error = parsed(&bad).expect_err(&at);
        let parts = error.parts();
        assert!(!parts.why.is_empty() && !parts.next.is_empty(), "{at}: {error}");
        let form = at == "/patchhost_receipt";
        assert_eq!(error.exit() == Code::Usage, form, "{at}: {error}");
    }
}

#[test]
fn what_is_no_receipt_is_refused_as_such() {
    let mut twice = serde_json::to_value(full()).unwrap();
    let first = twice["tensors"][0].clone();
    twice["tensors"].as_array_mut().unwrap().push(first);
    assert!(parsed(&twice).unwrap_err().to_string().contains("`n` twice"));
    let mut more = serde_json::to_value(full()).unwrap();
    more["more"] = json!(1);
    for text in ["", "[]", "{}", "nonsense", &more.to_string(), &"[".repeat(1000)] {
        let error = Receipt::parse(text, "a receipt").unwrap_err();
        assert!(error.exit() == Code::Usage && error.to_string().contains("it is no receipt"), "{error}");
    }
    assert_eq!(Receipt::read(Path::new("/no/such/receipt")).unwrap_err().exit(), Code::Usage);
}

#[test]
fn differences_are_named() {
    let again = receipt(Some(Digests::of_tensors(tensors(b"wwww"))));
    assert_eq!(full().difference(&again), Vec::<String>::new());
    let other = receipt(Some(Digests::of_tensors(tensors(b"wwwx"))));
    let lines = full().difference(&other);
    assert!(matches!(&lines[..], [line] if line.starts_with("tensor `w`: other bytes came (sha256 ")), "{lines:?}");
    assert!(lines[0].contains("other bytes were handed on as `w` (sha256"), "{lines:?}");

    let mut made_otherwise = tensors(b"wwww");
    made_otherwise[1].after[1].sha256 = Digest::of(b"another scale");
    let lines = full().difference(&receipt(Some(Digests::of_tensors(made_otherwise))));
    let says = "tensor `w`: other bytes were handed on as `w_scale_inv` although the same bytes came";
    assert!(matches!(&lines[..], [line] if line.starts_with(says)), "{lines:?}");

    let lost = receipt(Some(Digests::of_tensors(tensors(b"wwww")[..1].to_vec())));
    assert_eq!(full().difference(&lost), ["tensor `w`: it is only in the first"]);
    assert_eq!(lost.difference(&full()), ["tensor `w`: it is only in the second"]);

    // Roots alone say that something differs; nothing at all says that nothing can be said.
    assert_eq!(full().summary().difference(&again), Vec::<String>::new());
    let lines = full().summary().difference(&other);
    assert!(lines[0].starts_with("other tensors came: root_before is sha256:") && lines.len() == 2, "{lines:?}");
    let lines = receipt(None).difference(&receipt(None));
    assert!(lines[0].starts_with("the bytes cannot be compared: neither of the two has digests"), "{lines:?}");
}

#[test]
fn a_manifest_and_digests_that_are_there_are_in_it() {
    let zeros = Digest::of(&[0; 4]).hex();
    let n = Promise { sha256: Some(zeros.clone()), ..Promise::default() };
    let w = Promise { shape: Some(vec![2, 2]), ..Promise::default() };
    let manifest = Manifest { tensors: [("w".to_owned(), w), ("n".to_owned(), n)].into() };
    let source = source(Some(manifest));
    let of = || Receipt::of(RefitAt { refit: 1, step: None }, &RefitReport::default(), Digest::ZERO, &source, None);
    let text = format!(r#"{{"tensors":{{"n":{{"sha256":"{zeros}"}},"w":{{"shape":[2,2]}}}}}}"#);
    assert_eq!((of().manifest, of().root_before), (Some(Digest::of(text.as_bytes())), None));
    source.check().unwrap();
    assert!(of().root_before.is_some() && of().root_after.is_none(), "the manifest's digests were compared");
}
