//! `patchhost._native`: the Rust half of the Python package. What a user sees is Python (`patchhost/*.py`); here is what
//! must not exist twice: gate, sandbox, proof, kernels, policy, board and ledger are those of the crate `patchhost`.

mod board;
mod errors;
mod make;
mod place;
mod receipt;
mod refit;
mod scheme;
mod set;
mod table;
mod target;
mod tensors;
mod words;

use pyo3::prelude::*;

#[pymodule]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add_class::<scheme::Scheme>()?;
    m.add_class::<set::NativeSet>()?;
    m.add_class::<board::NativeBoard>()?;
    m.add_class::<refit::NativeRefit>()?;
    m.add_function(wrap_pyfunction!(place::start, m)?)?;
    m.add_function(wrap_pyfunction!(place::threads, m)?)?;
    m.add_function(wrap_pyfunction!(place::bundled, m)?)?;
    m.add_function(wrap_pyfunction!(receipt::read_receipt, m)?)?;
    m.add_function(wrap_pyfunction!(receipt::receipt_difference, m)?)?;
    m.add_function(wrap_pyfunction!(tensors::dequantize, m)?)
}
