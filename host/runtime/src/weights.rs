//! Published weights: immutable once made, shared by `Arc`. A refit makes a new set; requests that hold the old one
//! keep it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use half::{bf16, f16};
use patchhost_kernels::linear::{Kind, PackedMatrix, ROWS, ScaleOrder, Scales};
use patchhost_kernels::pages::Buffer;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::absorbed::Absorbed;
use crate::activation::Activation;
use crate::hooks::{Dtype, Elem, LayoutPass};
use crate::layout;
use crate::pace::breathe;
use crate::refit::Origin;
use crate::registry::{ParamId, Registry};
use crate::words::hex;

/// The data of one part: row-major while it is made, packed for the kernels once it is published.
#[derive(Debug, Clone)]
pub enum Matrix {
    /// As in the checkpoint.
    F32(Vec<f32>),
    /// bf16 bits.
    Bf16(Vec<u16>),
    /// f16 bits.
    F16(Vec<u16>),
    /// Block FP8.
    Fp8 {
        /// e4m3fn codes.
        q: Buffer<u8>,
        /// Stored scales (multipliers), one per block of the grid.
        scales: Vec<f32>,
        /// How the scales lie.
        order: ScaleOrder,
        /// Rows of a block.
        block_rows: usize,
        /// Columns of a block.
        block_cols: usize,
    },
    /// Any of these in the order in which products read it; a permutation of the bytes.
    Packed(PackedMatrix),
}

impl Matrix {
    /// Little-endian bytes of a tensor as they are.
    pub fn copied(elem: Elem, bytes: &[u8]) -> Self {
        fn all<T: Copy + Default + Send, const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> T + Sync) -> Vec<T> {
            const PIECE: usize = 1 << 16;
            let values = bytes.as_chunks::<N>().0;
            let mut out = vec![T::default(); values.len()];
            out.par_chunks_mut(PIECE).zip(values.par_chunks(PIECE)).for_each(|(out, values)| {
                for (out, bytes) in out.iter_mut().zip(values) {
                    *out = value(*bytes);
                }
            });
            out
        }
        match elem {
            Elem::F32 => Matrix::F32(all(bytes, f32::from_le_bytes)),
            Elem::Bf16 => Matrix::Bf16(all(bytes, u16::from_le_bytes)),
            Elem::F16 => Matrix::F16(all(bytes, u16::from_le_bytes)),
        }
    }

    /// Element type and row-major bytes of the data; none if it is packed.
    pub(crate) fn plain(&self) -> Option<(Kind, &[u8])> {
        match self {
            Matrix::F32(data) => Some((Kind::F32, patchhost_kernels::bytes_of_f32(data))),
            Matrix::Bf16(data) => Some((Kind::Bf16, patchhost_kernels::bytes_of_u16(data))),
            Matrix::F16(data) => Some((Kind::F16, patchhost_kernels::bytes_of_u16(data))),
            Matrix::Fp8 { q, .. } => Some((Kind::Fp8, q)),
            Matrix::Packed(_) => None,
        }
    }

    /// Packed for the kernels.
    pub fn packed(self, rows: usize, cols: usize) -> Self {
        let Some((kind, bytes)) = self.plain() else { return self };
        let scales = match &self {
            Matrix::Fp8 { scales, order, block_rows, block_cols, .. } => {
                let (values, order) = (scales.clone(), *order);
                Some(Scales { values, order, block_rows: *block_rows, block_cols: *block_cols })
            }
            _ => None,
        };
        let mut packed = PackedMatrix::zeroed(kind, rows, cols, scales);
        packed.fill(bytes, breathe);
        Matrix::Packed(packed)
    }

    /// Row-major again, bit for bit what was packed.
    pub fn unpacked(&self) -> Self {
        let Matrix::Packed(p) = self else { return self.clone() };
        let mut bytes = Vec::new();
        p.unpack_rows(0, p.n(), &mut bytes);
        let u16s = |bytes: &[u8]| bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
        match (p.kind(), p.scales()) {
            (Kind::F32, _) => Matrix::F32(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            (Kind::F16, _) => Matrix::F16(u16s(&bytes)),
            (Kind::Fp8, Some(s)) => Matrix::Fp8 {
                q: bytes.into(),
                scales: s.values.clone(),
                order: s.order,
                block_rows: s.block_rows,
                block_cols: s.block_cols,
            },
            (Kind::Bf16 | Kind::Fp8, _) => Matrix::Bf16(u16s(&bytes)),
        }
    }

    /// Whether it is block FP8.
    pub fn is_fp8(&self) -> bool {
        match self {
            Matrix::Fp8 { .. } => true,
            Matrix::Packed(p) => p.kind() == Kind::Fp8,
            Matrix::F32(_) | Matrix::Bf16(_) | Matrix::F16(_) => false,
        }
    }

    /// Bytes of data, scales included.
    pub fn bytes(&self) -> usize {
        match self {
            Matrix::F32(d) => d.len() * 4,
            Matrix::Bf16(d) | Matrix::F16(d) => d.len() * 2,
            Matrix::Fp8 { q, scales, .. } => q.len() + scales.len() * 4,
            Matrix::Packed(p) => p.bytes(),
        }
    }

    /// One row, widened to f32.
    pub fn row(&self, row: usize, cols: usize, out: &mut [f32]) {
        let range = row * cols..(row + 1) * cols;
        match self {
            Matrix::F32(d) => out.copy_from_slice(&d[range]),
            Matrix::Bf16(d) => out.iter_mut().zip(&d[range]).for_each(|(o, b)| *o = bf16::from_bits(*b).to_f32()),
            Matrix::F16(d) => out.iter_mut().zip(&d[range]).for_each(|(o, b)| *o = f16::from_bits(*b).to_f32()),
            Matrix::Fp8 { q, scales, order, block_rows, block_cols } => {
                let (down, across) = order.strides(cols.div_ceil(*block_cols));
                for (c, (o, b)) in out.iter_mut().zip(&q[range]).enumerate() {
                    let scale = scales[row / block_rows * down + c / block_cols * across];
                    *o = patchhost_kernels::e4m3::decode(*b) * scale;
                }
            }
            Matrix::Packed(p) => p.row(row, out),
        }
    }

    /// Element type as it is stored.
    pub fn dtype(&self) -> Dtype {
        match self {
            Matrix::F32(_) => Dtype::F32,
            Matrix::Bf16(_) => Dtype::Bf16,
            Matrix::F16(_) => Dtype::F16,
            Matrix::Fp8 { .. } => Dtype::F8E4m3,
            Matrix::Packed(p) => match p.kind() {
                Kind::F32 => Dtype::F32,
                Kind::Bf16 => Dtype::Bf16,
                Kind::F16 => Dtype::F16,
                Kind::Fp8 => Dtype::F8E4m3,
            },
        }
    }

    /// Feeds every stored byte to a digest, little endian: the data row after row, then the scales as they lie.
    fn hash(&self, hasher: &mut Sha256) {
        fn f32s(hasher: &mut Sha256, values: &[f32]) {
            for chunk in values.chunks(1 << 14) {
                hasher.update(chunk.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
            }
        }
        match self {
            Matrix::F32(d) => f32s(hasher, d),
            Matrix::Bf16(d) | Matrix::F16(d) => {
                for chunk in d.chunks(1 << 15) {
                    hasher.update(chunk.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
                }
            }
            Matrix::Fp8 { q, scales, .. } => {
                hasher.update(&q[..]);
                f32s(hasher, scales);
            }
            Matrix::Packed(p) => {
                let mut rows = Vec::new();
                for first in (0..p.n()).step_by(ROWS) {
                    rows.clear();
                    p.unpack_rows(first, ROWS.min(p.n() - first), &mut rows);
                    hasher.update(&rows);
                }
                if let Some(s) = p.scales() {
                    f32s(hasher, &s.values);
                }
            }
        }
    }

    /// Whether every stored bit is the same, layout of the scales included; whether it is packed makes no difference.
    pub fn bit_equal(&self, other: &Self) -> bool {
        match (self, other) {
            (Matrix::F32(a), Matrix::F32(b)) => same_bits(a, b),
            (Matrix::Bf16(a), Matrix::Bf16(b)) | (Matrix::F16(a), Matrix::F16(b)) => a == b,
            (
                Matrix::Fp8 { q, scales, order, block_rows, block_cols },
                Matrix::Fp8 { q: q2, scales: s2, order: o2, block_rows: r2, block_cols: c2 },
            ) => q == q2 && same_bits(scales, s2) && order == o2 && block_rows == r2 && block_cols == c2,
            (Matrix::Packed(a), Matrix::Packed(b)) => a.bit_equal(b),
            (Matrix::Packed(_), other) => self.unpacked().bit_equal(other),
            (_, Matrix::Packed(_)) => other.bit_equal(self),
            _ => false,
        }
    }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.to_bits() == y.to_bits())
}

/// One part of a runtime tensor.
#[derive(Debug, Clone)]
pub struct Part {
    /// Rows.
    pub rows: usize,
    /// Columns; 1 for vectors.
    pub cols: usize,
    /// The data.
    pub matrix: Matrix,
}

impl AsRef<PackedMatrix> for Part {
    /// # Panics
    /// If it is not published, or is read by rows and never multiplied ([`Registry::is_packed`]).
    fn as_ref(&self) -> &PackedMatrix {
        match &self.matrix {
            Matrix::Packed(p) => p,
            other => unreachable!("a {:?} matrix that is not packed was multiplied", other.dtype()),
        }
    }
}

/// A whole model's weights, all of one refit.
pub struct WeightSet {
    id: u64,
    version: u64,
    label: String,
    params: Vec<Vec<Part>>,
    /// The layout passes that each runtime tensor went through, in order.
    passes: Vec<Vec<LayoutPass>>,
    /// Vectors (norms, biases) in f32, parts concatenated; `None` for matrices.
    vectors: Vec<Option<Vec<f32>>>,
    /// What products read instead of the `kv_b_proj` of latent layers.
    absorbed: HashMap<ParamId, Absorbed>,
    activation: Arc<Activation>,
    /// The experts that are held, where it is not all of them.
    local_experts: Option<Range<usize>>,
    /// Token ids that are never sampled: ascending, disjoint.
    masked: Vec<Range<u32>>,
    origin: Origin,
}

/// Everything that makes a set of weights.
pub(crate) struct Ingredients {
    pub(crate) version: u64,
    pub(crate) label: String,
    /// Parts in the layout of the checkpoint.
    pub(crate) params: Vec<Vec<Part>>,
    pub(crate) passes: Vec<Vec<LayoutPass>>,
    pub(crate) activation: Activation,
    pub(crate) local_experts: Option<Range<usize>>,
    pub(crate) masked: Vec<Range<u32>>,
    pub(crate) origin: Origin,
}

/// Digests of one runtime tensor.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ParamDigest {
    /// Name as in vLLM.
    pub name: String,
    /// Stored element type; that of the first part.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Its layout passes.
    pub passes: Vec<LayoutPass>,
    /// SHA-256 of its parts (data, then scales) in the checkpoint's layout: what reading back gives.
    pub sha256_checkpoint: String,
    /// The same in the layout of the runtime: what lies in memory.
    pub sha256_runtime: String,
}

impl WeightSet {
    pub(crate) fn new(registry: &Registry, made: Ingredients) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let Ingredients { version, label, mut params, passes, activation, local_experts, masked, origin } = made;
        let mut vectors = Vec::with_capacity(params.len());
        for (decl, parts) in registry.params().iter().zip(&params) {
            vectors.push(match decl.cols {
                Some(_) => None,
                None => {
                    let mut all = Vec::new();
                    for part in parts {
                        let mut values = vec![0.0; part.rows];
                        part.matrix.row(0, part.rows, &mut values);
                        let offset = if decl.plus_one { 1.0 } else { 0.0 };
                        all.extend(values.into_iter().map(|v| v + offset));
                    }
                    Some(all)
                }
            });
        }
        for (passes, parts) in passes.iter().zip(&mut params) {
            layout::apply(passes, parts);
        }
        let absorbed = Absorbed::all(registry, &params);
        let params = pack(registry, params);
        let id = IDS.fetch_add(1, Ordering::Relaxed);
        let activation = Arc::new(activation);
        Self { id, version, label, params, passes, vectors, absorbed, activation, local_experts, masked, origin }
    }

    /// Unlike any other set of this process: caches remember it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Counts publishes, from 1.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What the trainer calls these weights; the number of the publish where it said nothing.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Digest of the patch set that made these weights; empty where none was named.
    pub fn patches(&self) -> &str {
        &self.origin.patches
    }

    /// Token ids that are never sampled with these weights: ascending, disjoint ranges.
    pub fn masked(&self) -> &[Range<u32>] {
        &self.masked
    }

    /// The parts of a runtime tensor as they lie in memory: of each expert, in the order of the declaration unless
    /// [`WeightSet::swapped`]; packed if products read them.
    pub fn parts(&self, param: ParamId) -> &[Part] {
        &self.params[param]
    }

    /// The layout passes that a runtime tensor went through.
    pub fn passes(&self, param: ParamId) -> &[LayoutPass] {
        &self.passes[param]
    }

    /// Whether up comes before gate in the experts of a `w13_weight`.
    pub fn swapped(&self, param: ParamId) -> bool {
        self.passes[param].contains(&LayoutPass::SwapW13)
    }

    /// The same, row-major.
    pub fn plain_parts(&self, param: ParamId) -> Vec<Part> {
        let plain = |p: &Part| Part { rows: p.rows, cols: p.cols, matrix: p.matrix.unpacked() };
        self.params[param].iter().map(plain).collect()
    }

    /// The parts of a runtime tensor in the checkpoint's layout, row-major.
    pub fn checkpoint_parts(&self, param: ParamId) -> Vec<Part> {
        let mut parts = self.plain_parts(param);
        layout::undo(&self.passes[param], &mut parts);
        parts
    }

    /// Digests of every runtime tensor, in the order of the registry.
    pub fn digests(&self, registry: &Registry) -> Vec<ParamDigest> {
        let of = |parts: &[Part]| {
            let mut hasher = Sha256::new();
            parts.iter().for_each(|p| p.matrix.hash(&mut hasher));
            hex(&hasher.finalize())
        };
        (0..self.params.len())
            .into_par_iter()
            .map(|param| {
                let decl = &registry.params()[param];
                let runtime = of(&self.params[param]);
                ParamDigest {
                    name: decl.name.clone(),
                    dtype: self.params[param].first().map_or(Dtype::Other, |p| p.matrix.dtype()),
                    shape: decl.shape(),
                    passes: self.passes[param].clone(),
                    sha256_checkpoint: match self.passes[param].is_empty() {
                        true => runtime.clone(),
                        false => of(&self.checkpoint_parts(param)),
                    },
                    sha256_runtime: runtime,
                }
            })
            .collect()
    }

    /// One digest of all weights as they lie in memory.
    pub fn digest(&self, registry: &Registry) -> String {
        Self::digest_of(&self.digests(registry))
    }

    /// The same, where the digests of all runtime tensors are there already.
    pub fn digest_of(digests: &[ParamDigest]) -> String {
        let mut hasher = Sha256::new();
        for d in digests {
            hasher.update(d.name.as_bytes());
            hasher.update([0]);
            hasher.update(d.sha256_runtime.as_bytes());
        }
        hex(&hasher.finalize())
    }

    /// The experts that are held, where it is not all of them (expert parallelism).
    pub fn local_experts(&self) -> Option<Range<usize>> {
        self.local_experts.clone()
    }

    /// A vector (norm, bias) in f32.
    pub(crate) fn vector(&self, param: ParamId) -> &[f32] {
        self.vectors[param].as_deref().unwrap_or_else(|| unreachable!("a matrix was used as a vector"))
    }

    /// What was derived from the `kv_b_proj` of a latent layer.
    pub(crate) fn absorbed(&self, param: ParamId) -> &Absorbed {
        self.absorbed.get(&param).unwrap_or_else(|| unreachable!("it was derived when the weights were published"))
    }

    /// How activations are treated before an FP8 matrix.
    pub fn activation(&self) -> &Activation {
        &self.activation
    }

    /// Bytes of all weights, without what is derived from them for latent attention.
    pub fn bytes(&self) -> usize {
        self.params.iter().flatten().map(|p| p.matrix.bytes()).sum()
    }

    /// Gives them the version and the name of others that they stand beside, as a canary does.
    pub fn relabel(&mut self, version: u64, label: &str) {
        self.version = version;
        self.label = label.to_string();
    }

    /// Whether a runtime tensor differs from `other`'s in any bit or in its layout.
    pub fn differs(&self, other: &Self, param: ParamId) -> bool {
        let (a, b) = (&self.params[param], &other.params[param]);
        let same = a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.matrix.bit_equal(&y.matrix));
        !same || self.passes[param] != other.passes[param]
    }

    /// The first runtime tensor that differs from `other` in any bit or in its layout, with its part.
    pub fn first_difference(&self, other: &Self) -> Option<(ParamId, usize)> {
        for (id, (a, b)) in self.params.iter().zip(&other.params).enumerate() {
            if a.len() != b.len() {
                return Some((id, a.len().min(b.len())));
            }
            if self.passes[id] != other.passes[id] {
                return Some((id, 0));
            }
            if let Some(part) = a.iter().zip(b).position(|(x, y)| !x.matrix.bit_equal(&y.matrix)) {
                return Some((id, part));
            }
        }
        None
    }
}

/// Packs every matrix that is multiplied, on all threads; each row-major one is freed as soon as it is packed.
fn pack(registry: &Registry, params: Vec<Vec<Part>>) -> Vec<Vec<Part>> {
    let one = |(param, parts): (usize, Vec<Part>)| match registry.is_packed(param) {
        false => parts,
        true => {
            let packed = |Part { rows, cols, matrix }| Part { rows, cols, matrix: Matrix::packed(matrix, rows, cols) };
            parts.into_par_iter().map(packed).collect()
        }
    };
    params.into_par_iter().enumerate().map(one).collect()
}
