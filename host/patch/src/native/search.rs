//! What the probe compares a patch's numbers with: a formula of the kernels, or the search for least squared error.

use super::formula;
use half::bf16;
use kit::mse::{FLOOR, Panel, Search, panel_scales};
use kit::settings::MseSettings;
use patchhost_kernels::profile::Profile;
use patchhost_kernels::source::Source;
use patchhost_runtime::hooks::{
    ActivationRule, BlockQuant, Blocks, CastRule, Consumer, Contract, Decision, Edges, Floor, HookCause, HookError,
    ModelInfo, Needs, RowPanel, ScaleFormat, Scheme, TensorInfo,
};

/// Where the expected numbers come from.
pub enum Reference {
    /// A formula of amax, in the kernels, which share no code with any patch.
    Formula(Profile, Scheme),
    /// The search for least squared error: the source of `fp8_block_mse`, compiled natively. It finds what a component
    /// does otherwise than its source says; the search itself is proved right by that source's own tests.
    Search(Search),
}

/// Rows in one read of the native search. Its sums do not depend on it.
const ROWS: u32 = 16;

impl Reference {
    /// The reference for a scheme that a patch with these settings declares. None: its recipe is its own, and nothing here
    /// computes it.
    pub fn of(settings: &[(String, String)], scheme: &Scheme) -> Option<Self> {
        if scheme.needs == Needs::Rows {
            return search(settings, scheme).map(Self::Search);
        }
        formula::profile_of(scheme).map(|profile| Self::Formula(profile, scheme.clone()))
    }

    /// The formula, if it is one.
    pub fn formula(&self) -> Option<Profile> {
        match self {
            Self::Formula(profile, _) => Some(*profile),
            Self::Search(_) => None,
        }
    }

    fn numbers(&self, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        match self {
            Self::Formula(profile, scheme) => Ok(formula::expected(*profile, scheme, amax)),
            Self::Search(_) => Err(Self::fail("it needs rows".to_owned())),
        }
    }

    fn fail(why: String) -> HookError {
        let next = "compare with a profile that has a reference".to_owned();
        HookError { patch: "native".to_owned(), call: "`scales`".to_owned(), cause: HookCause::Unsupported, why, next }
    }
}

/// The search that these settings mean, if the scheme is the one that belongs to them.
fn search(settings: &[(String, String)], scheme: &Scheme) -> Option<Search> {
    let settings = MseSettings::parse(settings.iter().map(|(key, value)| (key.as_str(), value.as_str()))).ok()?;
    let format = if settings.common.pow2 { ScaleFormat::Ue8m0 } else { ScaleFormat::F32 };
    let floor = Floor { eps: FLOOR.eps, zero_below: FLOOR.zero_below, zero_scale: FLOOR.zero_scale };
    let block = (settings.common.block.0 as usize, settings.common.block.1 as usize);
    let same = scheme.profile == "mse"
        && (scheme.block_rows, scheme.block_cols) == block
        && scheme.cast.format == format
        && scheme.cast.cast == CastRule::Reciprocal
        && scheme.cast.edges == Edges::Strict
        && scheme.cast.contract == Contract::Clip(settings.clip)
        && scheme.cast.floor == floor
        && scheme.cast.round_bf16;
    same.then(|| Search::new(&settings))
}

impl BlockQuant for Reference {
    fn name(&self) -> &str {
        "native"
    }
    fn decide(&self, _: &ModelInfo, _: &Consumer, tensors: &[TensorInfo]) -> Result<Vec<Decision>, HookError> {
        Ok(tensors.iter().map(|_| Decision::Keep("a reference decides nothing".to_owned())).collect())
    }
    fn activation(&self, _: &ModelInfo) -> Result<Option<ActivationRule>, HookError> {
        Ok(None)
    }
    fn scales(&self, _: &Blocks<'_>, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.numbers(amax)
    }
    fn scales_with_moments(&self, _: &Blocks<'_>, amax: &[f32], _: &[f32]) -> Result<Vec<f32>, HookError> {
        self.numbers(amax)
    }
    fn panel_scales(&self, b: &Blocks<'_>, panel: &RowPanel, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        let Self::Search(search) = self else { return self.numbers(amax) };
        let rows = panel.data.len() / (panel.cols * panel.elem.size()).max(1);
        let source = Source::new(&panel.data, panel.elem, rows, panel.cols).map_err(|e| Self::fail(e.to_string()))?;
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let lent = Panel {
            tensor: b.tensor,
            first_block: small(b.first_block),
            rows: small(panel.rows),
            cols: small(panel.cols),
            block_cols: small(b.block_cols),
            max_rows: ROWS,
        };
        let mut row = vec![0f32; panel.cols];
        let read = |first: u32, n: u32| {
            let mut bits = Vec::with_capacity(n as usize * panel.cols);
            for at in first..first.saturating_add(n) {
                source.row_f32(panel.first_row + at as usize, true, &mut row);
                bits.extend(row.iter().map(|x| bf16::from_f32(*x).to_bits()));
            }
            bits
        };
        panel_scales(search, &lent, amax, read).map_err(Self::fail)
    }
    fn activation_scales(&self, _: &[f32]) -> Result<Vec<f32>, HookError> {
        Err(Self::fail("a reference scales no activations".to_owned()))
    }
}
