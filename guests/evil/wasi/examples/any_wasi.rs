//! An honest block quantization that imports WASI. Told to `try` something, it tries it while it is configured, and
//! answers `configure` with an error that says what came of it; `quiet=1`: it says nothing and goes on.

use evil::Quant;

struct Guest;

impl Quant for Guest {
    const NAME: &'static str = "any_wasi";

    fn configure(pairs: Vec<(String, String)>) -> Result<(), String> {
        let quiet = pairs.iter().any(|(key, _)| key == "quiet");
        let tried = pairs.iter().filter(|(key, _)| key != "quiet").map(|(what, value)| {
            evil_wasi::try_it(what, value).map_or_else(|e| format!("{what}: failed: {e}"), |ok| format!("{what}: {ok}"))
        });
        let said = tried.collect::<Vec<_>>().join("; ");
        if quiet || said.is_empty() { Ok(()) } else { Err(said) }
    }
}

evil::export_quant!(Guest);
