//! A receipt out of a text that somebody else may have changed.

use std::collections::HashSet;
use std::path::Path;

use patchhost_runtime::error::Refusal;
use patchhost_runtime::files;

use super::{FORMAT, Receipt, TensorReceipt, roots, seal};
use crate::base::{Code, Exit, text};

/// Most bytes of a file with a receipt: a model of 200,000 tensors has about 150 MB.
const MOST_BYTES: u64 = 512 << 20;

/// Why a receipt was not read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("refused: {refusal}")]
pub struct ReceiptError {
    code: Code,
    refusal: Refusal,
}

impl ReceiptError {
    fn no_receipt(what: &str, why: impl Into<String>) -> Self {
        let next = "give what `Receipt.save` or `Receipt.to_json` of the Python package wrote";
        Self { code: Code::Usage, refusal: Refusal::new(what, why, next) }
    }

    fn changed(what: &str, why: impl Into<String>) -> Self {
        let next = "somebody changed it after the refit: get it anew from the rank that wrote it";
        Self { code: Code::Refused, refusal: Refusal::new(what, why, next) }
    }
}

impl Exit for ReceiptError {
    fn exit(&self) -> Code {
        self.code
    }

    fn parts(&self) -> Refusal {
        self.refusal.clone()
    }
}

impl Receipt {
    /// Reads a receipt from a file, and refuses it where it contradicts itself.
    pub fn read(path: &Path) -> Result<Self, ReceiptError> {
        let what = format!("receipt `{}`", text::clean(&path.display().to_string(), 300));
        let json = files::read_text(path, MOST_BYTES).map_err(|error| ReceiptError {
            code: Code::of_io(&error),
            refusal: Refusal::new(what.clone(), error.to_string(), "give a file with a receipt that can be read"),
        })?;
        Self::parse(&json, &what)
    }

    /// Reads a receipt from its JSON, and refuses it where it contradicts itself. `what`: how errors call it.
    pub fn parse(json: &str, what: &str) -> Result<Self, ReceiptError> {
        let of: Form = serde_json::from_str(json)
            .map_err(|e| ReceiptError::no_receipt(what, format!("it is no receipt: {}", said(&e))))?;
        if of.patchhost_receipt != FORMAT {
            let why = format!("its form has version {}, and this program reads version {FORMAT}", of.patchhost_receipt);
            let next = "read it with the version of patchhost that wrote it";
            return Err(ReceiptError { code: Code::Usage, refusal: Refusal::new(what, why, next) });
        }
        let receipt: Self = serde_json::from_str(json)
            .map_err(|e| ReceiptError::no_receipt(what, format!("it is no receipt: {}", said(&e))))?;
        receipt.holds().map_err(|why| ReceiptError::changed(what, why))?;
        Ok(receipt)
    }

    /// What it says of itself, made again from its parts.
    fn holds(&self) -> Result<(), String> {
        if let Some(tensors) = &self.tensors {
            unique(tensors)?;
            let (before, after) = roots(tensors);
            for (name, found, said) in [
                ("root_before", before, self.root_before),
                ("root_after", after, self.root_after),
                ("tensors_sha256", seal::list(tensors), self.tensors_sha256),
            ] {
                if said != Some(found) {
                    let said = said.map_or_else(|| "none".to_owned(), |said| said.to_string());
                    return Err(format!("its tensors give the {name} {found}, and it says {said}"));
                }
            }
            let sum = |of: fn(&TensorReceipt) -> u64| tensors.iter().map(of).fold(0u64, u64::saturating_add);
            for (name, found, said) in [
                ("tensors", tensors.len() as u64, self.counts.tensors),
                ("kept", sum(|t| u64::from(t.kept)), self.counts.kept),
                ("blocks_proved", sum(|t| t.blocks), self.counts.blocks_proved),
                ("saturated", sum(|t| t.saturated), self.counts.saturated),
            ] {
                if found != said {
                    return Err(format!("its tensors give {found} for `{name}`, and it says {said}"));
                }
            }
        }
        let seal = self.sealed();
        if seal != self.seal {
            return Err(format!("what it says has the seal {seal}, and it carries {}", self.seal));
        }
        Ok(())
    }
}

/// The version alone, whatever else stands there.
#[derive(serde::Deserialize)]
struct Form {
    patchhost_receipt: u32,
}

fn unique(tensors: &[TensorReceipt]) -> Result<(), String> {
    let (mut came, mut handed) = (HashSet::new(), HashSet::new());
    let twice = |name: &str| Err(format!("it has the tensor `{}` twice", text::clean(name, 200)));
    for tensor in tensors {
        if !came.insert(tensor.name.as_str()) {
            return twice(&tensor.name);
        }
        if let Some(twin) = tensor.after.iter().find(|h| !handed.insert(h.name.as_str())) {
            return twice(&twin.name);
        }
    }
    Ok(())
}

/// An error of the parser quotes what stands in the text.
fn said(error: &serde_json::Error) -> String {
    text::clean(&error.to_string(), 300)
}
