//! Answers activation scales of which the first is 1000 times too small: the whole group saturates.

use evil::Quant;
use evil::quant::{ActivationRule, settings};

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "activation_saturating";

    fn activation() -> Option<ActivationRule> {
        None
    }

    fn activation_scales(amax: Vec<f32>) -> Result<Vec<f32>, String> {
        let mut scales = settings().activation().scales(&amax)?;
        if let Some(first) = scales.first_mut() {
            *first /= 1000.0;
        }
        Ok(scales)
    }
}

evil::export_quant!(Evil);
