//! Never comes back from `resolve`.

use evil_loader::{Loader, Placement, Tensor};

struct Evil;

impl Loader for Evil {
    const NAME: &'static str = "loader_spin";

    fn resolve(checkpoint: Vec<Tensor>) -> Result<Vec<Placement>, String> {
        let _ = checkpoint;
        loop {
            std::hint::spin_loop();
        }
    }
}

evil_loader::export_loader!(Evil);
