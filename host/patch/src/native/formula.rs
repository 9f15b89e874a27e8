//! The kernels' formulas of the published profiles, in the place of a patch: its decisions, and scales without the sandbox.
//! A patch that declares a profile must agree with its formula bit for bit.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use patchhost_kernels::profile::Profile;
use patchhost_runtime::error::Refusal;
use patchhost_runtime::hooks::{
    ActivationRule, BlockQuant, Blocks, CastSpec, Consumer, Decision, HookCause, HookError, ModelInfo, Needs, RowPanel,
    ScaleFormat, Scheme, TensorInfo,
};

use crate::base::text;

/// The name that messages show.
const NAME: &str = "native";

/// A patch's decisions, with the scales that the formulas of the declared profiles give.
pub struct Formulas {
    decides: Arc<dyn BlockQuant>,
    recipes: HashMap<String, (Profile, CastSpec)>,
    activation: ActivationRule,
}

impl Formulas {
    /// `decisions` are what the patch decided: a tensor's name, and its scheme. Refused where no formula gives what a scheme
    /// declares.
    pub fn new<'a>(
        patch: Arc<dyn BlockQuant>,
        decisions: impl IntoIterator<Item = (&'a str, &'a Scheme)>,
    ) -> Result<Self, Refusal> {
        let mut recipes = HashMap::new();
        let mut first = None;
        for (tensor, scheme) in decisions {
            let profile = reproduced(patch.name(), tensor, scheme)?;
            first.get_or_insert((profile, scheme.cast.format));
            recipes.insert(tensor.to_string(), (profile, scheme.cast));
        }
        // Nothing quantized: nobody will ask for activations either.
        let (profile, format) = first.unwrap_or((Profile::VerlTorch, ScaleFormat::F32));
        let activation = ActivationRule { pow2_up: format == ScaleFormat::Ue8m0, ..profile.activation_rule() };
        Ok(Self { decides: patch, recipes, activation })
    }

    /// Names of the profiles whose formulas it uses, each once.
    pub fn profiles(&self) -> Vec<&'static str> {
        let names: BTreeSet<&str> = self.recipes.values().map(|(profile, _)| profile.name()).collect();
        names.into_iter().collect()
    }
}

/// The cast of a profile in the format and with the edges of a scheme. Whether f32 is first rounded to bf16 is the scheme's
/// own: it does not touch scales.
fn cast_of(profile: Profile, scheme: &Scheme) -> CastSpec {
    CastSpec { round_bf16: scheme.cast.round_bf16, ..profile.cast_spec(scheme.cast.format, scheme.cast.edges) }
}

/// The profile that a scheme declares, if the host has it and the scheme is that profile's: then its numbers are known.
pub fn profile_of(scheme: &Scheme) -> Option<Profile> {
    let named: Profile = scheme.profile.parse().ok()?;
    (cast_of(named, scheme) == scheme.cast).then_some(named)
}

/// The scale that a profile's formula gives for each `amax` (the largest magnitude of a block).
pub fn expected(profile: Profile, scheme: &Scheme, amax: &[f32]) -> Vec<f32> {
    amax.iter().map(|amax| profile.given(scheme.cast.format, scheme.cast.edges, *amax)).collect()
}

/// The profile whose formula gives what a scheme declares; else why there is none.
fn reproduced(patch: &str, tensor: &str, scheme: &Scheme) -> Result<Profile, Refusal> {
    let next = "compare with --against bf16, or with another component";
    let what = || format!("--against native for patch `{patch}`");
    let needs = match scheme.needs {
        Needs::Amax => None,
        Needs::Moments => Some("sums of squares"),
        Needs::Rows => Some("the rows themselves"),
    };
    if let Some(needs) = needs {
        let why =
            format!("for tensor `{tensor}` it needs {needs}; the host's own profiles know each block's amax only");
        return Err(Refusal::new(what(), why, next));
    }
    let profile = scheme.profile.parse::<Profile>().map_err(|e| {
        let why = format!("for tensor `{tensor}` it declares a profile that the host does not have: {e}");
        Refusal::new(what(), why, next)
    })?;
    let native = cast_of(profile, scheme);
    if native != scheme.cast {
        let why = format!(
            "for tensor `{tensor}` it declares profile {profile} with a cast, floor or contract of its own: {}, the \
             host's is {}",
            text::answer(&scheme.cast),
            text::answer(&native)
        );
        return Err(Refusal::new(what(), why, next));
    }
    Ok(profile)
}

impl BlockQuant for Formulas {
    fn name(&self) -> &str {
        NAME
    }

    fn decide(&self, model: &ModelInfo, reader: &Consumer, tensors: &[TensorInfo]) -> Result<Vec<Decision>, HookError> {
        self.decides.decide(model, reader, tensors)
    }

    fn activation(&self, _: &ModelInfo) -> Result<Option<ActivationRule>, HookError> {
        Ok(Some(self.activation))
    }

    fn scales(&self, blocks: &Blocks<'_>, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        let Some((profile, cast)) = self.recipes.get(blocks.tensor) else {
            return Err(unsupported("scales", format!("tensor `{}` was not in the decision", blocks.tensor)));
        };
        Ok(amax.iter().map(|amax| profile.given(cast.format, cast.edges, *amax)).collect())
    }

    fn scales_with_moments(&self, _: &Blocks<'_>, _: &[f32], _: &[f32]) -> Result<Vec<f32>, HookError> {
        Err(unsupported("scales-with-moments", "native profiles need amax only".to_string()))
    }

    fn panel_scales(&self, _: &Blocks<'_>, _: &RowPanel, _: &[f32]) -> Result<Vec<f32>, HookError> {
        Err(unsupported("panel-scales", "native profiles need amax only".to_string()))
    }

    fn activation_scales(&self, _: &[f32]) -> Result<Vec<f32>, HookError> {
        Err(unsupported("activation-scales", "native profiles give a rule".to_string()))
    }
}

fn unsupported(call: &str, why: String) -> HookError {
    HookError {
        patch: NAME.to_string(),
        call: format!("`{call}`"),
        cause: HookCause::Unsupported,
        why,
        next: "please report this".to_string(),
    }
}
