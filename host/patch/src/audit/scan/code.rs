//! Function bodies: what each costs to compile, and what a reviewer wants to know of it.

use super::opcode;
use super::pass::{ModuleFrame, Scan};
use super::stack::Stack;
use crate::audit::Caps;
use crate::audit::facts::{FunctionCost, FunctionFacts, ModuleFacts};
use wasmparser::{BinaryReaderError, FrameKind, FunctionBody, Operator};

/// Most addresses, globals, constants and endless loops that are kept of one function.
const MANY: usize = 64;

/// Reads the bodies of one module.
pub(super) struct Collector<'a> {
    scan: &'a mut Scan,
    caps: &'a Caps,
    frame: &'a mut ModuleFrame,
}

/// What is known of an open block.
struct Open {
    kind: FrameKind,
    offset: usize,
    /// Whether code that runs enters it, and whether its end is reached from here.
    entered: bool,
    reachable: bool,
    /// Whether a jump goes to its label.
    branched: bool,
    /// The outermost block that anything inside jumps to: kept, so that no jump has to walk the open blocks.
    lowest: usize,
    calls: bool,
}

impl<'a> Collector<'a> {
    pub(super) fn new(scan: &'a mut Scan, caps: &'a Caps, frame: &'a mut ModuleFrame) -> Self {
        Self { scan, caps, frame }
    }

    pub(super) fn function(&mut self, body: &FunctionBody<'_>) -> Result<(), BinaryReaderError> {
        let facts = &mut self.scan.facts;
        let module = self.frame.index;
        let cost = FunctionCost {
            module,
            index: facts.modules[module].imported_functions.saturating_add(self.frame.bodies),
            offset: body.range().start,
            bytes: body.range().len(),
            ..FunctionCost::default()
        };
        self.frame.bodies += 1;
        let mut function = FunctionFacts { cost, ..FunctionFacts::default() };
        for local in body.get_locals_reader()? {
            function.cost.locals += u64::from(local?.0);
        }
        let read =
            if function.cost.bytes <= self.caps.body_bytes { self.operators(&mut function, body) } else { Ok(()) };
        let facts = &mut self.scan.facts;
        facts.locals_x_blocks = facts.locals_x_blocks.saturating_add(function.cost.locals_x_blocks());
        keep(&mut facts.largest, &function.cost, |cost| cost.bytes as u64);
        keep(&mut facts.most_locals, &function.cost, |cost| cost.locals);
        keep(&mut facts.deepest, &function.cost, |cost| cost.nesting as u64);
        keep(&mut facts.costliest, &function.cost, FunctionCost::locals_x_blocks);
        if facts.functions <= self.caps.functions {
            facts.modules[module].code.push(function);
        }
        read
    }

    fn operators(&mut self, function: &mut FunctionFacts, body: &FunctionBody<'_>) -> Result<(), BinaryReaderError> {
        let Scan { facts, histogram, .. } = &mut *self.scan;
        let module = &mut facts.modules[function.cost.module];
        let mut stack = Stack::new(self.frame);
        let mut blocks = Blocks::new();
        let mut after_xor = None;
        for item in body.get_operators_reader()?.into_iter_with_offsets() {
            let (operator, offset) = item?;
            let ordinal = opcode::ordinal(&operator);
            histogram.count(ordinal);
            function.classes[opcode::class_of(ordinal)] += 1;
            match &operator {
                Operator::BrTable { targets } => facts.br_table_targets += u64::from(targets.len()) + 1,
                Operator::MemoryGrow { .. } => facts.memory_grows += 1,
                Operator::CallIndirect { .. } => facts.indirect_calls += 1,
                _ => {}
            }
            blocks.step(&operator, offset, function)?;
            if stack.labels.len() < self.caps.nesting {
                observe(&operator, offset, &stack, &mut after_xor, module, function);
                stack.step(&operator);
            }
        }
        function.cost.nesting = blocks.deepest;
        function.calls.sort_unstable();
        function.calls.dedup();
        Ok(())
    }
}

/// What one instruction says about the function.
fn observe(
    operator: &Operator<'_>,
    offset: usize,
    stack: &Stack<'_>,
    after_xor: &mut Option<u64>,
    module: &mut ModuleFacts,
    function: &mut FunctionFacts,
) {
    let xor = after_xor.take();
    match operator {
        Operator::Call { function_index } | Operator::ReturnCall { function_index } => {
            function.calls.push(*function_index);
        }
        Operator::CallIndirect { .. } | Operator::ReturnCallIndirect { .. } => function.indirect_calls += 1,
        Operator::RefFunc { function_index } if module.elements.len() < 10_000 => {
            module.elements.push(*function_index);
        }
        Operator::Unreachable => function.traps += 1,
        Operator::MemoryGrow { .. } => function.memory_grows += 1,
        Operator::TableGrow { .. } => function.table_grows += 1,
        Operator::MemoryCopy { .. } | Operator::MemoryFill { .. } => {
            function.bulk_dynamic += u32::from(stack.constant(0).is_none());
        }
        Operator::I32ReinterpretF32 | Operator::I64ReinterpretF64 | Operator::F32Copysign | Operator::F64Copysign => {
            function.nan_bits += 1;
        }
        Operator::GlobalSet { global_index } => once(&mut function.global_writes, *global_index),
        Operator::I32Xor | Operator::I64Xor => *after_xor = stack.constant(0).or_else(|| stack.constant(1)),
        Operator::I32Eqz | Operator::I64Eqz => function.rare.extend(xor.filter(|c| rare(*c)).map(|c| (c, offset))),
        Operator::I32Eq | Operator::I32Ne | Operator::I64Eq | Operator::I64Ne => {
            let constant = stack.constant(0).or_else(|| stack.constant(1));
            if function.rare.len() < MANY {
                function.rare.extend(constant.filter(|constant| rare(*constant)).map(|constant| (constant, offset)));
            }
        }
        _ => {
            if let Some(offset) = store_offset(operator)
                && let Some(base) = stack.constant(1)
            {
                once(&mut function.static_stores, base.saturating_add(offset));
            }
        }
    }
}

fn once<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if list.len() < MANY && !list.contains(&item) {
        list.push(item);
    }
}

/// The fixed offset of a store.
fn store_offset(operator: &Operator<'_>) -> Option<u64> {
    Some(match operator {
        Operator::I32Store { memarg }
        | Operator::I64Store { memarg }
        | Operator::F32Store { memarg }
        | Operator::F64Store { memarg }
        | Operator::I32Store8 { memarg }
        | Operator::I32Store16 { memarg }
        | Operator::I64Store8 { memarg }
        | Operator::I64Store16 { memarg }
        | Operator::I64Store32 { memarg }
        | Operator::V128Store { memarg } => memarg.offset,
        _ => return None,
    })
}

/// Whether a constant is one that nobody types by accident: no small number, mask, power of two, simple float or text.
fn rare(constant: u64) -> bool {
    let bytes = constant.to_le_bytes();
    let used = if constant >> 32 == 0 { &bytes[..4] } else { &bytes[..] };
    let mut distinct: Vec<u8> = used.iter().copied().filter(|byte| *byte != 0).collect();
    distinct.sort_unstable();
    distinct.dedup();
    let bits = constant.count_ones() as usize;
    let text = used.iter().all(|byte| *byte == 0 || byte.is_ascii_graphic() || *byte == b' ');
    distinct.len() >= used.len().min(6) - 1 && bits >= 2 * used.len() && bits <= 6 * used.len() && !text
}

/// The open blocks of a function.
struct Blocks {
    open: Vec<Open>,
    deepest: usize,
}

impl Blocks {
    fn new() -> Self {
        let mut blocks = Self { open: Vec::new(), deepest: 0 };
        blocks.push(FrameKind::Block, 0, true);
        blocks
    }

    fn push(&mut self, kind: FrameKind, offset: usize, entered: bool) {
        let lowest = usize::MAX;
        self.open.push(Open { kind, offset, entered, reachable: entered, branched: false, lowest, calls: false });
    }

    fn step(
        &mut self,
        operator: &Operator<'_>,
        offset: usize,
        function: &mut FunctionFacts,
    ) -> Result<(), BinaryReaderError> {
        match operator {
            Operator::Block { .. } | Operator::TryTable { .. } => self.enter(FrameKind::Block, offset, function),
            Operator::If { .. } => self.enter(FrameKind::If, offset, function),
            Operator::Loop { .. } => self.enter(FrameKind::Loop, offset, function),
            Operator::Else => {
                if let Some(block) = self.open.last_mut() {
                    block.branched |= block.reachable;
                    block.reachable = block.entered;
                    block.kind = FrameKind::Else;
                }
            }
            Operator::End => self.leave(function),
            Operator::Br { relative_depth } => {
                self.jump(*relative_depth);
                self.stop();
            }
            Operator::BrIf { relative_depth }
            | Operator::BrOnNull { relative_depth }
            | Operator::BrOnNonNull { relative_depth } => self.jump(*relative_depth),
            Operator::BrTable { targets } => {
                self.jump(targets.default());
                for target in targets.targets() {
                    self.jump(target?);
                }
                self.stop();
            }
            Operator::Return | Operator::Unreachable | Operator::Throw { .. } | Operator::ThrowRef => {
                self.out();
                self.stop();
            }
            Operator::Call { .. } | Operator::CallIndirect { .. } | Operator::CallRef { .. } => self.called(),
            Operator::ReturnCall { .. } | Operator::ReturnCallIndirect { .. } | Operator::ReturnCallRef { .. } => {
                self.called();
                self.stop();
            }
            _ => {}
        }
        Ok(())
    }

    fn enter(&mut self, kind: FrameKind, offset: usize, function: &mut FunctionFacts) {
        function.cost.blocks += 1;
        function.loops += u32::from(kind == FrameKind::Loop);
        let entered = self.open.last().is_none_or(|outer| outer.reachable);
        self.push(kind, offset, entered);
        self.deepest = self.deepest.max(self.open.len() - 1);
    }

    fn leave(&mut self, function: &mut FunctionFacts) {
        let Some(done) = self.open.pop() else { return };
        let goes_on = match done.kind {
            FrameKind::Loop => done.reachable,
            // Without a second arm, the condition alone reaches the end.
            FrameKind::If => done.entered,
            _ => done.reachable || done.branched,
        };
        if done.kind == FrameKind::Loop {
            function.loops_without_calls += u32::from(!done.calls);
            let left = goes_on || done.calls || done.lowest < self.open.len();
            if done.entered && !left && function.endless.len() < MANY {
                function.endless.push(done.offset);
            }
        }
        if let Some(outer) = self.open.last_mut() {
            outer.reachable = goes_on;
            outer.calls |= done.calls;
            outer.lowest = outer.lowest.min(done.lowest);
        }
    }

    /// A jump to the label `depth`: it leaves every block inside that label.
    fn jump(&mut self, depth: u32) {
        let target = self.open.len().saturating_sub((depth as usize).saturating_add(1));
        if let Some(block) = self.open.get_mut(target) {
            block.branched = true;
        }
        if let Some(block) = self.open.last_mut() {
            block.lowest = block.lowest.min(target);
        }
    }

    /// Out of the function.
    fn out(&mut self) {
        if let Some(block) = self.open.last_mut() {
            block.lowest = 0;
        }
    }

    fn called(&mut self) {
        if let Some(block) = self.open.last_mut() {
            block.calls = true;
        }
    }

    fn stop(&mut self) {
        if let Some(block) = self.open.last_mut() {
            block.reachable = false;
        }
    }
}

fn keep(slot: &mut Option<FunctionCost>, cost: &FunctionCost, key: impl Fn(&FunctionCost) -> u64) {
    if slot.as_ref().is_none_or(|kept| key(cost) > key(kept)) {
        *slot = Some(cost.clone());
    }
}
