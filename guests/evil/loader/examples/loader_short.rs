//! Answers one placement less than there are tensors.

use evil_loader::{Loader, Placement, Tensor, honest_placements};

struct Evil;

impl Loader for Evil {
    const NAME: &'static str = "loader_short";

    fn resolve(checkpoint: Vec<Tensor>) -> Result<Vec<Placement>, String> {
        let mut placements = honest_placements(&checkpoint);
        placements.pop();
        Ok(placements)
    }
}

evil_loader::export_loader!(Evil);
