//! `--record`: what several verbs share.

use std::path::PathBuf;
use std::sync::Arc;

use super::failure::Result;
use super::output::{bytes, plural};
use crate::record::Recorder;

/// Writing down what patches are asked.
#[derive(Debug, Clone, clap::Args)]
pub struct RecordArgs {
    /// Write every call of every patch to a new file, bit for bit: `patchhost replay FILE` asks them again. Weights may be
    /// in it
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Where a recording stops, with a note
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = super::export::size, requires = "record")]
    pub record_max_bytes: u64,
}

impl RecordArgs {
    /// Makes the file, if one is asked for. `model` names the model, `config` is the text of its config.json.
    pub fn start(&self, model: &str, config: &str) -> Result<Option<Recorded>> {
        let Some(path) = &self.record else { return Ok(None) };
        let notice = |text: &str| errln!("note: {text}");
        Ok(Some(Recorded(Recorder::create(path, self.record_max_bytes, model, config, notice)?)))
    }
}

/// A recording under way. Says what is in it when it is dropped, however the verb ended: a run that failed is the one
/// somebody wants to replay.
pub struct Recorded(Arc<Recorder>);

impl Recorded {
    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.0
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let status = self.0.finish();
        if status.calls == 0 && status.left_out == 0 {
            // Made by this run, for nothing: the next one can use the name again.
            let _ = std::fs::remove_file(&status.path);
            errln!("note: no call was made, so nothing is recorded");
            return;
        }
        let missing = match status.left_out {
            0 => String::new(),
            n => format!("; {n} more are missing"),
        };
        let calls = plural(status.calls as usize, "call");
        errln!("note: {calls} in {} are recorded in `{}`{missing}", bytes(status.bytes), status.path.display());
    }
}
