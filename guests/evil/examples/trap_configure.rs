//! Traps in `configure`.

use evil::Quant;

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "trap_configure";

    fn configure(_: Vec<(String, String)>) -> Result<(), String> {
        std::process::abort()
    }
}

evil::export_quant!(Evil);
