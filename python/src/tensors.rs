//! Memory of Python's tensors. All `unsafe` of this crate that touches it is here.

use patchhost_kernels::cast::dequantize as to_f32;
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::hooks::Elem;
use pyo3::prelude::*;
use std::sync::Arc;

use crate::errors::{Raised, Result, off, on};

/// What Python gives for a tensor: address of the first element, dtype, shape, strides in elements, and what keeps the memory.
pub type RawTuple = (usize, String, Vec<usize>, Vec<isize>, Py<PyAny>);

/// A tensor of Python's, looked at and found sound.
pub struct Raw {
    address: usize,
    pub dtype: String,
    pub shape: Vec<usize>,
    strides: Vec<usize>,
    owner: Arc<Py<PyAny>>,
}

impl Raw {
    /// Refuses what does not fit into memory: negative strides, sizes that overflow, an address that is null.
    pub fn new(name: &str, (address, dtype, shape, strides, owner): RawTuple) -> Result<Self> {
        let bad = |why: String| Raised::tensor(name, why, "give a plain tensor, for example `t.detach().contiguous()`");
        if strides.len() != shape.len() {
            return Err(bad(format!("{} strides for {} dimensions", strides.len(), shape.len())));
        }
        let strides: Option<Vec<usize>> = strides.iter().map(|s| usize::try_from(*s).ok()).collect();
        let strides = strides.ok_or_else(|| bad("it has a negative stride".to_owned()))?;
        let empty = shape.contains(&0);
        let last = shape.iter().zip(&strides).try_fold(0usize, |last, (n, stride)| {
            n.saturating_sub(1).checked_mul(*stride).and_then(|more| last.checked_add(more))
        });
        let fits = last.and_then(|last| last.checked_add(1)).and_then(|n| n.checked_mul(8));
        if shape.iter().try_fold(1usize, |all, n| all.checked_mul(*n)).and_then(|n| n.checked_mul(8)).is_none()
            || fits.is_none_or(|n| n > isize::MAX as usize)
        {
            return Err(bad(format!("its shape {shape:?} with strides {strides:?} is larger than memory")));
        }
        if address == 0 && !empty {
            return Err(bad("it has no memory".to_owned()));
        }
        Ok(Self { address, dtype, shape, strides, owner: Arc::new(owner) })
    }

    /// Elements from row to row and from column to column.
    pub fn matrix_strides(&self) -> (usize, usize) {
        match self.strides[..] {
            [.., row, col] => (row, col),
            [col] => (0, col),
            [] => (0, 0),
        }
    }

    /// Whether elements lie row-major, without holes.
    pub fn is_contiguous(&self) -> bool {
        let mut next = 1;
        for (n, stride) in self.shape.iter().zip(&self.strides).rev() {
            if *n > 1 && *stride != next {
                return false;
            }
            next *= n.max(&1);
        }
        true
    }

    /// All bytes of a contiguous tensor whose elements have `size` bytes.
    pub fn contiguous(&self, name: &str, size: usize) -> Result<TensorBytes> {
        if !self.is_contiguous() {
            let why = format!("its strides {:?} leave holes or turn it", self.strides);
            return Err(Raised::tensor(name, why, "give `t.contiguous()`"));
        }
        let len = self.shape.iter().product::<usize>() * size;
        self.bytes(name, self.address, len)
    }

    /// The `index`-th matrix of the last two dimensions, with everything that lies between its elements.
    pub fn matrix(&self, name: &str, index: usize, size: usize) -> Result<TensorBytes> {
        let (rows, cols) = match self.shape[..] {
            [.., rows, cols] => (rows, cols),
            _ => return Err(Raised::tensor(name, format!("it has {} dimensions", self.shape.len()), "give 2 or 3")),
        };
        if rows == 0 || cols == 0 {
            return self.bytes(name, self.address, 0);
        }
        let (row, col) = self.matrix_strides();
        let outer = if self.strides.len() > 2 { self.strides[self.strides.len() - 3] } else { 0 };
        let len = ((rows - 1) * row + (cols - 1) * col + 1) * size;
        self.bytes(name, self.address + index * outer * size, len)
    }

    fn bytes(&self, name: &str, address: usize, len: usize) -> Result<TensorBytes> {
        let lent = Lent { address, len, _owner: Arc::clone(&self.owner) };
        TensorBytes::new(Arc::new(lent), 0..len)
            .ok_or_else(|| Raised::tensor(name, "its memory is shorter than its shape", "give a plain tensor"))
    }
}

/// Memory of a tensor for as long as the tensor is held here.
struct Lent {
    address: usize,
    len: usize,
    _owner: Arc<Py<PyAny>>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: Python gave address, shape and strides of a tensor that it owns, and the owner is held; `Raw::new` bounds them.
        // That nobody writes to it meanwhile is asked of the caller (`refit.add`, `quantize`), as of every C function that
        // takes a tensor: a write would change bytes that are read, and never a length or a pointer.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.len) }
    }
}

/// Memory of Python that is written: `len` values at `address`.
pub struct Out {
    address: usize,
    len: usize,
}

impl Out {
    /// Python made it as large as it says, and nobody else uses it until the call returns.
    pub fn new(what: &str, address: usize, len: usize) -> Result<Self> {
        if len > 0 && (address == 0 || len > (isize::MAX / 8) as usize) {
            return Err(Raised::usage(what, format!("{len} values at address {address}"), "give memory of that size"));
        }
        Ok(Self { address, len })
    }

    /// As bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        if self.len == 0 {
            return &mut [];
        }
        // SAFETY: as `Out::new` says; u8 has no alignment and takes any bits.
        unsafe { std::slice::from_raw_parts_mut(self.address as *mut u8, self.len) }
    }

    /// As f32.
    pub fn floats(&mut self, what: &str) -> Result<&mut [f32]> {
        if self.len == 0 {
            return Ok(&mut []);
        }
        if !self.address.is_multiple_of(align_of::<f32>()) {
            return Err(Raised::usage(what, "its memory is not aligned to 4 bytes", "give a float32 tensor"));
        }
        // SAFETY: as `Out::new` says, and it is aligned; f32 takes any bits.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.address as *mut f32, self.len) })
    }
}

/// `codes` × `scales`, rounded to `dtype`.
#[pyfunction]
pub fn dequantize(
    py: Python<'_>,
    codes: usize,
    scales: usize,
    rows: usize,
    cols: usize,
    block_rows: usize,
    block_cols: usize,
    dtype: &str,
    out: usize,
) -> PyResult<()> {
    let sizes = || {
        let what = "dequantize";
        if block_rows == 0 || block_cols == 0 {
            return Err(Raised::usage(what, format!("blocks of {block_rows}x{block_cols}"), "give sizes from 1"));
        }
        let n =
            rows.checked_mul(cols).ok_or_else(|| Raised::usage(what, "its shape overflows", "give a real shape"))?;
        let elem = crate::words::elem(what, dtype)?;
        let codes = Out::new(what, codes, n)?;
        let scales = Out::new(what, scales, rows.div_ceil(block_rows) * cols.div_ceil(block_cols))?;
        Ok((elem, codes, scales, Out::new(what, out, n * elem.size())?))
    };
    let (elem, mut codes, mut scales, mut out) = on(py, sizes)?;
    off(py, move || {
        let (codes, scales, out) = (codes.bytes(), scales.floats("scales")?, out.bytes());
        let grid_cols = cols.div_ceil(block_cols);
        // A panel at a time: f32 values of a whole matrix would be four times its codes.
        let mut wide = vec![0.0f32; block_rows.min(rows) * cols];
        for (panel, codes) in codes.chunks(block_rows.saturating_mul(cols).max(1)).enumerate() {
            let wide = &mut wide[..codes.len()];
            let scales = &scales[panel * grid_cols..(panel + 1) * grid_cols];
            to_f32(codes, scales, codes.len() / cols.max(1), cols, block_rows, block_cols, wide);
            let out = &mut out[panel * block_rows * cols * elem.size()..][..codes.len() * elem.size()];
            narrow(wide, elem, out);
        }
        Ok(())
    })
}

/// Values rounded to nearest even.
fn narrow(values: &[f32], elem: Elem, out: &mut [u8]) {
    for (value, out) in values.iter().zip(out.chunks_exact_mut(elem.size())) {
        match elem {
            Elem::F32 => out.copy_from_slice(&value.to_le_bytes()),
            Elem::F16 => out.copy_from_slice(&half::f16::from_f32(*value).to_le_bytes()),
            Elem::Bf16 => out.copy_from_slice(&half::bf16::from_f32(*value).to_le_bytes()),
        }
    }
}
