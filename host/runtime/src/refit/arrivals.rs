//! The one way in for the tensors of a refit: they arrive whole or in pieces, are compared with what was promised, and
//! become a [`Source`], which can be staged as often as somebody wants to try it.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use super::watch::digests;
use crate::assembly::{Assembly, ChunkHeader, Duplicates};
use crate::checkpoint::{Checkpoint, CheckpointTensor};
use crate::error::{Refusal, Result, RuntimeError};
use crate::words::nearest;

/// What the trainer promised about one tensor.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// Element type in the words of safetensors (`BF16`, `F32`, `F8_E4M3`, …).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<safetensors::tensor::Dtype>,
    /// Dimensions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Vec<usize>>,
    /// SHA-256 of the bytes, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// Everything that the trainer promised to send, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The tensors.
    pub tensors: BTreeMap<String, Promise>,
}

/// How a refit begins.
#[derive(Debug, Clone, Default)]
pub struct Begin {
    /// What the trainer calls these weights (a step, a hash); none: the number of the publish.
    pub version: Option<String>,
    /// The trainer's own step, where it names one: swaps that wait for a step go by it, also in a process that was
    /// started again.
    pub step: Option<u64>,
    /// What will be sent; none: whatever comes, checked against the model alone.
    pub manifest: Option<Manifest>,
    /// What happens when bytes come twice.
    pub duplicates: Duplicates,
    /// Take tensors that come less precise than the model is declared.
    pub allow_narrowing: bool,
}

/// Tensors on their way. Dropping it forgets them; nothing live was touched.
pub struct Arrivals {
    begin: Begin,
    assembly: Assembly,
}

/// Everything that a refit brings, complete. Its bytes are shared with whoever sent them whole, and with every attempt; what
/// lies in files is read anew by each.
pub struct Source {
    checkpoint: Checkpoint,
    begin: Begin,
    /// SHA-256 of each tensor's bytes, in order, once somebody asked.
    sums: OnceLock<Vec<String>>,
}

impl Arrivals {
    /// Nothing yet. All tensors together may take `limit` bytes.
    pub fn new(begin: Begin, limit: usize) -> Self {
        let assembly = Assembly::new(begin.duplicates, limit);
        Self { begin, assembly }
    }

    /// A range of bytes of a tensor. A chunk that is refused changes nothing; others may follow.
    pub fn chunk(&mut self, chunk: &ChunkHeader<'_>, bytes: &[u8]) -> Result<()> {
        self.admits(chunk.name, chunk.dtype, chunk.shape)?;
        self.assembly.chunk(chunk, bytes).map_err(RuntimeError::Refit)
    }

    /// A whole tensor; its bytes are shared, not copied.
    pub fn tensor(&mut self, tensor: &CheckpointTensor) -> Result<()> {
        self.admits(&tensor.name, tensor.stored, &tensor.shape)?;
        self.assembly.tensor(tensor).map_err(RuntimeError::Refit)
    }

    /// All that `take` brings of tensors with these names, or nothing of it.
    pub fn together<'n>(
        &mut self,
        names: impl Iterator<Item = &'n str>,
        take: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let mark = self.assembly.mark(names);
        take(self).inspect_err(|_| self.assembly.back(mark))
    }

    /// All tensors together may take no more than `limit` bytes from now on.
    pub fn at_most(&mut self, limit: usize) {
        self.assembly.at_most(limit);
    }

    /// Whether anything of this tensor arrived.
    pub fn has(&self, name: &str) -> bool {
        self.assembly.has(name)
    }

    /// Bytes that arrived.
    pub fn bytes(&self) -> u64 {
        self.assembly.bytes()
    }

    /// Tensors of which anything arrived.
    pub fn tensors(&self) -> usize {
        self.assembly.len()
    }

    /// Calls the weights by another name than the sender did at the beginning.
    pub fn rename(&mut self, version: String) {
        self.begin.version = Some(version);
    }

    /// Takes tensors that come less precise than the model is declared, whatever the beginning said.
    pub fn allow_narrowing(&mut self) {
        self.begin.allow_narrowing = true;
    }

    /// All has been sent; refused where bytes of a tensor are missing.
    pub fn finish(self) -> Result<Source> {
        let tensors = self.assembly.finish().map_err(RuntimeError::Refit)?;
        Ok(Source { checkpoint: Checkpoint::from_tensors(tensors)?, begin: self.begin, sums: OnceLock::new() })
    }

    /// The same for all tensors of a checkpoint at once; those in files stay there until they are staged.
    pub fn whole(mut self, checkpoint: Checkpoint) -> Result<Source> {
        checkpoint.tensors().try_for_each(|tensor| self.tensor(tensor))?;
        Ok(Source { checkpoint, begin: self.begin, sums: OnceLock::new() })
    }

    fn admits(&self, name: &str, dtype: safetensors::tensor::Dtype, shape: &[usize]) -> Result<()> {
        self.begin.manifest.as_ref().map_or(Ok(()), |manifest| manifest.admits(name, dtype, shape))
    }
}

impl Source {
    /// The tensors as they arrived.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// How they were announced.
    pub fn begin(&self) -> &Begin {
        &self.begin
    }

    /// The same tensors by another name.
    #[must_use]
    pub fn renamed(&self, version: Option<String>) -> Self {
        let begin = Begin { version, ..self.begin.clone() };
        Self { checkpoint: self.checkpoint.clone(), begin, sums: self.sums.clone() }
    }

    /// SHA-256 of each tensor's bytes as they arrived, hex, in the order of their names.
    pub fn sums(&self) -> Result<&[String]> {
        if let Some(sums) = self.sums.get() {
            return Ok(sums);
        }
        let sums = digests(self.checkpoint.tensors())?;
        Ok(self.sums.get_or_init(|| sums))
    }

    /// The same where somebody asked before, so that it costs nothing now.
    pub fn known_sums(&self) -> Option<&[String]> {
        self.sums.get().map(Vec::as_slice)
    }

    /// Everything that was promised came, with the bytes that were promised. Whoever stages it asks this first.
    pub fn check(&self) -> Result<()> {
        let Some(manifest) = &self.begin.manifest else { return Ok(()) };
        let known = manifest.tensors.values().any(|promise| promise.sha256.is_some());
        let sums = if known { self.sums()? } else { &[] };
        let came: BTreeMap<&str, usize> =
            self.checkpoint.tensors().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
        for (name, promise) in &manifest.tensors {
            let shown = crate::words::shown(name);
            let Some(i) = came.get(name.as_str()) else {
                return Err(broken(&shown, "the manifest promises it, and it did not come".to_string()));
            };
            if let (Some(promised), Some(found)) = (&promise.sha256, sums.get(*i))
                && !promised.eq_ignore_ascii_case(found)
            {
                return Err(broken(&shown, format!("its bytes have sha256 {found}, the manifest says {promised}")));
            }
        }
        Ok(())
    }
}

impl Manifest {
    /// Refuses a tensor that was not promised like this.
    pub fn admits(&self, name: &str, dtype: safetensors::tensor::Dtype, shape: &[usize]) -> Result<()> {
        let shown = crate::words::shown(name);
        let Some(promise) = self.tensors.get(name) else {
            let near = nearest(name, self.tensors.keys().map(String::as_str));
            let hint = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            return Err(broken(&shown, format!("the manifest does not name it{hint}")));
        };
        if promise.dtype.is_some_and(|d| d != dtype) {
            return Err(broken(&shown, format!("it came as {dtype:?}, the manifest says {:?}", promise.dtype)));
        }
        match &promise.shape {
            Some(promised) if promised != shape => {
                Err(broken(&shown, format!("its shape is {shape:?}, the manifest says {promised:?}")))
            }
            _ => Ok(()),
        }
    }
}

fn broken(name: &str, why: String) -> RuntimeError {
    let next = "send what the manifest says; nothing was published, the old weights keep serving";
    RuntimeError::Refit(Refusal::new(format!("tensor `{name}`"), why, next))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::bytes::TensorBytes;
    use safetensors::tensor::Dtype;
    use std::sync::Arc;

    fn tensor(name: &str, bytes: &[u8]) -> CheckpointTensor {
        let data = TensorBytes::new(Arc::new(bytes.to_vec()), 0..bytes.len()).unwrap();
        CheckpointTensor::new(name, Dtype::U8, vec![bytes.len()], data)
    }

    fn promising(promises: &[(&str, Option<&str>)]) -> Begin {
        let promise = |sha256: Option<&str>| Promise { sha256: sha256.map(str::to_owned), ..Promise::default() };
        let tensors = promises.iter().map(|(name, sha256)| ((*name).to_owned(), promise(*sha256))).collect();
        Begin { manifest: Some(Manifest { tensors }), ..Begin::default() }
    }

    #[test]
    fn pieces_and_a_whole_checkpoint_are_the_same_source() {
        let mut pieces = Arrivals::new(Begin::default(), 100);
        let header = |offset| ChunkHeader { name: "a", dtype: Dtype::U8, shape: &[4], offset };
        pieces.chunk(&header(2), &[3, 4]).unwrap();
        pieces.chunk(&header(0), &[1, 2]).unwrap();
        pieces.tensor(&tensor("b", &[5])).unwrap();
        assert_eq!((pieces.bytes(), pieces.tensors()), (5, 2));
        pieces.rename("seven".into());
        let pieces = pieces.finish().unwrap();
        let checkpoint = Checkpoint::from_tensors([tensor("b", &[5]), tensor("a", &[1, 2, 3, 4])]).unwrap();
        let whole = Arrivals::new(Begin::default(), 100).whole(checkpoint.clone()).unwrap();
        assert_eq!(pieces.sums().unwrap(), whole.sums().unwrap());
        assert_eq!((pieces.begin().version.as_deref(), whole.begin().version.as_deref()), (Some("seven"), None));
        let again = whole.renamed(Some("eight".into()));
        assert_eq!((again.sums().unwrap(), again.begin().version.as_deref()), (whole.sums().unwrap(), Some("eight")));
        assert!(Arrivals::new(Begin::default(), 4).whole(checkpoint).is_err(), "more than the limit");
    }

    #[test]
    fn promises_are_kept_or_named() {
        let came = || Checkpoint::from_tensors([tensor("a", &[1])]).unwrap();
        let right = "4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a";
        let source = |begin: Begin| Arrivals::new(begin, 100).whole(came());
        source(Begin::default()).unwrap().check().unwrap();
        source(promising(&[("a", Some(&right.to_uppercase()))])).unwrap().check().unwrap();
        for (promises, says) in
            [(&[("a", None), ("b", None)][..], "did not come"), (&[("a", Some("00"))], "the manifest says 00")]
        {
            let error = source(promising(promises)).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let error = source(promising(&[("aa", None)])).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("the manifest does not name it; did you mean `aa`?"), "{error}");
    }
}
