//! Describes itself with texts of 1 MiB.

use evil::Quant;
use evil::quant::{Info, honest_info};

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "long_name";

    fn describe() -> Info {
        let long = "a".repeat(1 << 20);
        Info { name: long.clone(), summary: long.clone(), reason: long, ..honest_info(Self::NAME) }
    }
}

evil::export_quant!(Evil);
