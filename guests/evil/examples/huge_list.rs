//! Answers with 64 Mi scales (256 MiB), or with as many as setting `n` says.

use evil::Quant;
use evil::quant::Blocks;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static COUNT: AtomicUsize = AtomicUsize::new(64 << 20);

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "huge_list";

    fn configure(pairs: Vec<(String, String)>) -> Result<(), String> {
        for (key, value) in pairs {
            match (key.as_str(), value.parse()) {
                ("n", Ok(n)) => COUNT.store(n, Relaxed),
                _ => return Err(format!("unknown setting `{key}={value}`; known is: n=COUNT")),
            }
        }
        Ok(())
    }

    fn scales(_: Blocks, _: Vec<f32>) -> Result<Vec<f32>, String> {
        Ok(vec![1.0; COUNT.load(Relaxed)])
    }
}

evil::export_quant!(Evil);
