//! Answers one decision less than there are tensors.

use evil::Quant;
use evil::quant::{Decision, Model, Tensor, honest_decisions, settings};

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "wrong_decisions";

    fn decide(m: Model, tensors: Vec<Tensor>) -> Result<Vec<Decision>, String> {
        let mut decisions = honest_decisions(&settings(), &m, &tensors)?;
        decisions.pop();
        Ok(decisions)
    }
}

evil::export_quant!(Evil);
