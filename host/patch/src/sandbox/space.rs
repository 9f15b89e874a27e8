//! Address space: the slots of the pool reserve it, 4 GiB for each memory of a guest, without using memory. A process that may
//! not have as much (`ulimit -v`) learns it here, not from an `mmap` that fails.

use crate::base::{Code, Exit};
use patchhost_runtime::error::Refusal;

/// What one linear memory reserves: all that 32 bits can address, so that no access needs a check, and its guard region.
const MEMORY_BYTES: u64 = (4 << 30) + (32 << 20);

/// The address space that this process may have is too small for the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("refused: {}", self.parts())]
pub struct AddressSpaceError {
    /// Bytes that the process may have.
    pub limit: u64,
    /// Bytes that it has and that the sandbox reserves, together.
    pub needed: u64,
    /// Memories of the pool.
    pub memories: u32,
}

const NEXT: &str = "remove the limit of address space (ulimit -v unlimited; prlimit --as=unlimited; LimitAS=infinity of systemd) \
                    and bound physical memory, as a container's memory limit does";

impl Exit for AddressSpaceError {
    fn exit(&self) -> Code {
        Code::Host
    }

    fn parts(&self) -> Refusal {
        let Self { limit, needed, memories } = self;
        let why = format!(
            "this process may have {limit} bytes of address space (ulimit -v {}), and the sandbox reserves {needed}: {memories} \
             memories of 4 GiB, so that no access of a patch needs a check (reserved, not used: physical memory is another matter)",
            limit / 1024
        );
        Refusal { what: "a sandbox".to_owned(), why, next: NEXT.to_owned() }
    }
}

/// Refuses a pool of so many memories where the limit of the process is below what it reserves.
pub(super) fn check(memories: u32) -> Result<(), AddressSpaceError> {
    #[cfg(target_os = "linux")]
    if let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::As).current {
        return within(limit, used(), memories);
    }
    let _ = memories;
    Ok(())
}

fn within(limit: u64, used: u64, memories: u32) -> Result<(), AddressSpaceError> {
    let needed = u64::from(memories).saturating_mul(MEMORY_BYTES).saturating_add(used);
    if limit >= needed { Ok(()) } else { Err(AddressSpaceError { limit, needed, memories }) }
}

/// Bytes of address space that the process has now; 0 where the system does not say.
#[cfg(target_os = "linux")]
fn used() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kib = size.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or_default().saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::within;

    #[test]
    fn a_limit_below_what_is_reserved_is_named_with_both_numbers() {
        assert_eq!(within(u64::MAX, 1 << 30, 192), Ok(()));
        let error = within(6_000_000 * 1024, 1 << 30, 192).expect_err("too small");
        let text = error.to_string();
        assert!(text.contains("ulimit -v 6000000") && text.contains(&error.needed.to_string()), "{text}");
        assert!(text.contains("\n  why: ") && text.contains("\n  next: ") && text.contains("unlimited"), "{text}");
        assert!(within(error.needed, 1 << 30, 192).is_ok() && within(error.needed - 1, 1 << 30, 192).is_err());
    }
}
