//! A case as the tensors that are really sent: the checkpoint with the case's edits.

use std::collections::BTreeSet;
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};

use super::cases::{Case, Edit, Poison};
use super::dice::Dice;
use super::error::KitError;
use super::weights::Tensor;

/// In so many requests an update is sent, or a few more.
const PARTS: usize = 4;

/// What is sent.
pub struct Stream {
    /// In the order in which they are sent; a name can stand here twice.
    pub tensors: Vec<Tensor>,
    /// The sender dies after these, in the middle of the next one.
    pub stopped: bool,
}

impl Stream {
    /// A whole checkpoint.
    pub fn whole(tensors: &[Tensor]) -> Self {
        Self { tensors: tensors.to_vec(), stopped: false }
    }

    /// A case of a plan. `held` gives the tensors of a checkpoint by its name.
    pub fn of<'t>(case: &Case, held: &dyn Fn(&str) -> Option<&'t [Tensor]>) -> Result<Self, KitError> {
        let unknown = |name: &str| {
            let what = format!("case {} of the plan", case.id);
            KitError::usage(what, format!("there is no `{name}`"), "make the plan anew")
        };
        let tensors = held(&case.checkpoint).ok_or_else(|| unknown(&case.checkpoint))?;
        let mut stream = Self::whole(tensors);
        for edit in &case.edits {
            stream.edit(edit, held).map_err(|name| unknown(&name))?;
        }
        Ok(stream)
    }

    /// Does one edit; the error is the name that is not there.
    fn edit<'t>(&mut self, edit: &Edit, held: &dyn Fn(&str) -> Option<&'t [Tensor]>) -> Result<(), String> {
        match edit {
            Edit::Drop { name } => {
                let place = self.place(name)?;
                self.tensors.remove(place);
            }
            Edit::Repeat { name, instead_of } => {
                let again = self.tensors[self.place(name)?].clone();
                match instead_of {
                    Some(other) => {
                        let place = self.place(other)?;
                        self.tensors[place] = again;
                    }
                    None => self.tensors.push(again),
                }
            }
            Edit::Truncate { name, shape } => {
                let tensor = self.tensor(name)?;
                let bytes = shape.iter().product::<usize>() * tensor.width();
                tensor.data = Arc::new(tensor.data.iter().take(bytes).copied().collect());
                tensor.shape.clone_from(shape);
            }
            Edit::Reshape { name, shape } => self.tensor(name)?.shape.clone_from(shape),
            Edit::Rename { name, to } => self.tensor(name)?.name.clone_from(to),
            Edit::Poison { name, index, value } => poison(self.tensor(name)?, *index, *value),
            Edit::Shuffle { seed } => Dice::new(*seed, "shuffle").shuffle(&mut self.tensors),
            Edit::Interleave { with, names } => {
                let other = held(with).ok_or_else(|| with.clone())?;
                for name in names {
                    self.tensors.push(other.iter().find(|t| t.name == *name).ok_or_else(|| name.clone())?.clone());
                }
            }
            Edit::Stop { after } => {
                self.tensors.truncate(*after);
                self.stopped = true;
            }
        }
        Ok(())
    }

    fn place(&self, name: &str) -> Result<usize, String> {
        self.tensors.iter().position(|t| t.name == name).ok_or_else(|| name.to_owned())
    }

    fn tensor(&mut self, name: &str) -> Result<&mut Tensor, String> {
        let place = self.place(name)?;
        Ok(&mut self.tensors[place])
    }

    /// The requests: a few tensors each, and never a name twice in one, since a safetensors file cannot have that.
    pub fn parts(&self) -> Vec<&[Tensor]> {
        let most = self.tensors.len().div_ceil(PARTS).max(1);
        let (mut parts, mut start, mut names) = (Vec::new(), 0, BTreeSet::new());
        for (at, tensor) in self.tensors.iter().enumerate() {
            if at - start == most || !names.insert(&tensor.name) {
                parts.push(&self.tensors[start..at]);
                (start, names) = (at, BTreeSet::from([&tensor.name]));
            }
        }
        parts.push(&self.tensors[start..]);
        parts
    }
}

/// Tensors as the bytes of a safetensors file.
pub fn bytes(tensors: &[Tensor]) -> Result<Vec<u8>, KitError> {
    let bug = |e: safetensors::SafeTensorError| {
        KitError::host("tensors of the plan", e.to_string(), "please report this: it is an error of patchhost")
    };
    let mut views = Vec::new();
    for Tensor { name, dtype, shape, data, .. } in tensors {
        views.push((name, TensorView::new(*dtype, shape.clone(), data).map_err(bug)?));
    }
    // transformers refuses a file that does not say which framework it is for.
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize(views, Some(metadata)).map_err(bug)
}

/// Tensors of an element type that has no such value keep it.
fn poison(tensor: &mut Tensor, index: usize, value: Poison) {
    let value = if value == Poison::Nan { f32::NAN } else { f32::INFINITY };
    let bytes = match tensor.dtype {
        Dtype::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::F32 => value.to_le_bytes().to_vec(),
        _ => return,
    };
    let mut data = tensor.data.to_vec();
    let start = index * bytes.len();
    if let Some(place) = data.get_mut(start..start + bytes.len()) {
        place.copy_from_slice(&bytes);
    }
    tensor.data = Arc::new(data);
}
