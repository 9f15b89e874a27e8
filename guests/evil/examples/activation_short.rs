//! Answers one activation scale less than it was asked for.

use evil::Quant;
use evil::quant::{ActivationRule, settings};

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "activation_short";

    fn activation() -> Option<ActivationRule> {
        None
    }

    fn activation_scales(amax: Vec<f32>) -> Result<Vec<f32>, String> {
        let mut scales = settings().activation().scales(&amax)?;
        scales.pop();
        Ok(scales)
    }
}

evil::export_quant!(Evil);
