//! Weight matrices as checkpoints have them: row-major.

/// A weight matrix `n x k`, row-major, as checkpoints have it.
#[derive(Debug, Clone, Copy)]
pub enum MatrixView<'a> {
    /// IEEE binary32.
    F32 {
        /// `n * k` values.
        data: &'a [f32],
    },
    /// bfloat16.
    Bf16 {
        /// `n * k` bit patterns.
        data: &'a [u16],
    },
    /// IEEE binary16.
    F16 {
        /// `n * k` bit patterns.
        data: &'a [u16],
    },
    /// e4m3 codes with one f32 scale per block. The codes must be free of NaN
    /// ([`crate::e4m3::contains_nan_code`]): the vector paths take 0x7f and 0xff for ±480.
    Fp8Block {
        /// `n * k` codes.
        q: &'a [u8],
        /// One scale per block of the `ceil(n / block_rows) x ceil(k / block_cols)` grid.
        scales: &'a [f32],
        /// How the scales lie.
        order: ScaleOrder,
        /// Rows of a block.
        block_rows: usize,
        /// Columns of a block.
        block_cols: usize,
    },
}

/// How the scales of a block grid lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScaleOrder {
    /// Row after row, without gaps.
    #[default]
    RowMajor,
    /// Column after column, each of `stride` values, of which the grid's rows come first: the layout that DeepGEMM's TMA
    /// loads take.
    ColMajor {
        /// Values of a column, padding included; at least the rows of the grid.
        stride: usize,
    },
}

impl ScaleOrder {
    /// Column-major with columns padded to a multiple of 16 bytes (4 values), for a grid of `rows`.
    pub fn aligned(rows: usize) -> Self {
        ScaleOrder::ColMajor { stride: rows.next_multiple_of(4) }
    }

    /// Values that a grid takes, padding included.
    pub fn len(self, rows: usize, cols: usize) -> usize {
        match self {
            ScaleOrder::RowMajor => rows * cols,
            ScaleOrder::ColMajor { stride } => stride * cols,
        }
    }

    /// Distance in values from one row to the next, and from one column to the next.
    pub fn strides(self, cols: usize) -> (usize, usize) {
        match self {
            ScaleOrder::RowMajor => (cols, 1),
            ScaleOrder::ColMajor { stride } => (1, stride),
        }
    }
}
