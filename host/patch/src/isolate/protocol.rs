//! What host and child say to each other: frames of postcard, each behind its length. The child is not trusted: what it says
//! is bounded before it is read, and its answers are checked like those of a guest in this process.

use crate::abi::{Info, Snapshot};
use crate::base::child::{read_frame, write_frame};
use crate::base::{Function, Grants, Hook};
use crate::call::{Outcome, Question};
use crate::sandbox::{Fault, FunctionStats, Limits};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// Most bytes of a frame: a component, a panel of rows, the names of all tensors.
const FRAME: usize = 256 << 20;

/// What the host wants.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// The first one, and only that.
    Start(Box<Start>),
    /// A call of the patch.
    Ask(Question),
}

/// A patch to start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) bytes: Vec<u8>,
    pub(super) digest: [u8; 32],
    /// By their WIT names.
    pub(super) hooks: Vec<String>,
    pub(super) state: bool,
    pub(super) settings: Vec<(String, String)>,
    pub(super) limits: Limits,
    /// As TOML: frames carry no type, and how grants are read depends on it.
    pub(super) grants: String,
    /// What the state of an earlier child was.
    pub(super) inherited: Option<Snapshot>,
}

impl Start {
    pub(super) fn hooks(&self) -> Vec<Hook> {
        Hook::ALL.into_iter().filter(|hook| self.hooks.iter().any(|name| name == hook.name())).collect()
    }

    pub(super) fn grants(&self) -> Result<Grants, String> {
        toml::from_str(&self.grants).map_err(|e| e.to_string())
    }
}

/// What the child says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Said {
    /// The patch answers questions from here on.
    Started(Box<Info>),
    /// It does not compile, link, or get its grants.
    NotCompiled(String),
    /// It failed while it was started.
    NotStarted(Fault),
    /// How the call ended.
    Outcome(Outcome),
    /// No host asks such a thing.
    Nonsense(String),
}

/// What it says, and the counters of the child so far.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reply {
    pub(super) said: Said,
    pub(super) counters: Counters,
}

/// Counters of one child.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Counters {
    pub(super) functions: Vec<(Function, FunctionStats)>,
    pub(super) made: u64,
    pub(super) dropped: u64,
}

/// Writes a frame.
pub(super) fn write<T: Serialize>(to: &mut impl Write, value: &T) -> io::Result<()> {
    let bytes = postcard::to_stdvec(value).map_err(io::Error::other)?;
    write_frame(to, &bytes, FRAME)
}

/// Reads a frame.
pub(super) fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let bytes = read_frame(from, FRAME)?;
    postcard::from_bytes(&bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn frames_there_and_back() {
        let mut bytes = Vec::new();
        let question = Question::ActivationScales(vec![1.0, f32::NAN, f32::INFINITY]);
        write(&mut bytes, &Request::Ask(question)).unwrap();
        let Request::Ask(Question::ActivationScales(back)) = read(&mut bytes.as_slice()).unwrap() else { panic!() };
        assert!(back[0] == 1.0 && back[1].is_nan() && back[2].is_infinite());
    }

    #[test]
    fn what_a_child_says_is_not_trusted() {
        let huge = u32::MAX.to_le_bytes();
        assert!(read::<Reply>(&mut huge.as_slice()).unwrap_err().to_string().contains("at most"));
        let cut = [100, 0, 0, 0, 1, 2, 3];
        assert_eq!(read::<Reply>(&mut cut.as_slice()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        for byte in 0..=255u8 {
            let noise = [&[8, 0, 0, 0][..], &[byte; 8]].concat();
            let _ = read::<Reply>(&mut noise.as_slice());
        }
    }
}
