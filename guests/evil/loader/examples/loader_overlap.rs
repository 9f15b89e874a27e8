//! Sends two expert tensors to one place.

use evil_loader::{Loader, Placement, Tensor, honest_placements};

struct Evil;

impl Loader for Evil {
    const NAME: &'static str = "loader_overlap";

    fn resolve(checkpoint: Vec<Tensor>) -> Result<Vec<Placement>, String> {
        let mut placements = honest_placements(&checkpoint);
        let mut first = None;
        for p in placements.iter_mut().filter(|p| matches!(p, Placement::Place(_))) {
            match &first {
                None => first = Some(p.clone()),
                Some(taken) => {
                    *p = taken.clone();
                    break;
                }
            }
        }
        Ok(placements)
    }
}

evil_loader::export_loader!(Evil);
