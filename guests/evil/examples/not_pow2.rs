//! Declares power-of-two scales and answers others.

use evil::Quant;
use evil::quant::{Decision, Model, Tensor, honest_decisions, settings};

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "not_pow2";

    fn decide(m: Model, tensors: Vec<Tensor>) -> Result<Vec<Decision>, String> {
        let mut promised = settings();
        promised.common.pow2 = true;
        honest_decisions(&promised, &m, &tensors)
    }
}

evil::export_quant!(Evil);
