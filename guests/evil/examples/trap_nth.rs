//! Traps in the n-th call of `scales`, n from setting `n`, else 1.

use evil::Quant;
use evil::quant::{Blocks, honest_scales};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

static LEFT: AtomicU32 = AtomicU32::new(1);

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "trap_nth";

    fn configure(pairs: Vec<(String, String)>) -> Result<(), String> {
        for (key, value) in pairs {
            match (key.as_str(), value.parse()) {
                ("n", Ok(n)) => LEFT.store(n, Relaxed),
                _ => return Err(format!("unknown setting `{key}={value}`; known is: n=COUNT")),
            }
        }
        Ok(())
    }

    fn scales(b: Blocks, amax: Vec<f32>) -> Result<Vec<f32>, String> {
        if LEFT.fetch_sub(1, Relaxed) == 1 {
            std::process::abort();
        }
        honest_scales(&b, &amax)
    }
}

evil::export_quant!(Evil);
