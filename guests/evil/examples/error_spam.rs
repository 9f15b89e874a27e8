//! Answers with an error of 10 MiB that is full of terminal escape sequences.

use evil::Quant;
use evil::quant::Blocks;

struct Evil;

impl Quant for Evil {
    const NAME: &'static str = "error_spam";

    fn scales(b: Blocks, amax: Vec<f32>) -> Result<Vec<f32>, String> {
        let _ = (b, amax);
        let spam = "\u{1b}[2J\u{1b}]0;owned\u{7}\r\n{\"level\":\"fake\"}";
        Err(spam.repeat((10 << 20) / spam.len()))
    }
}

evil::export_quant!(Evil);
