//! Products summed in f64: what the order of the sums in [`patchhost_kernels::linear::multiply`] is worth. Slow, for measuring only.

use patchhost_kernels::linear::{Product, multiply};
use rayon::prelude::*;

use super::Pass;
use crate::weights::Part;

impl Pass<'_, '_> {
    /// The products, as this pass adds them up.
    pub(super) fn multiply(&self, products: &mut [Product<'_, Part>]) {
        if self.exact {
            products.iter_mut().for_each(in_f64);
        } else {
            multiply(self.team, products);
        }
    }
}

/// One product, each sum in f64 and rounded once.
fn in_f64(product: &mut Product<'_, Part>) {
    let mut first = 0;
    for part in product.parts {
        let x = product.x_fp8.filter(|_| part.matrix.is_fp8()).unwrap_or(product.x);
        let column = |weights: &mut Vec<f32>, row: usize| -> Vec<f64> {
            part.matrix.row(row, part.cols, weights);
            x.chunks_exact(part.cols).map(|x| dot(x, weights)).collect()
        };
        let columns: Vec<Vec<f64>> = (0..part.rows).into_par_iter().map_init(|| vec![0.0; part.cols], column).collect();
        for (row, column) in columns.iter().enumerate() {
            let at = first + row;
            let bias = f64::from(product.bias.map_or(0.0, |b| b[at]));
            for (i, sum) in column.iter().enumerate() {
                product.out[i * product.ldo + at] = (sum + bias) as f32;
            }
        }
        first += part.rows;
    }
}

/// The sum of products in f64, in eight sums that a compiler can keep in vectors.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let ((a8, a), (b8, b)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0f64; 8];
    for (a, b) in a8.iter().zip(b8) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(*a) * f64::from(*b);
        }
    }
    let rest: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    sums.iter().sum::<f64>() + rest
}
