//! The metrics file: a line of JSON per step. A resumed run cuts off what came after its checkpoint, a torn last line
//! included, so that no step stands twice and none is missing.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::{Result, refused};
use super::metrics::Record;
use crate::base::hex;
use crate::checkpoint::stream::io;

/// How far the file was when a checkpoint was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Bytes of whole lines.
    pub bytes: u64,
    /// SHA-256 of them.
    pub sha256: String,
}

/// The metrics file.
pub struct Lines {
    path: PathBuf,
    file: File,
    bytes: u64,
    hasher: Sha256,
}

impl Lines {
    /// A new file, in the place of what is there.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(io(path))?;
        Ok(Self { path: path.to_path_buf(), file, bytes: 0, hasher: Sha256::new() })
    }

    /// Goes on after `mark`, or from the start where the run had no checkpoint yet; `true`: earlier lines are kept. A file
    /// that is not there is made. Refused: a file of another run.
    pub fn resume(path: &Path, mark: Option<&Mark>) -> Result<(Self, bool)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = patchhost_runtime::files::open_with(&mut options, path).map_err(io(path))?;
        let len = file.metadata().map_err(io(path))?.len();
        let mark = mark.filter(|_| len > 0);
        let keep = mark.map_or(0, |m| m.bytes);
        let mut head = Vec::new();
        (&mut file).take(keep.max(1 << 16)).read_to_end(&mut head).map_err(io(path))?;
        let hasher = match mark {
            Some(mark) => {
                let kept = head.get(..keep as usize);
                let hasher = Sha256::new().chain_update(kept.unwrap_or_default());
                if kept.is_none() || hex(&hasher.clone().finalize()) != mark.sha256 {
                    return Err(foreign(path, "its lines up to the checkpoint are not those that the run wrote"));
                }
                hasher
            }
            None if len > 0 && !begins(&head) => return Err(foreign(path, "it does not begin with a line of step 1")),
            None => Sha256::new(),
        };
        file.set_len(keep).map_err(io(path))?;
        file.seek(SeekFrom::Start(keep)).map_err(io(path))?;
        Ok((Self { path: path.to_path_buf(), file, bytes: keep, hasher }, keep > 0))
    }

    /// One more line.
    pub fn add(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record).map_err(std::io::Error::from).map_err(io(&self.path))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(io(&self.path))?;
        self.bytes += line.len() as u64;
        self.hasher.update(&line);
        Ok(())
    }

    /// Waits until everything is on the disk, and says how far that is.
    pub fn mark(&self) -> Result<Mark> {
        self.file.sync_all().map_err(io(&self.path))?;
        Ok(Mark { bytes: self.bytes, sha256: hex(&self.hasher.clone().finalize()) })
    }
}

/// Whether these bytes begin as a metrics file does; a torn first line may be anything that a line begins with.
fn begins(bytes: &[u8]) -> bool {
    let start = br#"{"step":1,"#;
    bytes.starts_with(start) || start.starts_with(bytes)
}

fn foreign(path: &Path, why: &str) -> super::error::TrainError {
    let shown = crate::base::text::clean(&path.display().to_string(), 200);
    refused(format!("--metrics-out {shown}"), why, "name the file of this run, or one that does not exist")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_after_the_mark_and_torn_ones_are_cut_off() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("m.jsonl");
        let first = "{\"step\":1,\"x\":0}\n";
        let mark = Mark { bytes: first.len() as u64, sha256: hex(&Sha256::digest(first)) };
        for rest in ["", "{\"step\":2}\n", "{\"step\":2}\n{\"st"] {
            std::fs::write(&path, format!("{first}{rest}")).unwrap();
            let (lines, kept) = Lines::resume(&path, Some(&mark)).unwrap();
            assert!(kept && lines.mark().unwrap() == mark);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), first);
        }
        for torn in ["", "{\"st", first] {
            std::fs::write(&path, torn).unwrap();
            assert!(!Lines::resume(&path, None).unwrap().1);
            assert_eq!(std::fs::read(&path).unwrap(), b"");
        }
        for (text, mark) in [("{\"step\":1,\"x\":1}\n", Some(&mark)), ("{\"step\":1", Some(&mark)), ("a diary\n", None)]
        {
            std::fs::write(&path, text).unwrap();
            assert!(Lines::resume(&path, mark).is_err(), "{text}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert!(!Lines::resume(&tmp.path().join("new"), Some(&mark)).unwrap().1);
    }
}
