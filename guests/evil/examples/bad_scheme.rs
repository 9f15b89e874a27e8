//! Declares blocks of 0 x 0.

use evil::Quant;
use evil::quant::{Decision, Model, Tensor, honest_decisions, settings};

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "bad_scheme";

    fn decide(m: Model, tensors: Vec<Tensor>) -> Result<Vec<Decision>, String> {
        let mut promised = settings();
        promised.common.block = (0, 0);
        honest_decisions(&promised, &m, &tensors)
    }
}

evil::export_quant!(Evil);
