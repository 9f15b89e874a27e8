//! Who calls whom, as far as the bytes say: direct calls, and for indirect ones every function that stands in a table.

use super::facts::{Facts, Lifted, ModuleFacts};

/// The call graph of all modules.
pub(super) struct Graph {
    /// Per module and function: whether a lifted function reaches it.
    lifted: Vec<Vec<bool>>,
    /// Per module and function: whether anything exported or started reaches it.
    exported: Vec<Vec<bool>>,
}

impl Graph {
    pub(super) fn of(facts: &Facts) -> Self {
        let of = |roots: &dyn Fn(usize, &ModuleFacts) -> Vec<u32>| {
            facts.modules.iter().enumerate().map(|(index, module)| reach(module, roots(index, module))).collect()
        };
        let exports = |module: &ModuleFacts| module.exported_functions.values().copied().collect::<Vec<u32>>();
        let exported = |_: usize, module: &ModuleFacts| exports(module).into_iter().chain(module.start).collect();
        let found = |lifted: &Lifted| facts.modules.get(lifted.module)?.exported(&lifted.export);
        let all_found = facts.lifted_unknown == 0 && facts.lifted.iter().all(|lifted| found(lifted).is_some());
        let lifted = |index: usize, module: &ModuleFacts| {
            // Where it is not known what is lifted, or another module may call this one, everything that it exports counts.
            let others = facts.modules.iter().enumerate().filter(|(other, _)| *other != index);
            if !all_found || others.into_iter().any(|(_, module)| module.imported_functions > 0) {
                return exports(module);
            }
            facts.lifted.iter().filter(|lifted| lifted.module == index).filter_map(found).collect()
        };
        Self { lifted: of(&lifted), exported: of(&exported) }
    }

    /// Whether the host can reach a function through a hook.
    pub(super) fn hooks_reach(&self, module: usize, function: u32) -> bool {
        at(&self.lifted, module, function)
    }

    /// Whether anything reaches it.
    pub(super) fn is_reached(&self, module: usize, function: u32) -> bool {
        at(&self.exported, module, function)
    }
}

fn at(all: &[Vec<bool>], module: usize, function: u32) -> bool {
    all.get(module).and_then(|functions| functions.get(function as usize)).copied().unwrap_or(false)
}

fn reach(module: &ModuleFacts, roots: Vec<u32>) -> Vec<bool> {
    let count = (module.imported_functions as usize).saturating_add(module.code.len());
    let mut seen = vec![false; count];
    let mut open = roots;
    let mut tables = false;
    while let Some(function) = open.pop() {
        match seen.get_mut(function as usize) {
            Some(seen) if !*seen => *seen = true,
            _ => continue,
        }
        let Some(facts) = module.function(function) else { continue };
        open.extend(&facts.calls);
        if facts.indirect_calls > 0 && !tables {
            tables = true;
            open.extend(&module.elements);
        }
    }
    seen
}

/// Groups of functions that call each other directly, or themselves. Tarjan's algorithm without recursion: the graph is not
/// trusted.
pub(super) fn cycles(module: &ModuleFacts) -> Vec<Vec<u32>> {
    let first = module.imported_functions;
    let count = module.code.len();
    let callees = |node: usize| module.code[node].calls.iter().filter_map(|callee| callee.checked_sub(first));
    let mut state = Tarjan { index: vec![u32::MAX; count], low: vec![0; count], on: vec![false; count], next: 0 };
    let (mut stack, mut found) = (Vec::new(), Vec::new());
    for root in 0..count {
        if state.index[root] != u32::MAX {
            continue;
        }
        let mut work = vec![(root, callees(root).collect::<Vec<_>>())];
        state.enter(root, &mut stack);
        while let Some((node, rest)) = work.last_mut() {
            let node = *node;
            match rest.pop().map(|callee| callee as usize).filter(|callee| *callee < count) {
                Some(callee) if state.index[callee] == u32::MAX => {
                    state.enter(callee, &mut stack);
                    work.push((callee, callees(callee).collect()));
                }
                Some(callee) => {
                    if state.on[callee] {
                        state.low[node] = state.low[node].min(state.index[callee]);
                    }
                }
                None if !rest.is_empty() => {}
                None => {
                    work.pop();
                    if let Some((parent, _)) = work.last() {
                        state.low[*parent] = state.low[*parent].min(state.low[node]);
                    }
                    if state.low[node] == state.index[node] {
                        let group = state.leave(node, &mut stack);
                        if group.len() > 1 || callees(node).any(|callee| callee as usize == node) {
                            found.push(group.into_iter().map(|node| node as u32 + first).collect());
                        }
                    }
                }
            }
        }
    }
    found
}

struct Tarjan {
    index: Vec<u32>,
    low: Vec<u32>,
    on: Vec<bool>,
    next: u32,
}

impl Tarjan {
    fn enter(&mut self, node: usize, stack: &mut Vec<usize>) {
        self.index[node] = self.next;
        self.low[node] = self.next;
        self.next += 1;
        self.on[node] = true;
        stack.push(node);
    }

    fn leave(&mut self, node: usize, stack: &mut Vec<usize>) -> Vec<usize> {
        let mut group = Vec::new();
        while let Some(member) = stack.pop() {
            self.on[member] = false;
            group.push(member);
            if member == node {
                break;
            }
        }
        group.reverse();
        group
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::facts::FunctionFacts;

    fn module(calls: &[&[u32]]) -> ModuleFacts {
        let code = calls.iter().map(|calls| FunctionFacts { calls: calls.to_vec(), ..FunctionFacts::default() });
        ModuleFacts { code: code.collect(), functions: calls.len() as u32, ..ModuleFacts::default() }
    }

    #[test]
    fn cycles_are_found() {
        assert!(cycles(&module(&[&[1, 2], &[2], &[]])).is_empty());
        assert_eq!(cycles(&module(&[&[1], &[2], &[0]])), [[0, 1, 2]]);
        assert_eq!(cycles(&module(&[&[1], &[1], &[3], &[2, 9]])).len(), 2);
        let long: Vec<Vec<u32>> = (1..=20_000).map(|next| vec![next]).collect();
        let long: Vec<&[u32]> = long.iter().map(Vec::as_slice).collect();
        assert!(cycles(&module(&long)).is_empty());
    }

    #[test]
    fn what_is_reached() {
        assert_eq!(reach(&module(&[&[1], &[], &[1]]), vec![0, 77]), [true, true, false]);
        let mut tables = module(&[&[], &[], &[]]);
        tables.code[0].indirect_calls = 1;
        tables.elements = vec![2];
        assert_eq!(reach(&tables, vec![0]), [true, false, true]);
    }
}
