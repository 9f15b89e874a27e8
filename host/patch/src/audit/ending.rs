//! Whether functions that call each other can come to an end: found in the code, so that nobody has to believe a name.

use super::facts::ModuleFacts;
use std::collections::HashSet;
use wasmparser::{BinaryReader, BinaryReaderError, FrameKind, FunctionBody, Operator};

/// How a group of functions that call each other can end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Each of them has a way to its end (a return or a trap) that needs no further round.
    Possible,
    /// These have none: whoever calls one of them comes back only when fuel or the stack ends.
    Never(Vec<u32>),
    /// The bodies are too large to look at as often as it takes.
    NotLookedAt,
}

/// How many bytes of bodies are read for one component. Honest groups need some thousand.
pub(super) const READS: usize = 4 << 20;

/// Looks at one group. `left` is what remains of [`READS`].
///
/// A function ends if some way through its body calls only functions that end. At first none of the group is known to;
/// each round takes out those that do, until nothing changes.
pub(super) fn ending(bytes: &[u8], module: &ModuleFacts, group: &[u32], left: &mut usize) -> Ending {
    let mut open: HashSet<u32> = group.iter().copied().collect();
    loop {
        let before = open.len();
        for function in group {
            if !open.contains(function) {
                continue;
            }
            let Some(body) = module.function(*function).and_then(|f| bytes.get(f.cost.offset..)?.get(..f.cost.bytes))
            else {
                continue;
            };
            match left.checked_sub(body.len()) {
                Some(rest) => *left = rest,
                None => return Ending::NotLookedAt,
            }
            // A body that does not decode has no end that is known.
            if ends(body, &open).unwrap_or(false) {
                open.remove(function);
            }
        }
        if open.is_empty() {
            return Ending::Possible;
        }
        if open.len() == before {
            return Ending::Never(group.iter().copied().filter(|function| open.contains(function)).collect());
        }
    }
}

/// One open block.
struct Block {
    kind: FrameKind,
    /// Whether a way leads into it.
    entered: bool,
    /// Whether a way jumps to its end.
    left: bool,
}

/// Whether a way through a body leads to a return or a trap without a call of `open`. What a condition is when it runs is
/// not known: both ways count.
fn ends(body: &[u8], open: &HashSet<u32>) -> Result<bool, BinaryReaderError> {
    let block = |kind, entered| Block { kind, entered, left: false };
    let mut blocks = vec![block(FrameKind::Block, true)];
    let mut here = true;
    for operator in FunctionBody::new(BinaryReader::new(body, 0)).get_operators_reader()? {
        match operator? {
            Operator::Block { .. } | Operator::TryTable { .. } => blocks.push(block(FrameKind::Block, here)),
            Operator::If { .. } => blocks.push(block(FrameKind::If, here)),
            Operator::Loop { .. } => blocks.push(block(FrameKind::Loop, here)),
            Operator::Else => {
                if let Some(block) = blocks.last_mut() {
                    block.left |= here;
                    block.kind = FrameKind::Else;
                    here = block.entered;
                }
            }
            Operator::End => {
                let Some(done) = blocks.pop() else { break };
                here = match done.kind {
                    // A jump to a loop goes back to its beginning.
                    FrameKind::Loop => here,
                    // Without a second arm, the condition alone leads to the end.
                    FrameKind::If => here || done.left || done.entered,
                    _ => here || done.left,
                };
            }
            Operator::Br { relative_depth } => {
                jump(&mut blocks, relative_depth, here);
                here = false;
            }
            Operator::BrIf { relative_depth }
            | Operator::BrOnNull { relative_depth }
            | Operator::BrOnNonNull { relative_depth } => jump(&mut blocks, relative_depth, here),
            Operator::BrTable { targets } => {
                jump(&mut blocks, targets.default(), here);
                for target in targets.targets() {
                    jump(&mut blocks, target?, here);
                }
                here = false;
            }
            Operator::Call { function_index } => here &= !open.contains(&function_index),
            Operator::ReturnCall { function_index } if open.contains(&function_index) => here = false,
            Operator::Return
            | Operator::Unreachable
            | Operator::Throw { .. }
            | Operator::ThrowRef
            | Operator::ReturnCall { .. }
            | Operator::ReturnCallIndirect { .. }
            | Operator::ReturnCallRef { .. }
                if here =>
            {
                return Ok(true);
            }
            _ => {}
        }
    }
    Ok(here)
}

fn jump(blocks: &mut [Block], depth: u32, here: bool) {
    let target = blocks.len().checked_sub(depth as usize + 1).and_then(|at| blocks.get_mut(at));
    if let Some(block) = target {
        block.left |= here;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::audit::Caps;
    use crate::audit::graph::cycles;
    use crate::audit::scan::scan;

    fn of(functions: &str) -> Vec<Ending> {
        let bytes = wat::parse_str(format!("(component (core module {functions}))")).unwrap();
        let facts = scan(&bytes, &Caps::default()).unwrap_or_else(|(_, error)| panic!("{error}")).facts;
        let module = &facts.modules[0];
        let mut left = READS;
        cycles(module).iter().map(|group| ending(&bytes, module, group, &mut left)).collect()
    }

    #[test]
    fn a_way_out_is_found() {
        for body in [
            "(if (local.get 0) (then (call $f (local.get 0))))",
            "(br_if 0 (local.get 0)) (call $f (local.get 0))",
            "(block (br_if 0 (local.get 0)) (call $f (local.get 0)) return) unreachable",
            "(loop (if (local.get 0) (then return)) (call $f (local.get 0)) (br 0))",
            "(block (block (br_table 0 1 (local.get 0))) (call $f (local.get 0)))",
            "(if (local.get 0) (then (call $f (local.get 0))) (else (unreachable)))",
        ] {
            assert_eq!(of(&format!("(func $f (param i32) {body})")), [Ending::Possible], "{body}");
        }
    }

    #[test]
    fn that_there_is_none_is_found() {
        for body in [
            "(call $f (local.get 0))",
            "(call $f (local.get 0)) unreachable",
            "(if (local.get 0) (then (call $f (i32.const 1))) (else (call $f (i32.const 2))))",
            "(block (block (br_table 0 1 (local.get 0))) (call $f (local.get 0)) return) (call $f (local.get 0))",
            "(loop (call $f (local.get 0)) (br_if 0 (local.get 0)))",
            "(loop (br 0)) (call $f (local.get 0))",
        ] {
            assert_eq!(of(&format!("(func $f (param i32) {body})")), [Ending::Never(vec![0])], "{body}");
        }
    }

    #[test]
    fn groups_end_together() {
        // The way out of the last one is the way out of all.
        let chain = "(func $a (call $b)) (func $b (call $c)) (func $c (param) (if (i32.const 1) (then (call $a))))";
        assert_eq!(of(chain), [Ending::Possible]);
        // Two ways, and no end behind either.
        let two =
            "(func $a (if (i32.const 1) (then (call $b)) (else (call $c)))) (func $b (call $a)) (func $c (call $a))";
        assert!(matches!(&of(two)[..], [Ending::Never(all)] if all.len() == 3));
        // One of them ends, the other only calls.
        let half = "(func $a (if (i32.const 1) (then (call $b)))) (func $b (call $a) (call $b))";
        assert_eq!(of(half), [Ending::Never(vec![1])]);
    }
}
