//! Who said that these bytes may run: the lock file, grants, signatures, revocations.

mod policy;

pub use policy::TrustPolicy;
