//! What a policy file says about trust: `[trust]`.

use serde::{Deserialize, Serialize};

/// The `[trust]` table.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrustPolicy {}
