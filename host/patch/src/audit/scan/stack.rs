//! The operand stack, as far as constants on it are known: enough to see `i32.store` to a fixed address, and
//! comparisons with a constant. Works on code that was not validated: what does not add up is unknown.

use super::pass::ModuleFrame;
use wasmparser::{BlockType, ContType, FrameKind, FuncType, ModuleArity, Operator, RefType, SubType};

/// One open block.
pub(super) struct Label {
    pub(super) kind: FrameKind,
    pub(super) ty: BlockType,
    /// Height of the stack below its parameters.
    height: u64,
}

/// Height, and the constants among the operands: positions ascend.
pub(super) struct Stack<'a> {
    module: &'a ModuleFrame,
    pub(super) labels: Vec<Label>,
    height: u64,
    constants: Vec<(u64, u64)>,
}

impl<'a> Stack<'a> {
    pub(super) fn new(module: &'a ModuleFrame) -> Self {
        let body = Label { kind: FrameKind::Block, ty: BlockType::Empty, height: 0 };
        Self { module, labels: vec![body], height: 0, constants: Vec::new() }
    }

    /// The constant that is `depth` operands below the top, if it is one.
    pub(super) fn constant(&self, depth: u64) -> Option<u64> {
        let position = self.height.checked_sub(depth + 1)?;
        let at = self.constants.binary_search_by_key(&position, |(position, _)| *position).ok()?;
        Some(self.constants[at].1)
    }

    /// Moves the stack on by one instruction.
    pub(super) fn step(&mut self, operator: &Operator<'_>) {
        match operator {
            Operator::I32Const { value } => self.push_constant(u64::from(*value as u32)),
            Operator::I64Const { value } => self.push_constant(*value as u64),
            Operator::Block { blockty } => self.open(FrameKind::Block, *blockty),
            Operator::Loop { blockty } => self.open(FrameKind::Loop, *blockty),
            Operator::If { blockty } => {
                self.pop(1);
                self.open(FrameKind::If, *blockty);
            }
            Operator::TryTable { try_table } => self.open(FrameKind::TryTable, try_table.ty),
            Operator::Else => self.close(false),
            Operator::End => self.close(true),
            Operator::Br { .. } | Operator::BrTable { .. } | Operator::Return | Operator::Unreachable => self.forget(),
            other => match other.operator_arity(self) {
                Some((params, results)) => {
                    self.pop(u64::from(params));
                    self.height = self.height.saturating_add(u64::from(results));
                }
                None => self.forget(),
            },
        }
    }

    fn push_constant(&mut self, value: u64) {
        self.constants.push((self.height, value));
        self.height = self.height.saturating_add(1);
    }

    fn pop(&mut self, count: u64) {
        self.set_height(self.height.saturating_sub(count));
    }

    fn set_height(&mut self, height: u64) {
        self.height = height;
        while self.constants.last().is_some_and(|(position, _)| *position >= height) {
            self.constants.pop();
        }
    }

    fn open(&mut self, kind: FrameKind, ty: BlockType) {
        let params = self.block_type_arity(ty).map_or(0, |(params, _)| params);
        let height = self.height.saturating_sub(u64::from(params));
        self.labels.push(Label { kind, ty, height });
    }

    fn close(&mut self, end: bool) {
        let Some(label) = self.labels.last() else { return };
        let (height, ty) = (label.height, label.ty);
        let (params, results) = self.block_type_arity(ty).unwrap_or((0, 0));
        self.set_height(height);
        if end {
            self.labels.pop();
        }
        self.height = self.height.saturating_add(u64::from(if end { results } else { params }));
    }

    /// After a jump: nothing of this block is known.
    fn forget(&mut self) {
        let height = self.labels.last().map_or(0, |label| label.height);
        self.set_height(height);
    }
}

impl ModuleArity for Stack<'_> {
    fn sub_type_at(&self, index: u32) -> Option<&SubType> {
        self.module.types.get(index as usize)
    }

    fn tag_type_arity(&self, _: u32) -> Option<(u32, u32)> {
        None
    }

    fn type_index_of_function(&self, function: u32) -> Option<u32> {
        self.module.functions.get(function as usize).copied()
    }

    fn func_type_of_cont_type(&self, _: &ContType) -> Option<&FuncType> {
        None
    }

    fn sub_type_of_ref_type(&self, _: &RefType) -> Option<&SubType> {
        None
    }

    fn control_stack_height(&self) -> u32 {
        self.labels.len() as u32
    }

    fn label_block(&self, depth: u32) -> Option<(BlockType, FrameKind)> {
        let at = self.labels.len().checked_sub(depth as usize + 1)?;
        Some((self.labels[at].ty, self.labels[at].kind))
    }
}
