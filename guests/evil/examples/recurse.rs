//! Calls itself in `scales` until the stack ends.

use evil::Quant;
use evil::quant::Blocks;

#[allow(unconditional_recursion)] // that is the point
#[inline(never)]
fn deeper(x: f32) -> f32 {
    let kept = std::hint::black_box([x; 4]);
    deeper(kept[1] + 1.0) + kept[3]
}

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "recurse";

    fn scales(b: Blocks, amax: Vec<f32>) -> Result<Vec<f32>, String> {
        let _ = b;
        Ok(vec![deeper(amax.len() as f32)])
    }
}

evil::export_quant!(Evil);
