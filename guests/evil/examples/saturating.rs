//! Answers a scale for the first block that is 1000 times too small: nearly everything saturates.

use evil::Quant;
use evil::quant::{Blocks, honest_scales};

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "saturating";

    fn scales(b: Blocks, amax: Vec<f32>) -> Result<Vec<f32>, String> {
        let mut scales = honest_scales(&b, &amax)?;
        if let Some(first) = scales.first_mut() {
            *first /= 1000.0;
        }
        Ok(scales)
    }
}

evil::export_quant!(Evil);
