//! Receipts of refits: read and compared by the code of the program.

use patchhost::patch::Receipt;
use pyo3::prelude::*;

use crate::errors::{Raised, Result, off};

/// Reads a receipt, and refuses one that was changed. Gives it as JSON without white space.
#[pyfunction]
pub fn read_receipt(py: Python<'_>, json: &str, what: &str) -> PyResult<String> {
    off(py, || text(&Receipt::parse(json, what)?))
}

/// How two receipts differ, in lines.
#[pyfunction]
pub fn receipt_difference(py: Python<'_>, first: &str, second: &str) -> PyResult<Vec<String>> {
    off(py, || Ok(read(first, "the first receipt")?.difference(&read(second, "the second receipt")?)))
}

fn read(json: &str, what: &str) -> Result<Receipt> {
    Ok(Receipt::parse(json, what)?)
}

fn text(receipt: &Receipt) -> Result<String> {
    serde_json::to_string(receipt)
        .map_err(|e| Raised::new("internal", "internal: a receipt", e.to_string(), "please report this"))
}
