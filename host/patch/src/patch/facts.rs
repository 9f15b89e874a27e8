//! Who vouches for a component.

use crate::base::Digest;
use serde::Serialize;

/// Who vouches for a component: the gate finds it out, the board writes it to the ledger.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Facts {
    /// Digest of the lock file that admitted it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<Digest>,
    /// Name of its entry there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// Signers that count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub signers: Vec<String>,
}
