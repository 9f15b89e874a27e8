//! What the operator lets a refit do, whatever its patches say.

/// The operator's word about a refit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RefitRules {
    /// Weights that are NaN or infinite.
    pub non_finite: NonFinite,
    /// Placements of a loader map that the host's own map has elsewhere.
    pub differs: Differs,
}

/// What becomes of a refit with weights that are NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NonFinite {
    /// It is refused, whatever a patch's scheme says of such values.
    #[default]
    Refuse,
    /// They are counted, and published as the scheme says. FP8 codes that are NaN are refused all the same: products have
    /// no NaN code.
    Allow,
}

/// What becomes of a placement that differs from the host's own map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Differs {
    /// It is followed and remarked.
    #[default]
    Remark,
    /// The refit is refused.
    Refuse,
}
