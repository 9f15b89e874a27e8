//! Declares an activation rule under which every activation saturates.

use evil::Quant;
use evil::quant::ActivationRule;

struct Honest;

impl Quant for Honest {
    const NAME: &'static str = "honest";
}

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "activation_rule";

    fn activation() -> Option<ActivationRule> {
        let honest = <Honest as Quant>::activation()?;
        Some(ActivationRule { divisor: 1e9, ..honest })
    }
}

evil::export_quant!(Evil);
