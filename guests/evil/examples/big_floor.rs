//! Declares a floor so high that every weight may be flushed to zero and the contract still holds.

use evil::Quant;
use evil::quant::{Decision, Model, Tensor, honest_decisions, settings};

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "big_floor";

    fn decide(m: Model, tensors: Vec<Tensor>) -> Result<Vec<Decision>, String> {
        let mut decisions = honest_decisions(&settings(), &m, &tensors)?;
        for d in &mut decisions {
            if let Decision::Quantize(scheme) = d {
                scheme.floor.eps = 1e30;
            }
        }
        Ok(decisions)
    }
}

evil::export_quant!(Evil);
