//! Walks the sections, level by level.

use super::code::Collector;
use super::component::ComponentFrame;
use super::links::Links;
use super::opcode::Histogram;
use crate::audit::Caps;
use crate::audit::facts::{Facts, ModuleFacts};
use crate::audit::names::{Export, Import};
use wasmparser::{BinaryReaderError, Encoding, Parser, Payload, SubType};

/// What the pass sees.
#[derive(Default)]
pub(in crate::audit) struct Scan {
    pub(in crate::audit) facts: Facts,
    pub(in crate::audit) imports: Vec<Import>,
    pub(in crate::audit) exports: Vec<Export>,
    pub(super) histogram: Histogram,
}

/// One level of nesting.
pub(super) enum Frame {
    Module(ModuleFrame),
    Component(ComponentFrame),
}

/// What is known of a module while its code is read.
#[derive(Default)]
pub(super) struct ModuleFrame {
    /// Index among all modules.
    pub(super) index: usize,
    pub(super) types: Vec<SubType>,
    /// Types of all functions, imported ones first.
    pub(super) functions: Vec<u32>,
    /// How many bodies were read.
    pub(super) bodies: u32,
}

/// Deeper nesting than this is refused by its number, so nothing more needs to be known.
const DEPTH: usize = 16;

/// Reads everything. Stops early, without an error, where a cap is exceeded beyond doubt.
pub(in crate::audit) fn scan(bytes: &[u8], caps: &Caps) -> Result<Scan, (Box<Scan>, BinaryReaderError)> {
    let mut scan = Scan::default();
    let mut links = Links::default();
    let result = scan.walk(bytes, caps, &mut links);
    links.finish(&mut scan.facts);
    scan.facts.opcodes = scan.histogram.by_name();
    scan.facts.proposals = scan.histogram.by_proposal();
    match result {
        Ok(()) => Ok(scan),
        Err(error) => Err((Box::new(scan), error)),
    }
}

impl Scan {
    fn walk(&mut self, bytes: &[u8], caps: &Caps, links: &mut Links) -> Result<(), BinaryReaderError> {
        let mut frames: Vec<Frame> = Vec::new();
        for payload in Parser::new(0).parse_all(bytes) {
            let payload = payload?;
            if frames.len() > DEPTH || self.facts.items > caps.items {
                return Ok(());
            }
            if let (Payload::CodeSectionEntry(function), Some(Frame::Module(frame))) = (&payload, frames.last_mut()) {
                Collector::new(self, caps, frame).function(function)?;
                continue;
            }
            self.structure(&mut frames, &payload);
            let root = frames.len() == 1;
            match frames.last_mut() {
                Some(Frame::Module(frame)) => self.module(frame, payload, caps)?,
                Some(Frame::Component(_)) => {
                    if root {
                        links.section(&payload, self.facts.modules.len())?;
                    }
                    self.component(&mut frames, payload)?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Pushes and pops levels.
    fn structure(&mut self, frames: &mut Vec<Frame>, payload: &Payload<'_>) {
        match payload {
            Payload::Version { encoding: Encoding::Module, range, .. } => {
                let index = self.facts.modules.len();
                self.facts.modules.push(ModuleFacts { offset: range.start, ..ModuleFacts::default() });
                frames.push(Frame::Module(ModuleFrame { index, ..ModuleFrame::default() }));
            }
            Payload::Version { encoding: Encoding::Component, .. } => {
                self.facts.component_depth = self.facts.component_depth.max(frames.len());
                frames.push(Frame::Component(ComponentFrame::default()));
            }
            Payload::End(_) => {
                if let Some(Frame::Component(done)) = frames.pop() {
                    match frames.last_mut() {
                        Some(Frame::Component(parent)) => {
                            parent.components.push(done.expanded);
                            let counter = if done.does_something {
                                &mut self.facts.nested_components
                            } else {
                                &mut self.facts.shims
                            };
                            *counter += 1;
                        }
                        _ => self.facts.expanded_instances = done.expanded,
                    }
                }
            }
            _ => {}
        }
    }
}
