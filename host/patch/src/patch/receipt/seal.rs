//! The texts that are hashed: lines of roots, the list of tensors, and everything that the seal holds.

use super::{Counts, Receipt, TensorReceipt};
use crate::base::Digest;

/// One line of a root.
pub(super) fn line(name: &str, dtype: &str, shape: &[u64], sha256: &Digest) -> String {
    format!("{} {} {} {}\n", word(name), word(dtype), dimensions(shape), sha256.hex())
}

/// One digest of all lines, in whichever order they come.
pub(super) fn root(lines: impl IntoIterator<Item = String>) -> Digest {
    let mut lines: Vec<String> = lines.into_iter().collect();
    lines.sort_unstable();
    Digest::of(lines.concat().as_bytes())
}

/// One digest of the list of tensors, with what the roots do not have: what belongs together, and the counts.
pub(super) fn list(tensors: &[TensorReceipt]) -> Digest {
    let lines = tensors.iter().map(|t| {
        let kept = if t.kept { "kept" } else { "quantized" };
        let before = line(&t.name, &t.dtype, &t.shape, &t.before);
        let after: String = t.after.iter().map(|h| line(&h.name, &h.dtype, &h.shape, &h.sha256)).collect();
        format!("{before}{kept} {} blocks {} saturated {} handed on\n{after}", t.blocks, t.saturated, t.after.len())
    });
    root(lines)
}

impl Receipt {
    /// The seal that belongs to what it says.
    pub(super) fn sealed(&self) -> Digest {
        let Counts {
            tensors,
            quantized,
            kept,
            elements,
            blocks_proved,
            saturated,
            flushed,
            non_finite,
            relative_rmse,
            seconds,
            bytes_before,
            bytes_after,
        } = &self.counts;
        let digest = |digest: Option<Digest>| digest.map_or_else(|| "-".to_owned(), |d| d.hex());
        let step = self.step.map_or_else(|| "-".to_owned(), |step| step.to_string());
        let rmse = relative_rmse.map_or_else(|| "-".to_owned(), |x| format!("{x:.8e}"));
        let text = format!(
            "patchhost receipt {}\nrefit {}\nstep {step}\nversion {}\npatch_set {}\nmanifest {}\ntensors {tensors}\n\
             quantized {quantized}\nkept {kept}\nelements {elements}\nblocks_proved {blocks_proved}\nsaturated {saturated}\n\
             flushed {flushed}\nnon_finite {non_finite}\nrelative_rmse {rmse}\nseconds {seconds:.6}\n\
             bytes_before {bytes_before}\nbytes_after {bytes_after}\nroot_before {}\nroot_after {}\ntensors_sha256 {}\n",
            self.format,
            self.refit,
            serde_json::Value::from(self.version.as_str()),
            self.patch_set.hex(),
            digest(self.manifest),
            digest(self.root_before),
            digest(self.root_after),
            digest(self.tensors_sha256),
        );
        Digest::of(text.as_bytes())
    }
}

/// `[256,128]`.
fn dimensions(shape: &[u64]) -> String {
    let all: Vec<String> = shape.iter().map(u64::to_string).collect();
    format!("[{}]", all.join(","))
}

/// A name that cannot be taken for more than one word: quoted where it has a space, a control character or a quote.
fn word(name: &str) -> String {
    match name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"') {
        true => serde_json::Value::from(name).to_string(),
        false => name.to_owned(),
    }
}
