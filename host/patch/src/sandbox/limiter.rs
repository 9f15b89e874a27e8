//! The limit on all memories and tables of one store together. (wasmtime's own `StoreLimits` limit each memory by
//! itself, so a component with several could have several times the limit.)

use super::limits::Limits;
use wasmtime::ResourceLimiter;

/// Counts what a store holds and stops growth beyond the limit with a typed error.
pub(crate) struct Meter {
    limits: Limits,
    memory_bytes: usize,
    table_elements: usize,
    /// The largest memory that the guest asked for beyond the maximum that it declares itself. Such a request fails
    /// without a trap, but the guest usually traps next; then the message can say why.
    beyond_own_maximum: Option<(usize, usize)>,
}

/// A store wanted more than its limit.
#[derive(Debug, thiserror::Error)]
#[error("it wanted {wanted} {what}, and its limit `{limit_name}` is {limit}")]
pub(crate) struct LimitReached {
    wanted: usize,
    what: &'static str,
    limit_name: &'static str,
    limit: usize,
}

impl Meter {
    pub(super) fn new(limits: &Limits) -> Self {
        Self { limits: limits.clone(), memory_bytes: 0, table_elements: 0, beyond_own_maximum: None }
    }

    /// Wanted and declared bytes, if growing ever failed.
    pub(super) fn beyond_own_maximum(&self) -> Option<(usize, usize)> {
        self.beyond_own_maximum
    }

    /// Memory as it counts against the limit: a table element is a pointer on the host.
    fn sum(memory: usize, elements: usize) -> usize {
        memory.saturating_add(elements.saturating_mul(size_of::<usize>()))
    }

    fn check_sum(&self, memory: usize, elements: usize) -> wasmtime::Result<()> {
        let wanted = Self::sum(memory, elements);
        let limit = self.limits.memory_bytes;
        if wanted > limit {
            let what = "bytes of memory and tables together";
            return Err(wasmtime::Error::new(LimitReached { wanted, what, limit_name: "memory_bytes", limit }));
        }
        Ok(())
    }
}

impl ResourceLimiter for Meter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if let Some(max) = maximum.filter(|max| desired > *max) {
            self.beyond_own_maximum = Some((desired, max));
            return Ok(false);
        }
        let total = self.memory_bytes.saturating_sub(current).saturating_add(desired);
        self.check_sum(total, self.table_elements)?;
        self.memory_bytes = total;
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|max| desired > max) {
            return Ok(false);
        }
        let total = self.table_elements.saturating_sub(current).saturating_add(desired);
        let limit = self.limits.table_elements;
        if total > limit {
            let what = "table elements";
            return Err(wasmtime::Error::new(LimitReached {
                wanted: total,
                what,
                limit_name: "table_elements",
                limit,
            }));
        }
        self.check_sum(self.memory_bytes, total)?;
        self.table_elements = total;
        Ok(true)
    }

    fn instances(&self) -> usize {
        self.limits.instances
    }

    fn tables(&self) -> usize {
        self.limits.tables
    }

    fn memories(&self) -> usize {
        self.limits.memories
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_are_summed() {
        let limits = Limits { memory_bytes: 10 << 16, ..Limits::default() };
        let mut meter = Meter::new(&limits);
        assert!(meter.memory_growing(0, 6 << 16, None).expect("first memory fits"));
        let error = meter.memory_growing(0, 5 << 16, None).expect_err("11 pages in all");
        assert!(error.is::<LimitReached>(), "{error}");
        assert!(meter.memory_growing(0, 4 << 16, None).expect("second memory fits exactly"));
    }

    /// The real thing: two core instances of one component, each growing its own memory while it starts.
    #[test]
    fn two_memories_of_one_component_are_summed() {
        use crate::base::Function;
        use crate::sandbox::{Budget, Granted, Sandbox, Stats, run, store::new_store};
        let sandbox = Sandbox::new(1).expect("an engine");
        let limits = Limits::default();
        let started = |instances: usize| {
            let module = "(core module $m (memory 1) (func $s (drop (memory.grow (i32.const 600)))) (start $s))";
            let text = format!("(component {module} {})", "(core instance (instantiate $m))".repeat(instances));
            let bytes = wat::parse_str(text).expect("valid text");
            let component = wasmtime::component::Component::new(sandbox.engine(), bytes).expect("it compiles");
            let linker = wasmtime::component::Linker::new(sandbox.engine());
            let mut store = new_store(&sandbox, &limits, &Granted::default()).expect("a store");
            let budget: Budget = limits.setup_budget();
            run(&mut store, &Stats::default(), Function::Instantiate, &budget, |store| {
                linker.instantiate(store, &component)
            })
        };
        assert!(started(1).is_ok(), "39 MB of 64 MiB");
        let fault = started(2).expect_err("78 MB");
        assert!(fault.why.contains("memory_bytes"), "{fault}");
    }

    #[test]
    fn tables_count_too() {
        let limits = Limits { memory_bytes: 1 << 16, table_elements: 100_000, ..Limits::default() };
        let mut meter = Meter::new(&limits);
        assert!(meter.table_growing(0, 8_000, None).expect("64,000 bytes fit"));
        meter.memory_growing(0, 1 << 16, None).expect_err("a page more does not");
    }
}
