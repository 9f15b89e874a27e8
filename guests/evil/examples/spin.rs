//! Never comes back from `scales`.

use evil::Quant;
use evil::quant::Blocks;

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "spin";

    fn scales(b: Blocks, amax: Vec<f32>) -> Result<Vec<f32>, String> {
        let _ = (b, amax);
        evil::spin()
    }
}

evil::export_quant!(Evil);
