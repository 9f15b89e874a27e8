//! Answers one scale less than it was asked for.

use evil::Quant;
use evil::quant::{Blocks, honest_scales};

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "too_few";

    fn scales(b: Blocks, amax: Vec<f32>) -> Result<Vec<f32>, String> {
        let mut scales = honest_scales(&b, &amax)?;
        scales.pop();
        Ok(scales)
    }
}

evil::export_quant!(Evil);
