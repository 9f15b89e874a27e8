//! Sends two expert tensors to one place.

use evil_loader::{Loader, Placement, Tensor, honest_placements};

struct Evil;

impl Loader for Evil {
    const NAME: &'static str = "loader_overlap";

    fn resolve(checkpoint: Vec<Tensor>) -> Result<Vec<Placement>, String> {
        let mut placements = honest_placements(&checkpoint);
        // The same slot of expert 0 and of expert 1: the shapes fit, only the expert is wrong.
        for p in &mut placements {
            if let Placement::Place(place) = p
                && place.expert == Some(1)
            {
                place.expert = Some(0);
                break;
            }
        }
        Ok(placements)
    }
}

evil_loader::export_loader!(Evil);
