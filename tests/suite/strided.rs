//! Quantizing a matrix that lies in somebody else's memory, as torch's views do: the same bytes as of a plain copy.

use std::sync::Arc;

use patchhost::patch::{Patch, Reviewing, Sandbox, Terms, resolve};
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::hooks::{BlockQuant, Consumer, Decision, Dtype, Elem, ModelInfo, Role, Scheme, TensorInfo};
use patchhost_runtime::quantize::{Input, Measure, On, Strides, grid, quantize, quantize_into};
use patchhost_runtime::refit::NonFinite;

use crate::support::{bf16_bytes, normal};

const NAME: &str = "model.layers.0.mlp.down_proj.weight";

fn patch(name: &str) -> Arc<Patch> {
    let sandbox = Sandbox::new(2).unwrap();
    Reviewing::default().start(resolve(name).unwrap(), &Terms::default(), &sandbox).unwrap()
}

fn scheme(quant: &dyn BlockQuant, rows: usize, cols: usize) -> Scheme {
    let model = ModelInfo {
        architecture: "LlamaForCausalLM".into(),
        model_type: "llama".into(),
        layers: 1,
        experts: 0,
        config: "{}".into(),
    };
    let reader = Consumer { engine: "patchhost".into(), version: "0.1.0".into() };
    let (dtype, shape) = (Dtype::Bf16, vec![rows as u64, cols as u64]);
    let info = TensorInfo { name: NAME.into(), dtype, shape, role: Role::Mlp };
    match quant.decide(&model, &reader, &[info]).unwrap().remove(0) {
        Decision::Quantize(scheme) => scheme,
        Decision::Keep(why) => panic!("kept: {why}"),
    }
}

fn lent(bytes: Vec<u8>) -> TensorBytes {
    let len = bytes.len();
    TensorBytes::new(Arc::new(bytes), 0..len).unwrap()
}

/// `values` (row-major) laid out with these strides, NaN between them.
fn laid_out(values: &[f32], rows: usize, cols: usize, strides: Strides) -> Vec<u8> {
    let last = rows.saturating_sub(1) * strides.row + cols.saturating_sub(1) * strides.col;
    let mut out = vec![f32::NAN; if rows * cols == 0 { 0 } else { last + 1 }];
    for row in 0..rows {
        for col in 0..cols {
            out[row * strides.row + col * strides.col] = values[row * cols + col];
        }
    }
    bf16_bytes(&out)
}

#[test]
fn any_strides_give_the_bytes_of_a_plain_copy() {
    for name in ["fp8_block", "fp8_block_mse"] {
        let patch = patch(name);
        let quant = patch.block_quant().unwrap();
        for (rows, cols) in [(1, 1), (128, 128), (129, 257), (300, 96), (5, 1), (1, 300), (0, 128), (3, 0)] {
            let scheme = scheme(&*quant, rows.max(1), cols.max(1));
            let values = normal(rows * cols, 7);
            let plain = Input { name: NAME, data: lent(bf16_bytes(&values)), elem: Elem::Bf16, rows, cols };
            let expected = quantize(&plain, &scheme, &*quant, Measure::All).unwrap();
            let (grid_rows, grid_cols) = grid(rows, cols, &scheme);
            for strides in [
                Strides { row: cols, col: 1 },
                Strides { row: cols + 3, col: 1 },
                Strides { row: 1, col: rows },
                Strides { row: 2 * cols, col: 2 },
                Strides { row: 1, col: rows + 5 },
            ] {
                let data = lent(laid_out(&values, rows, cols, strides));
                let input = Input { name: NAME, data, elem: Elem::Bf16, rows, cols };
                for on in [On::Pool, On::Caller] {
                    let (mut q, mut scales) = (vec![9u8; rows * cols], vec![9f32; grid_rows * grid_cols]);
                    let (rule, all) = (NonFinite::Refuse, Measure::All);
                    let report = quantize_into(rule, &input, strides, &scheme, &*quant, all, on, &mut q, &mut scales);
                    let report = report.unwrap_or_else(|e| panic!("{name} {rows}x{cols} {strides:?}: {e}"));
                    assert_eq!(q[..], expected.q[..], "{name} {rows}x{cols} {strides:?} {on:?}");
                    assert_eq!(scales, expected.scales, "{name} {rows}x{cols} {strides:?} {on:?}");
                    assert_eq!(report.flushed, expected.report.flushed);
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_named_by_its_own_row() {
    let patch = patch("fp8_block");
    let quant = patch.block_quant().unwrap();
    let (rows, cols) = (300, 96);
    let scheme = scheme(&*quant, rows, cols);
    let mut values = normal(rows * cols, 3);
    values[290 * cols + 17] = f32::NAN;
    for strides in [Strides { row: cols, col: 1 }, Strides { row: 1, col: rows }] {
        let data = lent(laid_out(&values, rows, cols, strides));
        let input = Input { name: NAME, data, elem: Elem::Bf16, rows, cols };
        let (mut q, mut scales) = (vec![0u8; rows * cols], vec![0f32; 3]);
        let (rule, nothing) = (NonFinite::Refuse, Measure::Nothing);
        let error = quantize_into(rule, &input, strides, &scheme, &*quant, nothing, On::Pool, &mut q, &mut scales);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("index [290, 17] is NaN (block [2, 0]"), "{error}");
    }
}

#[test]
fn memory_that_is_too_short_is_refused() {
    let patch = patch("fp8_block");
    let quant = patch.block_quant().unwrap();
    let scheme = scheme(&*quant, 4, 4);
    let input = Input { name: NAME, data: lent(vec![0; 31]), elem: Elem::Bf16, rows: 4, cols: 4 };
    for strides in [Strides { row: 4, col: 1 }, Strides { row: 1, col: 4 }, Strides { row: 9, col: 2 }] {
        let (mut q, mut scales) = (vec![0u8; 16], vec![0f32; 1]);
        let (rule, nothing, on) = (NonFinite::Refuse, Measure::Nothing, On::Pool);
        let made = quantize_into(rule, &input, strides, &scheme, &*quant, nothing, on, &mut q, &mut scales);
        assert!(made.is_err(), "{strides:?}");
        // Nor is memory for the answer that has another size.
        let whole = Input { name: NAME, data: lent(vec![0; 64]), elem: Elem::Bf16, rows: 4, cols: 4 };
        let made = quantize_into(rule, &whole, strides, &scheme, &*quant, nothing, on, &mut q[1..], &mut scales);
        assert!(made.unwrap_err().to_string().contains("room for 15 codes"), "{strides:?}");
    }
}
