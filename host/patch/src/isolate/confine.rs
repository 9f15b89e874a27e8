//! What a child gives up before it hears of a guest.

use crate::base::Grants;

/// Memory that a child may have besides that of its guests: the program itself, and the compiler at work.
#[cfg(target_os = "linux")]
const MEMORY_BYTES: u64 = 1 << 30;

/// No core dumps, bounded memory, and no file or port but what was granted. Whether the kernel knows Landlock or not, the
/// child goes on: it is the second fence, not the first.
#[cfg(target_os = "linux")]
pub(super) fn confine(grants: &Grants, memory_bytes: usize) {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = |resource, most: u64| setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) });
    // Written memory and not address space: the engine reserves terabytes of that and uses little.
    let kept = [limit(Resource::Core, 0), limit(Resource::Data, MEMORY_BYTES + 4 * memory_bytes as u64)];
    if kept.iter().any(Result::is_err) {
        tracing::warn!("the child could not limit itself");
    }
    if !files(grants) {
        tracing::debug!("this kernel does not know Landlock");
    }
}

#[cfg(target_os = "linux")]
fn files(grants: &Grants) -> bool {
    use crate::base::DirMode;
    use landlock::{
        ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, path_beneath_rules,
    };
    let abi = ABI::V4;
    let dirs = |mode| grants.wasi.iter().flat_map(|w| &w.dirs).filter(move |d| d.mode == mode).map(|d| &d.host);
    let restricted = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(abi)))
        .and_then(|rules| rules.create())
        .and_then(|rules| rules.add_rules(path_beneath_rules(dirs(DirMode::Ro), AccessFs::from_read(abi))))
        .and_then(|rules| rules.add_rules(path_beneath_rules(dirs(DirMode::Rw), AccessFs::from_all(abi))))
        .and_then(|rules| rules.restrict_self());
    restricted.is_ok_and(|status| status.ruleset != RulesetStatus::NotEnforced)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn confine(_: &Grants, _: usize) {}
