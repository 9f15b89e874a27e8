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
//! over a [`Team`]. A few rows of x decode the weights in registers (`direct.rs`); more rows are put into tiles, and either each
//! tile decodes a block of weights for itself or all share the block decoded once (`tiles.rs`).

mod direct;
mod lanes;
mod packed;
mod tiles;
#[cfg(any(target_arch = "x86_64", all(target_arch = "aarch64", target_feature = "neon")))]
mod transpose;
mod view;

pub use packed::{Kind, PackedMatrix, ROWS, Scales};
pub use view::{MatrixView, ScaleOrder};

use crate::isa::Isa;
use crate::simd::{Simd, dispatch};
use crate::team::Team;
use lanes::{Enter, UNIT};
use std::cell::RefCell;

/// Multiplications of a task, about: some microseconds. Less is not worth another thread.
const TASK_MACS: usize = 64 * 1024;

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

/// [`multiply`] with the instructions of `isa`. A matrix that was packed for others is packed anew for this call.
///
/// # Panics
/// As [`multiply`].
pub fn multiply_with<P: AsRef<PackedMatrix>>(isa: Isa, team: &Team, products: &mut [Product<'_, P>]) {
    // Taken out, not borrowed: a task that panics leaves nothing behind that is locked.
    let Scratch { mut tiled, pieces } = SCRATCH.take();
    let mut pieces = recycle(pieces);
    let most = direct::most_rows(isa);
    let parts = products.iter().flat_map(|p| p.parts).map(AsRef::as_ref);
    // Nothing outside of tests, and without an allocation then.
    let repacked: Vec<PackedMatrix> = parts.filter(|w| !w.suits(isa)).map(|w| w.packed_for(isa)).collect();
    let mut repacked = repacked.iter();
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
            let w = if w.suits(isa) { w } else { repacked.next().expect("as often as above") };
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
    let w = PackedMatrix::new_for(isa, w, n, k);
    multiply_with(isa, team, &mut [Product { x, x_fp8: None, m, parts: &[&w], bias, out, ldo }]);
}
