//! Answers a scale for the first block that is 4 times too large: two bits of range are lost.

use evil::Quant;
use evil::quant::{Blocks, honest_scales};

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "crushing";

    fn scales(b: Blocks, amax: Vec<f32>) -> Result<Vec<f32>, String> {
        let mut scales = honest_scales(&b, &amax)?;
        if let Some(first) = scales.first_mut() {
            *first *= 4.0;
        }
        Ok(scales)
    }
}

evil::export_quant!(Evil);
