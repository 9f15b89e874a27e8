//! The tensors that are compared: every one that is loaded, cut into the matrices that are quantized one by one.

use patchhost_runtime::bytes::{TensorBytes, TensorData};
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use patchhost_runtime::error::{Refusal, RuntimeError};
use patchhost_runtime::hooks::{BlockQuant, Consumer, Decision, Elem, LoaderMap, ModelInfo, Role, TensorInfo};
use patchhost_runtime::plan::{Action, Plan};
use patchhost_runtime::refit::{Setup, info, rounded};

use super::class::Class;
use super::error::Result;

/// One checkpoint tensor.
pub struct Unit {
    /// As patches see it.
    pub info: TensorInfo,
    pub class: Class,
    /// Element type; none where it is no float that can be quantized.
    pub elem: Option<Elem>,
    /// Its matrices, in the order of the data. Each has a block grid of its own.
    pub pieces: Vec<Piece>,
    data: TensorData,
    /// The type that a refit rounds its elements to, where that is another.
    to: Option<Elem>,
    /// Matrices in the checkpoint, and the rows and columns of one, where they are stored transposed.
    transposed: Option<(usize, usize, usize)>,
}

/// One matrix of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// First element, after transposing where it is transposed.
    pub offset: usize,
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

impl Unit {
    /// The elements of a piece, row-major. Copied only where the tensor is stored transposed.
    pub fn load(&self, piece: &Piece) -> Result<(TensorBytes, Elem)> {
        let bad = || {
            RuntimeError::Checkpoint(Refusal::new(
                format!("tensor `{}`", self.info.name),
                "it is not a float tensor whose data fits its shape and its type",
                "copy or download the checkpoint again",
            ))
        };
        let elem = self.elem.ok_or_else(bad)?;
        let stored = self.stored(piece, elem.size()).ok_or_else(bad)?.load()?;
        let (rows, to) = (self.rows_of(piece, stored, elem.size()).ok_or_else(bad)?, self.to.unwrap_or(elem));
        Ok((rounded(&rows, elem, to).map_err(|_| bad())?, to))
    }

    /// The stored bytes that a piece is in: itself, or the matrix that it is columns of.
    fn stored(&self, piece: &Piece, size: usize) -> Option<TensorData> {
        let Some((_, rows, cols)) = self.transposed else {
            return self.data.slice(piece.offset * size..(piece.offset + piece.rows * piece.cols) * size);
        };
        let each = rows * cols;
        let matrix = piece.offset / each.max(1);
        self.data.slice(matrix * each * size..(matrix + 1) * each * size)
    }

    fn rows_of(&self, piece: &Piece, stored: TensorBytes, size: usize) -> Option<TensorBytes> {
        let Some((_, stored_rows, stored_cols)) = self.transposed else { return Some(stored) };
        let first = piece.offset % (stored_rows * stored_cols).max(1) / stored_rows.max(1);
        let mut out = Vec::with_capacity(piece.rows * piece.cols * size);
        for row in first..first + piece.rows {
            for col in 0..piece.cols {
                let at = (col * stored_cols + row) * size;
                out.extend_from_slice(stored.get(at..at + size)?);
            }
        }
        let len = out.len();
        TensorBytes::new(std::sync::Arc::new(out), 0..len)
    }
}

/// The tensors of a model, as its refit would load them through `loader`. `checkpoint` has its scales paired.
pub fn of_model(setup: &Setup<'_>, checkpoint: &Checkpoint, loader: Option<&dyn LoaderMap>) -> Result<Vec<Unit>> {
    let plan = Plan::new(setup, checkpoint, loader)?;
    let loaded = checkpoint.tensors().zip(&plan.actions).filter_map(|(tensor, action)| match action {
        Action::Ignore(_) | Action::Elsewhere(_) => None,
        Action::Load { role, dests, transposed } => Some(Unit {
            info: TensorInfo { dtype: setup.loaded_as(tensor, dests), ..info(tensor, *role) },
            class: Class::of(*role),
            elem: tensor.elem(),
            to: tensor.elem().zip(dests.first()).map(|(elem, dest)| setup.stored(dest, elem)),
            pieces: dests.iter().map(|d| Piece { offset: d.offset, rows: d.rows, cols: d.cols }).collect(),
            data: tensor.data.clone(),
            transposed: *transposed,
        }),
    });
    Ok(loaded.collect())
}

impl Unit {
    /// One tensor of an engine that this program does not know: a matrix, or a stack of them. `to`: the type that a refit
    /// rounds its elements to, where that is another.
    pub fn of_tensor(tensor: &CheckpointTensor, role: Role, to: Option<Elem>) -> Self {
        Self { info: info(tensor, role), class: Class::of(role), to, ..of_tensor(tensor) }
    }
}

/// The tensors of a plain file: matrices, and stacks of them.
pub fn of_file(checkpoint: &Checkpoint) -> Vec<Unit> {
    checkpoint.tensors().map(of_tensor).collect()
}

fn of_tensor(tensor: &CheckpointTensor) -> Unit {
    let (count, rows, cols) = match tensor.shape[..] {
        [rows, cols] => (1, rows, cols),
        [count, rows, cols] => (count, rows, cols),
        _ => (0, 0, 0),
    };
    Unit {
        info: info(tensor, Role::Other),
        class: Class::Other,
        elem: tensor.elem(),
        pieces: (0..count).map(|i| Piece { offset: i * rows * cols, rows, cols }).collect(),
        data: tensor.data.clone(),
        to: None,
        transposed: None,
    }
}

/// What a patch decides about each of them, in the words of a refit.
pub fn decide(units: &[Unit], model: &ModelInfo, quant: &dyn BlockQuant) -> Result<Vec<Decision>> {
    decide_for(units, model, &reader(), quant)
}

/// The engine of this program, as patches are told who reads the result.
pub(crate) fn reader() -> Consumer {
    Consumer { engine: "patchhost".into(), version: env!("CARGO_PKG_VERSION").into() }
}

/// The same for another engine that reads the result.
pub(super) fn decide_for(
    units: &[Unit],
    model: &ModelInfo,
    reader: &Consumer,
    quant: &dyn BlockQuant,
) -> Result<Vec<Decision>> {
    let infos: Vec<TensorInfo> = units.iter().map(|u| u.info.clone()).collect();
    Ok(quant.decide(model, reader, &infos).map_err(RuntimeError::from)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use safetensors::tensor::Dtype;
    use std::sync::Arc;

    #[test]
    fn pieces_of_a_transposed_stack() {
        // Two stored matrices [2, 3]; transposed [3, 2]; the second piece is rows 1..3 of the second one.
        let stored: Vec<u8> = (0..12).flat_map(|v| (v as f32).to_le_bytes()).collect();
        let data = TensorBytes::new(Arc::new(stored), 0..48).unwrap();
        let tensor = CheckpointTensor::new("w", Dtype::F32, vec![2, 2, 3], data);
        let unit = Unit { transposed: Some((2, 2, 3)), ..of_tensor(&tensor) };
        let read = |piece: Piece| -> Vec<f32> {
            let (bytes, _) = unit.load(&piece).unwrap();
            bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        assert_eq!(read(Piece { offset: 0, rows: 1, cols: 2 }), [0.0, 3.0]);
        assert_eq!(read(Piece { offset: 6 + 2, rows: 2, cols: 2 }), [7.0, 10.0, 8.0, 11.0]);
        assert!(unit.load(&Piece { offset: 12, rows: 1, cols: 2 }).is_err());
    }
}
