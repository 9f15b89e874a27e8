//! Sends the first expert tensor into a runtime tensor that does not exist.

use evil_loader::{Loader, Placement, Tensor, honest_placements};

struct Evil;

impl Loader for Evil {
    const NAME: &'static str = "loader_wrong_target";

    fn resolve(checkpoint: Vec<Tensor>) -> Result<Vec<Placement>, String> {
        let mut placements = honest_placements(&checkpoint);
        if let Some(Placement::Place(first)) = placements.iter_mut().find(|p| matches!(p, Placement::Place(_))) {
            first.target = "model.layers.4096.mlp.experts.w13_weight".into();
        }
        Ok(placements)
    }
}

evil_loader::export_loader!(Evil);
