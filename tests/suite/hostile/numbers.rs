//! Guests that lie only where it would matter: about one value, one tensor, after some calls. The contract of the native
//! cast looks at every block, so there is no place to hide.

use std::sync::Arc;

use patchhost::patch::{Limits, Patch};
use patchhost_kernels::spec::Elem;
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::hooks::{BlockQuant, Consumer, Decision, Dtype, Role, Scheme, TensorInfo};
use patchhost_runtime::quantize::{Input, Measure, quantize};

use super::{inside, wat};

const ROWS: usize = 256;
const COLS: usize = 256;

fn scheme(quant: &dyn BlockQuant) -> Scheme {
    let tensor = TensorInfo { name: "w".into(), dtype: Dtype::F32, shape: vec![256, 256], role: Role::Mlp };
    let reader = Consumer { engine: "patchhost".into(), version: "0.1.0".into() };
    match quant.decide(&inside::model(), &reader, &[tensor]).unwrap().remove(0) {
        Decision::Quantize(scheme) => scheme,
        Decision::Keep(reason) => panic!("it keeps: {reason}"),
    }
}

/// Quantizes a matrix whose first value is the largest of its block.
fn try_with(patch: &Arc<Patch>, tensor: &str, first: f32) -> Result<(), String> {
    let quant = patch.block_quant().unwrap();
    let mut values: Vec<f32> = (0..ROWS * COLS).map(|i| (i as f32 * 0.37).sin()).collect();
    values[0] = first;
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let length = bytes.len();
    let data = TensorBytes::new(Arc::new(bytes), 0..length).unwrap();
    let input = Input { name: tensor, data, elem: Elem::F32, rows: ROWS, cols: COLS };
    quantize(&input, &scheme(&*quant), &*quant, Measure::Nothing).map(drop).map_err(|e| e.to_string())
}

#[test]
fn one_value_among_all_is_enough() {
    let patch = inside::load("magic", wat::guest("magic_value"), Limits::default()).unwrap();
    for honest in [13.25, 13.5, 1.0, -13.0, 400.0] {
        try_with(&patch, "w", honest).unwrap();
    }
    let why = try_with(&patch, "w", 13.375).unwrap_err();
    assert!(why.contains("scale contract broken") && why.contains("block [0, 0]"), "{why}");
    try_with(&patch, "w", 13.25).expect("it was not the host that broke");
}

#[test]
fn one_tensor_among_all_is_enough() {
    let patch = inside::load("one layer", wat::guest("one_layer"), Limits::default()).unwrap();
    try_with(&patch, "model.layers.0.q", 1.0).unwrap();
    let why = try_with(&patch, "model.layers.0.o", 1.0).unwrap_err();
    assert!(why.contains("model.layers.0.o") && why.contains("448"), "{why}");
}

/// What a guest answers for one tensor depends on no other tensor: nothing of it lives on where a new instance is asked.
#[test]
fn a_new_instance_remembers_nothing() {
    let load = || inside::load("remembers", wat::guest("remembers"), Limits::default()).unwrap();
    let ask = |patch: &Arc<Patch>, amax: f32| {
        let blocks = patchhost_runtime::hooks::Blocks {
            tensor: "w",
            rows: 128,
            cols: 128,
            block_rows: 128,
            block_cols: 128,
            first_block: 0,
        };
        patch.block_quant().unwrap().scales(&blocks, &[amax]).unwrap()[0]
    };
    let (first, second) = (load(), load());
    assert_eq!(ask(&first, 448.0), 1.0);
    assert_eq!(ask(&first, 896.0), 1.0, "it remembers, within its own instance");
    assert_eq!(ask(&second, 896.0), 2.0, "another patch sees nothing of it");
}
