//! Claims 256 Mi scales (1 GiB) that lie outside of its memory.

use evil::Quant;
use evil::quant::Blocks;

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "huge_length";

    fn scales(b: Blocks, amax: Vec<f32>) -> Result<Vec<f32>, String> {
        let _ = (b, amax);
        // SAFETY: not sound, and that is the point: the bindings hand pointer and length to the host as they are, and
        // the host must find out that the list ends outside of this instance's memory. Nothing here reads or frees it.
        Ok(unsafe { Vec::from_raw_parts(std::ptr::dangling_mut(), 1 << 28, 1 << 28) })
    }
}

evil::export_quant!(Evil);
