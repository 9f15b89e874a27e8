//! `out = x * w^T + bias` with weights in f32, bf16, f16 or block FP8, the same bits whatever the machine.
//!
//! Definition of `out[i][j]`. Columns are cut into blocks: those of the scales for FP8, 128 columns for plain floats.
//! The sum of a block starts at +0.0 and takes its columns in order, each by one fused multiply-add of `x[i][c]` and the
//! weight, which is widened exactly. The total starts at +0.0 and takes the blocks in order: for FP8 by one fused
//! multiply-add of the block's sum and its scale, for plain floats by an addition. Then the bias is added. This is the
//! order of block-FP8 GEMMs on GPUs (a sum of code products per block, scaled in f32), and it does not depend on the
//! [`Isa`], on m (a row of a batch equals the row alone) or on the number of threads, which only share out j.
//!
//! For FP8 the sum of a block is in units of 2^-80 and the total in units of 2^-40: x enters as `x * 2^-72 * 2^112`
//! (rounded twice; exact where 2^-54 <= |x| < 2^88) and a code as `decode(q) * 2^-120`. These are powers of two, which
//! change no bit of what a model computes. They let a path choose how it decodes: codes may become subnormal floats
//! ([`crate::simd::Simd::CODE_UNIT`]).
//!
//! Weights are packed once ([`PackedMatrix`]); [`multiply`] then takes any number of products at once and shares them out
//! over a [`Team`]. A few rows of x decode the weights in registers (`direct.rs`); more rows decode a block of weights
//! once and multiply it in register tiles (`tiles.rs`).

mod direct;
mod packed;
mod tiles;

pub use packed::{Kind, PackedMatrix, ROWS, Scales};

use crate::isa::Isa;
use crate::simd::{Kernel, Simd, dispatch, pad_f32};
use crate::source::{Bf16, Element, F16, F32};
use crate::team::Team;
use packed::{Line, QUAD};
use std::cell::RefCell;

/// `2^n`.
const fn pow2(n: i32) -> f32 {
    f32::from_bits(((127 + n) as u32) << 23)
}

/// What the units of FP8 sums are undone with, half for the sum of a block and half for the total.
const UNIT: f32 = pow2(40);

/// x as FP8 products take it: for codes in units of 2^-120, or of `code_unit`.
#[inline(always)]
fn enter<S: Simd>(s: S, x: S::F) -> S::F {
    let x = s.mul(s.mul(x, s.splat(pow2(-72))), s.splat(pow2(112)));
    if S::CODE_UNIT == pow2(-120) { x } else { s.mul(x, s.splat(pow2(-120) / S::CODE_UNIT)) }
}

/// [`enter`] for all of x.
struct Enter<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Enter<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x16, tail) = self.x.as_chunks::<16>();
        let (out16, out_tail) = self.out.as_chunks_mut::<16>();
        for (x, out) in x16.iter().zip(out16) {
            s.store(enter(s, s.load(x)), out);
        }
        let mut lanes = [0.0; 16];
        s.store(enter(s, s.load(&pad_f32(tail))), &mut lanes);
        out_tail.copy_from_slice(&lanes[..tail.len()]);
    }
}

/// Multiplications of a task, about: some microseconds. Less is not worth another thread.
const TASK_MACS: usize = 64 * 1024;

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

/// One product of rows of x with stacked weight matrices: `out[i * ldo + j]` for j over the rows of all parts.
pub struct Product<'a, P> {
    /// `m x k`, row-major.
    pub x: &'a [f32],
    /// What FP8 parts see instead of `x` (quantized activations), where it is not the same.
    pub x_fp8: Option<&'a [f32]>,
    /// Rows of x.
    pub m: usize,
    /// The matrices, each of k columns, one below the other.
    pub parts: &'a [P],
    /// One value per row of all parts.
    pub bias: Option<&'a [f32]>,
    /// At least `(m - 1) * ldo + n` values.
    pub out: &'a mut [f32],
    /// Distance between rows of `out`, at least n.
    pub ldo: usize,
}

impl<'a, P: 'static> Product<'a, P> {
    /// An empty list of products of another lifetime in the memory of this one, so that a caller can keep it.
    pub fn recycle(mut list: Vec<Self>) -> Vec<Product<'static, P>> {
        list.clear();
        // Collecting in place keeps the allocation.
        list.into_iter().map(|_| unreachable!("the list is empty")).collect()
    }
}

impl<P: AsRef<PackedMatrix>> Product<'_, P> {
    fn check(&self) {
        let n: usize = self.parts.iter().map(|p| p.as_ref().n()).sum();
        if self.m == 0 || n == 0 {
            return;
        }
        for p in self.parts {
            assert_eq!(Some(self.x.len()), self.m.checked_mul(p.as_ref().k()), "x is m x k");
        }
        assert!(self.x_fp8.is_none_or(|x| x.len() == self.x.len()), "both forms of x are m x k");
        assert!(self.bias.is_none_or(|bias| bias.len() == n), "one bias per output");
        assert!(fits(self.m, self.ldo, n, self.out.len()), "out holds m rows of n values, ldo apart");
    }
}

/// Whether `m > 0` rows of `n` values, `ldo` apart, lie side by side in `len` values.
fn fits(m: usize, ldo: usize, n: usize, len: usize) -> bool {
    let needed = (m - 1).checked_mul(ldo).and_then(|rows| rows.checked_add(n));
    ldo >= n && needed.is_some_and(|needed| needed <= len)
}

/// One part of one product, with what its tasks need.
#[derive(Clone, Copy)]
struct Piece<'a> {
    x: X<'a>,
    w: &'a PackedMatrix,
    bias: Option<&'a [f32]>,
    /// The first value of the part's columns of the first row. For each row `i < x.m`, `n` of `w` values from
    /// `i * ldo` on lie within a product's `out`, and no other piece has them: parts of one product lie side by side
    /// within `ldo`, and products have slices of their own.
    out: *mut f32,
    ldo: usize,
    /// Groups of sixteen rows per task.
    groups: usize,
    /// The number of its first task.
    first_task: usize,
}

/// The rows of x, in the form that a part needs.
#[derive(Clone, Copy)]
struct X<'a> {
    rows: &'a [f32],
    m: usize,
    /// Whether they are in the order of the tiles: there are too many for `direct`.
    tiled: bool,
}

/// What decides in which form a part needs x.
#[derive(PartialEq)]
struct Key {
    fp8: bool,
    /// For tiles.
    block_cols: Option<usize>,
}

impl Key {
    fn of(w: &PackedMatrix, tiled: bool) -> Self {
        Self { fp8: w.kind() == Kind::Fp8, block_cols: tiled.then_some(w.block_cols()) }
    }
}

// SAFETY: all else is shared references. `out` points into the exclusive slice of a product, which is not used otherwise
// while pieces live, and is written only by `Piece::write`: each task has columns of its own (see `Piece::run`).
unsafe impl Sync for Piece<'_> {}

/// What a call keeps for the next one, so that it need not allocate.
#[derive(Default)]
struct Scratch {
    tiled: Vec<f32>,
    pieces: Vec<Piece<'static>>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Computes all products, their tasks shared out over the team. Uses [`Isa::detect`]. In the steady state it allocates
/// nothing.
///
/// # Panics
/// If a slice does not fit its shape.
pub fn multiply<P: AsRef<PackedMatrix>>(team: &Team, products: &mut [Product<'_, P>]) {
    multiply_with(Isa::detect(), team, products);
}

/// [`multiply`] with the instructions of `isa`.
///
/// # Panics
/// As [`multiply`].
pub fn multiply_with<P: AsRef<PackedMatrix>>(isa: Isa, team: &Team, products: &mut [Product<'_, P>]) {
    // Taken out, not borrowed: a task that panics leaves nothing behind that is locked.
    let Scratch { mut tiled, pieces } = SCRATCH.take();
    let mut pieces = recycle(pieces);
    let most = direct::most_rows(isa);
    let (mut floats, mut tasks) = (0, 0);
    for p in products.iter() {
        p.check();
        // Parts that need x in the same form share it.
        let forms = p.parts.iter().enumerate().filter(|(i, w)| {
            let key = |w: &P| Key::of(w.as_ref(), p.m > most);
            (p.m > most || key(w).fp8) && !p.parts[..*i].iter().any(|before| key(before) == key(w))
        });
        floats += p.x.len() * forms.count();
    }
    if tiled.len() < floats {
        tiled.resize(floats, 0.0);
    }
    let mut free = &mut tiled[..];
    for p in products.iter_mut() {
        let n: usize = p.parts.iter().map(|w| w.as_ref().n()).sum();
        if p.m == 0 || n == 0 {
            continue;
        }
        let (m, ldo, len, base) = (p.m, p.ldo, p.out.len(), p.out.as_mut_ptr());
        let (mut first, begun) = (0, pieces.len());
        for part in p.parts {
            let w = part.as_ref();
            // Again, since `as_ref` is the caller's and may have answered otherwise to `check`: tasks write unchecked.
            assert!(fits(m, ldo, first + w.n(), len), "out holds m rows of n values, ldo apart");
            let key = Key::of(w, m > most);
            let rows = p.x_fp8.filter(|_| key.fp8).unwrap_or(p.x);
            let known = pieces[begun..].iter().find(|before| Key::of(before.w, m > most) == key);
            let x = match known {
                Some(before) => before.x,
                None if m > most || key.fp8 => {
                    let (mine, rest) = std::mem::take(&mut free).split_at_mut(rows.len());
                    free = rest;
                    if m > most {
                        tiles::arrange(isa, team, rows, m, w, mine);
                    } else {
                        dispatch(isa, Enter { x: rows, out: mine });
                    }
                    X { rows: mine, m, tiled: m > most }
                }
                None => X { rows, m, tiled: false },
            };
            let all = w.n().div_ceil(ROWS);
            let step = if m > most { tiles::groups(isa) } else { direct::groups(isa, m) };
            let wanted = TASK_MACS.div_ceil((m * w.k() * ROWS).max(1)).next_multiple_of(step);
            pieces.push(Piece {
                x,
                w,
                bias: p.bias.map(|b| &b[first..first + w.n()]),
                // Within the slice, as was checked above.
                out: base.wrapping_add(first),
                ldo,
                groups: wanted,
                first_task: tasks,
            });
            tasks += all.div_ceil(wanted);
            first += w.n();
        }
    }
    let work = &pieces[..];
    team.run(tasks, &|task| {
        let at = work.partition_point(|p| p.first_task <= task) - 1;
        work[at].run(isa, task - work[at].first_task);
    });
    let pieces = recycle(pieces);
    SCRATCH.set(Scratch { tiled, pieces });
}

/// The memory of an empty list for elements of another lifetime: collecting in place keeps the allocation.
fn recycle<'b>(mut pieces: Vec<Piece<'_>>) -> Vec<Piece<'b>> {
    pieces.clear();
    pieces.into_iter().map(|_| unreachable!("the list is empty")).collect()
}

impl Piece<'_> {
    /// The outputs of one task: whole groups of sixteen columns of `out`, which no other task has.
    fn run(&self, isa: Isa, task: usize) {
        let first = task * self.groups;
        let last = (first + self.groups).min(self.w.n().div_ceil(ROWS));
        if self.x.tiled { tiles::run(isa, self, first..last) } else { direct::run(isa, self, first..last) }
    }

    /// Writes the totals of row i and one group of columns.
    #[inline(always)]
    fn write<S: Simd>(&self, s: S, i: usize, group: usize, total: S::F) {
        let total = if self.w.kind() == Kind::Fp8 { s.mul(total, s.splat(UNIT)) } else { total };
        let (first, n) = (group * ROWS, self.w.n());
        let mut lanes = [0.0; ROWS];
        s.store(total, &mut lanes);
        let width = ROWS.min(n - first);
        if let Some(bias) = self.bias {
            lanes.iter_mut().zip(&bias[first..first + width]).for_each(|(sum, bias)| *sum += bias);
        }
        debug_assert!(i < self.x.m && first < n);
        // SAFETY: row i < m and columns below n lie in the slice of the product (see the field), and only this task has
        // these columns. `lanes` is a local of ROWS >= width values.
        unsafe { std::ptr::copy_nonoverlapping(lanes.as_ptr(), self.out.add(i * self.ldo + first), width) };
    }

    /// What the sum of a block of columns is multiplied by, for the sixteen rows of a group.
    #[inline(always)]
    fn scales<S: Simd>(&self, s: S, group: usize, block: usize) -> S::F {
        let (first, n) = (group * ROWS, self.w.n());
        match self.w.scales() {
            None => s.splat(1.0),
            Some(at) if at.block_rows.is_multiple_of(ROWS) => s.splat(self.w.scale(first, block)),
            Some(_) => {
                let mut lanes = [0.0; ROWS];
                for (r, lane) in lanes.iter_mut().enumerate().take(n - first) {
                    *lane = self.w.scale(first + r, block);
                }
                s.load(&lanes)
            }
        }
    }
}

/// The total with the sum of one more block.
#[inline(always)]
fn add_block<S: Simd>(s: S, kind: Kind, sum: S::F, scale: S::F, total: S::F) -> S::F {
    match kind {
        Kind::Fp8 => s.fma(s.mul(s.by_row(sum), s.splat(UNIT)), scale, total),
        _ => s.add(total, sum),
    }
}

/// How the quads of one kind of weights become lanes.
trait Quad: Copy {
    /// Cache lines of a quad.
    const LINES: usize;
    /// Four columns of sixteen rows.
    fn load<S: Simd>(self, s: S, lines: &[Line]) -> [S::F; QUAD];
}

/// e4m3 codes.
#[derive(Clone, Copy)]
struct Fp8;

impl Quad for Fp8 {
    const LINES: usize = 1;
    #[inline(always)]
    fn load<S: Simd>(self, s: S, lines: &[Line]) -> [S::F; QUAD] {
        s.load_e4m3_quad(&lines[0].0)
    }
}

macro_rules! quad {
    ($kind:ty, $lines:literal) => {
        impl Quad for $kind {
            const LINES: usize = $lines;
            #[inline(always)]
            fn load<S: Simd>(self, s: S, lines: &[Line]) -> [S::F; QUAD] {
                let column = |c: usize| {
                    let byte = c * ROWS * Self::SIZE;
                    &lines[byte / 64].0[byte % 64..][..ROWS * Self::SIZE]
                };
                let [a, b, c, d] = [column(0), column(1), column(2), column(3)];
                [
                    Element::load(self, s, a),
                    Element::load(self, s, b),
                    Element::load(self, s, c),
                    Element::load(self, s, d),
                ]
            }
        }
    };
}
quad!(F32, 4);
quad!(Bf16, 2);
quad!(F16, 2);

/// The same for one product over row-major weights, which are packed for it: for tests and single products. Uses
/// [`Isa::detect`] and [`Team::global`].
///
/// # Panics
/// If a slice does not fit its shape: `x` and the weights exactly, `out` at least `(m - 1) * ldo + n` values,
/// `ldo >= n`, block sizes above 0.
pub fn linear(
    x: &[f32],
    m: usize,
    k: usize,
    w: MatrixView<'_>,
    n: usize,
    bias: Option<&[f32]>,
    out: &mut [f32],
    ldo: usize,
) {
    linear_with(Isa::detect(), Team::global(), x, m, k, w, n, bias, out, ldo);
}

/// [`linear`] with the instructions of `isa` and a team.
///
/// # Panics
/// As [`linear`].
pub fn linear_with(
    isa: Isa,
    team: &Team,
    x: &[f32],
    m: usize,
    k: usize,
    w: MatrixView<'_>,
    n: usize,
    bias: Option<&[f32]>,
    out: &mut [f32],
    ldo: usize,
) {
    let w = PackedMatrix::new(w, n, k);
    multiply_with(isa, team, &mut [Product { x, x_fp8: None, m, parts: &[&w], bias, out, ldo }]);
}

impl AsRef<PackedMatrix> for PackedMatrix {
    fn as_ref(&self) -> &PackedMatrix {
        self
    }
}

/// The inner product of two slices: sixteen lanes start at +0.0; lane l takes the columns `l, l + 16, ...` in this order,
/// each by one fused multiply-add (the last step is padded with zeros); then the tree `l + (l+8)`, +4, +2, +1.
///
/// # Panics
/// If the slices differ in length.
pub fn dot(isa: Isa, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors of one length");
    dispatch(isa, Dot { a, b })
}

struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl Kernel for Dot<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        dot_lanes(s, self.a, self.b)
    }
}

/// [`dot`] inside a kernel.
#[inline(always)]
pub(crate) fn dot_lanes<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let (a16, a_tail) = a.as_chunks::<16>();
    let (b16, b_tail) = b.as_chunks::<16>();
    let mut acc = s.splat(0.0);
    for (a, b) in a16.iter().zip(b16) {
        acc = s.fma(s.load(a), s.load(b), acc);
    }
    if !a_tail.is_empty() {
        acc = s.fma(s.load(&pad_f32(a_tail)), s.load(&pad_f32(b_tail)), acc);
    }
    s.sum(acc)
}

/// Four of [`dot`] with one of the vectors in common.
#[inline(always)]
pub(crate) fn dot_lanes_4<S: Simd>(s: S, a: &[f32], b: [&[f32]; 4]) -> [f32; 4] {
    let (a16, a_tail) = a.as_chunks::<16>();
    let [b0, b1, b2, b3] = b.map(|b| b.as_chunks::<16>().0);
    let mut acc = [s.splat(0.0); 4];
    for ((((a, b0), b1), b2), b3) in a16.iter().zip(b0).zip(b1).zip(b2).zip(b3) {
        let a = s.load(a);
        acc[0] = s.fma(a, s.load(b0), acc[0]);
        acc[1] = s.fma(a, s.load(b1), acc[1]);
        acc[2] = s.fma(a, s.load(b2), acc[2]);
        acc[3] = s.fma(a, s.load(b3), acc[3]);
    }
    if !a_tail.is_empty() {
        let a = s.load(&pad_f32(a_tail));
        for (acc, b) in acc.iter_mut().zip(b) {
            *acc = s.fma(a, s.load(&pad_f32(b.as_chunks::<16>().1)), *acc);
        }
    }
    s.sum4(acc)
}
