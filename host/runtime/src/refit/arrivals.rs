//! The one way in for the tensors of a refit: they arrive whole or in pieces, are compared with what was promised, and
//! become a [`Source`], which can be staged as often as somebody wants to try it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use super::names::Names;
use super::partial::Stayed;
use super::watch::digests;
use crate::assembly::{Assembly, ChunkHeader, Duplicates};
use crate::checkpoint::{Checkpoint, CheckpointTensor};
use crate::error::{Refusal, Result, RuntimeError};
use crate::rename::Renames;
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
    /// Whether all tensors come. Where it is false, those that do not come stay as they are; none is yes.
    pub complete: Option<bool>,
    /// What the sender's names become. A manifest has the names that they become; [`Begin::renaming`] sees to it.
    pub renames: Renames,
}

impl Begin {
    /// The same with these renames, for the tensors and for the manifest.
    pub fn renaming(mut self, renames: Renames) -> Result<Self> {
        if let Some(manifest) = &mut self.manifest {
            let mut names = Names::new(renames.clone());
            for (name, promise) in std::mem::take(&mut manifest.tensors) {
                manifest.tensors.insert(names.take(&name)?.into_owned(), promise);
            }
        }
        self.renames = renames;
        Ok(self)
    }

    /// Whether what does not come stays as it is.
    pub fn is_partial(&self) -> bool {
        self.complete == Some(false)
    }
}

/// Tensors on their way. Dropping it forgets them; nothing live was touched.
pub struct Arrivals {
    begin: Begin,
    assembly: Assembly,
    names: Names,
}

/// Everything that a refit brings, complete. Its bytes are shared with whoever sent them whole, and with every attempt; what
/// lies in files is read anew by each.
pub struct Source {
    pub(super) checkpoint: Checkpoint,
    pub(super) begin: Begin,
    /// What a partial update left as it was.
    pub(super) stayed: Option<Arc<Stayed>>,
    /// What is worth saying of how it came.
    pub(super) notes: Vec<String>,
    /// SHA-256 of each tensor's bytes, in order, once somebody asked.
    pub(super) sums: OnceLock<Vec<String>>,
}

impl Arrivals {
    /// Nothing yet. All tensors together may take `limit` bytes.
    pub fn new(begin: Begin, limit: usize) -> Self {
        let assembly = Assembly::new(begin.duplicates, limit);
        let names = Names::new(begin.renames.clone());
        Self { begin, assembly, names }
    }

    /// A range of bytes of a tensor. A chunk that is refused changes nothing; others may follow.
    pub fn chunk(&mut self, chunk: &ChunkHeader<'_>, bytes: &[u8]) -> Result<()> {
        let name = self.names.take(chunk.name)?;
        let chunk = ChunkHeader { name: &name, ..chunk.clone() };
        let taken = self.admits(chunk.name, chunk.dtype, chunk.shape);
        let taken = taken.and_then(|()| self.assembly.chunk(&chunk, bytes).map_err(RuntimeError::Refit));
        self.settled(taken)
    }

    /// A whole tensor; its bytes are shared, not copied.
    pub fn tensor(&mut self, tensor: &CheckpointTensor) -> Result<()> {
        let tensor = match self.names.take(&tensor.name)? {
            Cow::Borrowed(_) => Cow::Borrowed(tensor),
            Cow::Owned(name) => Cow::Owned(CheckpointTensor { name, ..tensor.clone() }),
        };
        let taken = self.admits(&tensor.name, tensor.stored, &tensor.shape);
        let taken = taken.and_then(|()| self.assembly.tensor(&tensor).map_err(RuntimeError::Refit));
        self.settled(taken)
    }

    /// A name of which nothing came is free for another tensor.
    fn settled(&mut self, taken: Result<()>) -> Result<()> {
        taken.inspect_err(|_| self.names.keep(|name| self.assembly.has(name)))
    }

    /// All that `take` brings of tensors with these names, or nothing of it.
    pub fn together<'n>(
        &mut self,
        names: impl Iterator<Item = &'n str>,
        take: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let names: Vec<Cow<'n, str>> = names.map(|name| self.names.look(name)).collect::<Result<_>>()?;
        let mark = self.assembly.mark(names.iter().map(|name| &**name));
        take(self).inspect_err(|_| {
            self.assembly.back(mark);
            self.names.keep(|name| self.assembly.has(name));
        })
    }

    /// All tensors together may take no more than `limit` bytes from now on.
    pub fn at_most(&mut self, limit: usize) {
        self.assembly.at_most(limit);
    }

    /// Whether anything of this tensor arrived.
    pub fn has(&self, name: &str) -> bool {
        self.names.look(name).is_ok_and(|name| self.assembly.has(&name))
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

    /// Says whether all tensors come, whatever the beginning said.
    pub fn complete(&mut self, complete: bool) {
        self.begin.complete = Some(complete);
    }

    /// All has been sent; refused where bytes of a tensor are missing.
    pub fn finish(self) -> Result<Source> {
        let tensors = self.assembly.finish().map_err(RuntimeError::Refit)?;
        let (checkpoint, notes) = (Checkpoint::from_tensors(tensors)?, self.names.notes());
        Ok(Source { checkpoint, begin: self.begin, stayed: None, notes, sums: OnceLock::new() })
    }

    /// The same for all tensors of a checkpoint at once; those in files stay there until they are staged.
    pub fn whole(mut self, checkpoint: Checkpoint) -> Result<Source> {
        checkpoint.tensors().try_for_each(|tensor| self.tensor(tensor))?;
        if !self.names.are_plain() {
            return self.finish();
        }
        Ok(Source { checkpoint, begin: self.begin, stayed: None, notes: Vec::new(), sums: OnceLock::new() })
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
        let (checkpoint, stayed) = (self.checkpoint.clone(), self.stayed.clone());
        Self { checkpoint, begin, stayed, notes: self.notes.clone(), sums: self.sums.clone() }
    }

    /// What a partial update left as it was, where these are its tensors and those that stayed.
    pub fn stayed(&self) -> Option<&Arc<Stayed>> {
        self.stayed.as_ref()
    }

    /// What is worth saying of how it came.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The names that were promised, and those that stayed; none where nothing was promised.
    pub(crate) fn expected(&self) -> Option<Vec<String>> {
        let promised = self.begin.manifest.as_ref()?.tensors.keys().map(String::as_str);
        let stayed = self.stayed.iter().flat_map(|stayed| stayed.all());
        let mut all: Vec<String> = promised.chain(stayed).map(str::to_string).collect();
        all.sort_unstable();
        Some(all)
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
        let stayed = |name: &str| self.stayed.as_ref().is_some_and(|stayed| stayed.has(name));
        let all = self.checkpoint.tensors().enumerate().filter(|(_, t)| !stayed(&t.name));
        let came: BTreeMap<&str, usize> = all.map(|(i, t)| (t.name.as_str(), i)).collect();
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
    use crate::rename::Rename;
    use safetensors::tensor::Dtype;

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
    fn renamed_tensors_are_those_of_the_model() {
        let renames = || Renames::new([Rename::parse("w.=").unwrap(), Rename::parse("x.=").unwrap()]).unwrap();
        let begin = Begin::default().renaming(renames()).unwrap();
        let mut arrivals = Arrivals::new(begin.clone(), 100);
        arrivals.tensor(&tensor("w.a", &[1])).unwrap();
        let both = arrivals.tensor(&tensor("a", &[2])).unwrap_err().to_string();
        assert!(both.contains("the renames make `a` of it, and of `w.a` too"), "{both}");
        // What was taken back never came: another tensor may have its name.
        let again = arrivals.together(["w.b"].into_iter(), |all| {
            all.tensor(&tensor("w.b", &[3]))?;
            all.tensor(&tensor("w.a", &[3]))
        });
        assert!(again.is_err() && !arrivals.has("w.b"));
        arrivals.tensor(&tensor("b", &[4])).unwrap();
        assert!(arrivals.has("w.a") && arrivals.has("b"));
        let source = arrivals.finish().unwrap();
        let names: Vec<&str> = source.checkpoint().tensors().map(|t| t.name.as_str()).collect();
        assert_eq!((names, source.notes()), (vec!["a", "b"], &["rename `x.=` matched no tensor".to_string()][..]));
        let file = Checkpoint::from_tensors([tensor("w.a", &[1]), tensor("b", &[4])]).unwrap();
        assert_eq!(Arrivals::new(begin, 100).whole(file).unwrap().sums().unwrap(), source.sums().unwrap());
        let promised = promising(&[("w.a", None)]).renaming(renames()).unwrap();
        assert!(promised.manifest.unwrap().tensors.contains_key("a"));
        assert!(promising(&[("w.a", None), ("a", None)]).renaming(renames()).is_err());
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
