//! Answers one scale more than it was asked for.

use evil::Quant;
use evil::quant::{Blocks, honest_scales};

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "too_many";

    fn scales(b: Blocks, amax: Vec<f32>) -> Result<Vec<f32>, String> {
        let mut scales = honest_scales(&b, &amax)?;
        scales.push(1.0);
        Ok(scales)
    }
}

evil::export_quant!(Evil);
