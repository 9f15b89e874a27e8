//! Never comes back from `describe`.

use evil::Quant;
use evil::quant::Info;

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "spin_describe";

    fn describe() -> Info {
        evil::spin()
    }
}

evil::export_quant!(Evil);
