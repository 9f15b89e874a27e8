//! Never answers a call for activation scales.

use evil::Quant;
use evil::quant::ActivationRule;

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "activation_spin";

    fn activation() -> Option<ActivationRule> {
        None
    }

    fn activation_scales(_: Vec<f32>) -> Result<Vec<f32>, String> {
        evil::spin()
    }
}

evil::export_quant!(Evil);
