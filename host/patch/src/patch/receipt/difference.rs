//! How two receipts differ, in lines for people.

use std::collections::BTreeMap;

use super::{Handed, Receipt, TensorReceipt};
use crate::base::{Digest, text};

/// Longest name in a line.
const NAME_BYTES: usize = 300;

impl Receipt {
    /// What of the weights and of their making differs from `other`, one line for each difference; none: they agree. The
    /// number of the refit, the step, the version, the manifest and the time may differ: they say when, not what.
    pub fn difference(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.patch_set != other.patch_set {
            let (a, b) = (self.patch_set, other.patch_set);
            lines.push(format!("the patches differ: {a} made the first, {b} the second"));
        }
        match (&self.tensors, &other.tensors) {
            (Some(a), Some(b)) => lines.extend(tensors(a, b)),
            _ => {
                lines.extend(self.counted(other));
                lines.extend(self.rooted(other));
            }
        }
        lines
    }

    /// Where one of them has no list of tensors.
    fn rooted(&self, other: &Self) -> Vec<String> {
        let lacks = |which: &str| {
            vec![format!("the bytes cannot be compared: {which} digests; ask for them: board.refit(..., digest=True)")]
        };
        let (a, b) = match (self.root_after, other.root_after) {
            (Some(a), Some(b)) => (a, b),
            (None, None) => return lacks("neither of the two has"),
            (None, _) => return lacks("the first has no"),
            (_, None) => return lacks("the second has no"),
        };
        let mut lines = Vec::new();
        if let (Some(a), Some(b)) = (self.root_before, other.root_before)
            && a != b
        {
            lines.push(format!("other tensors came: root_before is {a} and {b}"));
        }
        if a != b {
            lines.push(format!("other tensors were handed on: root_after is {a} and {b}"));
        }
        lines
    }

    fn counted(&self, other: &Self) -> Vec<String> {
        let (a, b) = (&self.counts, &other.counts);
        let pairs = [
            ("tensors", a.tensors, b.tensors),
            ("quantized", a.quantized, b.quantized),
            ("kept", a.kept, b.kept),
            ("elements", a.elements, b.elements),
            ("blocks_proved", a.blocks_proved, b.blocks_proved),
            ("saturated", a.saturated, b.saturated),
            ("flushed", a.flushed, b.flushed),
            ("non_finite", a.non_finite, b.non_finite),
            ("bytes_before", a.bytes_before, b.bytes_before),
            ("bytes_after", a.bytes_after, b.bytes_after),
        ];
        let differ = pairs.into_iter().filter(|(_, a, b)| a != b);
        differ.map(|(name, a, b)| format!("the count `{name}` is {a} and {b}")).collect()
    }
}

/// One line for each tensor that differs, in the order of names.
fn tensors(a: &[TensorReceipt], b: &[TensorReceipt]) -> Vec<String> {
    let mut pairs: BTreeMap<&str, (Option<&TensorReceipt>, Option<&TensorReceipt>)> = BTreeMap::new();
    a.iter().for_each(|t| pairs.entry(&t.name).or_default().0 = Some(t));
    b.iter().for_each(|t| pairs.entry(&t.name).or_default().1 = Some(t));
    let line = |(name, pair)| {
        let how = match pair {
            (Some(a), Some(b)) => tensor(a, b)?,
            (Some(_), None) => "it is only in the first".to_owned(),
            _ => "it is only in the second".to_owned(),
        };
        Some(format!("tensor `{}`: {how}", text::clean(name, NAME_BYTES)))
    };
    pairs.into_iter().filter_map(line).collect()
}

fn tensor(a: &TensorReceipt, b: &TensorReceipt) -> Option<String> {
    let mut parts = Vec::new();
    let form = |dtype: &str, shape: &[u64]| format!("{} {shape:?}", text::clean(dtype, 40));
    if (&a.dtype, &a.shape) != (&b.dtype, &b.shape) {
        parts.push(format!("it came as {} and as {}", form(&a.dtype, &a.shape), form(&b.dtype, &b.shape)));
    }
    if a.before != b.before {
        parts.push(format!("other bytes came ({})", both(&a.before, &b.before)));
    }
    if a.kept != b.kept {
        let (keeps, quantizes) = if a.kept { ("first", "second") } else { ("second", "first") };
        parts.push(format!("the {keeps} keeps it, the {quantizes} quantizes it"));
    } else {
        parts.extend(handed(a, b, form));
    }
    for (what, a, b) in [("blocks were proved", a.blocks, b.blocks), ("values were clipped", a.saturated, b.saturated)]
    {
        if a != b {
            parts.push(format!("{a} and {b} {what}"));
        }
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// How what was handed on differs.
fn handed(a: &TensorReceipt, b: &TensorReceipt, form: impl Fn(&str, &[u64]) -> String) -> Vec<String> {
    let mut pairs: BTreeMap<&str, (Option<&Handed>, Option<&Handed>)> = BTreeMap::new();
    a.after.iter().for_each(|h| pairs.entry(&h.name).or_default().0 = Some(h));
    b.after.iter().for_each(|h| pairs.entry(&h.name).or_default().1 = Some(h));
    let same = if a.before == b.before { " although the same bytes came" } else { "" };
    let mut parts = Vec::new();
    for (name, pair) in pairs {
        let name = text::clean(name, NAME_BYTES);
        match pair {
            (Some(a), Some(b)) if (&a.dtype, &a.shape) != (&b.dtype, &b.shape) => parts.push(format!(
                "`{name}` was handed on as {} and as {}",
                form(&a.dtype, &a.shape),
                form(&b.dtype, &b.shape)
            )),
            (Some(a), Some(b)) if a.sha256 != b.sha256 => {
                parts.push(format!("other bytes were handed on as `{name}`{same} ({})", both(&a.sha256, &b.sha256)));
            }
            (Some(_), Some(_)) => {}
            (Some(_), None) => parts.push(format!("only the first hands on `{name}`")),
            _ => parts.push(format!("only the second hands on `{name}`")),
        }
    }
    parts
}

fn both(a: &Digest, b: &Digest) -> String {
    format!("sha256 {}… and {}…", a.short(), b.short())
}
