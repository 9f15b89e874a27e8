//! Grows its memory in `scales` until somebody stops it.

use evil::Quant;
use evil::quant::Blocks;

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "grow";

    fn scales(b: Blocks, amax: Vec<f32>) -> Result<Vec<f32>, String> {
        let _ = (b, amax);
        loop {
            // Not written to: filling it would use up the fuel first.
            std::mem::forget(std::hint::black_box(Vec::<u8>::with_capacity(1 << 20)));
        }
    }
}

evil::export_quant!(Evil);
