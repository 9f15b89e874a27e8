//! What can be wrong with the matrices that callers hand in.

use crate::spec::Elem;

/// A matrix that is not what its description says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The bytes are more or fewer than the shape needs.
    #[error("a {rows}x{cols} matrix of {elem:?} has {expected} bytes, not {actual}")]
    Length {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// Type of the elements.
        elem: Elem,
        /// Bytes that shape and type need.
        expected: usize,
        /// Bytes that were given.
        actual: usize,
    },
    /// The number of bytes does not fit a machine word.
    #[error("a {rows}x{cols} matrix of {elem:?} is larger than the address space")]
    Overflow {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// Type of the elements.
        elem: Elem,
    },
    /// A numeric profile that does not exist.
    #[error(
        "no numeric profile `{0}`; there are verl-torch, verl-triton, deepseek, vllm-group, hf, deepgemm and slime"
    )]
    UnknownProfile(String),
}
