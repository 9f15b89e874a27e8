//! What fuel does not see: the wall clock ends it, before anybody waits ten seconds.

use std::sync::mpsc::channel;
use std::time::Duration;

use patchhost::patch::Limits;
use patchhost_runtime::hooks::{Consumer, Dtype, Role, TensorInfo};

use super::{inside, wat};

#[test]
fn loads_that_miss_every_cache_end_in_time() {
    let patch = inside::load("chase", wat::guest("chase"), Limits::default()).unwrap();
    let quant = patch.block_quant().unwrap();
    let tensor = |n| TensorInfo { name: format!("w{n}"), dtype: Dtype::Bf16, shape: vec![256, 256], role: Role::Mlp };
    // The largest list, for the most fuel.
    let tensors: Vec<_> = (0..130_000).map(tensor).collect();
    let (tell, told) = channel();
    let reader = Consumer { engine: "patchhost".into(), version: "0.1.0".into() };
    std::thread::spawn(move || tell.send(quant.decide(&inside::model(), &reader, &tensors)));
    // A guard against a hang. The limit is eight seconds of wall time, whatever the machine does.
    let answer = told.recv_timeout(Duration::from_secs(30)).expect("it hangs");
    let why = answer.unwrap_err().to_string();
    assert!(why.contains("8000 ms of wall time") || why.contains("fuel_max"), "{why}");
    inside::host_lives();
}
