//! Answers a scale for the first block that is off by one part in 2^18, about 32 ulp.

use evil::Quant;
use evil::quant::{Blocks, honest_scales};

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "subtle";

    fn scales(b: Blocks, amax: Vec<f32>) -> Result<Vec<f32>, String> {
        let mut scales = honest_scales(&b, &amax)?;
        if let Some(first) = scales.first_mut() {
            *first *= 1.0 + 1.0 / 262_144.0;
        }
        Ok(scales)
    }
}

evil::export_quant!(Evil);
