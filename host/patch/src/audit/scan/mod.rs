//! The one pass over the bytes: linear in them, whatever they are.

mod code;
mod component;
mod custom;
mod data;
mod links;
mod module;
mod opcode;
mod pass;
mod stack;

pub(super) use pass::{Scan, scan};
