//! Answers NaN for the first block.

use evil::Quant;
use evil::quant::{Blocks, honest_scales};

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "nan_scales";

    fn scales(b: Blocks, amax: Vec<f32>) -> Result<Vec<f32>, String> {
        let mut scales = honest_scales(&b, &amax)?;
        if let Some(first) = scales.first_mut() {
            *first = f32::NAN;
        }
        Ok(scales)
    }
}

evil::export_quant!(Evil);
