//! How one tensor is quantized, as Python sees it.

use patchhost_runtime::hooks::{CastRule, Contract, Edges, Needs, ScaleFormat, Scheme as Inner};
use patchhost_runtime::quantize::edges_name;
use pyo3::prelude::*;

/// What a patch declared about a tensor.
#[pyclass(frozen, eq, module = "patchhost._native")]
#[derive(Clone, PartialEq)]
pub struct Scheme {
    pub inner: Inner,
}

#[pymethods]
impl Scheme {
    #[getter]
    fn block(&self) -> (usize, usize) {
        (self.inner.block_rows, self.inner.block_cols)
    }

    #[getter]
    fn scale_suffix(&self) -> &str {
        &self.inner.scale_suffix
    }

    #[getter]
    fn needs(&self) -> &'static str {
        match self.inner.needs {
            Needs::Amax => "amax",
            Needs::Moments => "moments",
            Needs::Rows => "rows",
        }
    }

    #[getter]
    fn profile(&self) -> &str {
        &self.inner.profile
    }

    #[getter]
    fn rule(&self) -> &str {
        &self.inner.rule
    }

    #[getter]
    fn format(&self) -> &'static str {
        match self.inner.cast.format {
            ScaleFormat::F32 => "f32",
            ScaleFormat::Ue8m0 => "ue8m0",
        }
    }

    #[getter]
    fn cast(&self) -> &'static str {
        match self.inner.cast.cast {
            CastRule::Divide => "divide",
            CastRule::Reciprocal => "reciprocal",
            CastRule::Multiply => "multiply",
        }
    }

    #[getter]
    fn edges(&self) -> &'static str {
        let edges: Edges = self.inner.cast.edges;
        edges_name(edges)
    }

    #[getter]
    fn floor(&self) -> (f32, f32, f32) {
        let floor = self.inner.cast.floor;
        (floor.eps, floor.zero_below, floor.zero_scale)
    }

    #[getter]
    fn contract(&self) -> (&'static str, Option<f32>) {
        match self.inner.cast.contract {
            Contract::Amax => ("amax", None),
            Contract::Pow2 => ("pow2", None),
            Contract::Clip(share) => ("clip", Some(share)),
        }
    }

    #[getter]
    fn round_bf16(&self) -> bool {
        self.inner.cast.round_bf16
    }

    fn __repr__(&self) -> String {
        let (rows, cols) = self.block();
        format!(
            "Scheme({}x{cols}, profile={:?}, format={:?}, cast={:?})",
            rows,
            self.profile(),
            self.format(),
            self.cast()
        )
    }
}
