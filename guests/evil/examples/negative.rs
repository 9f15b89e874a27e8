//! Answers the right scale of the first block with the wrong sign.

use evil::Quant;
use evil::quant::{Blocks, honest_scales};

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "negative";

    fn scales(b: Blocks, amax: Vec<f32>) -> Result<Vec<f32>, String> {
        let mut scales = honest_scales(&b, &amax)?;
        if let Some(first) = scales.first_mut() {
            *first = -*first;
        }
        Ok(scales)
    }
}

evil::export_quant!(Evil);
