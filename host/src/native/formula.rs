//! The host's own formulas in the place of a patch: the same decisions, scales without the sandbox. A patch that claims a
//! published profile must agree with it bit for bit.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use patchhost_kernels::profile::Profile;
use patchhost_runtime::hooks::{
    ActivationRule, BlockQuant, Blocks, CastSpec, Consumer, Decision, HookCause, HookError, ModelInfo, Needs, RowPanel,
    ScaleFormat, Scheme, TensorInfo,
};

use super::error::{Result, refused};

/// The name that messages show.
const NAME: &str = "native";

/// A patch's decisions with native scales.
pub struct Native {
    decides: Arc<dyn BlockQuant>,
    recipes: HashMap<String, (Profile, CastSpec)>,
    activation: ActivationRule,
}

impl Native {
    /// Of a patch and what it decided. Refused where no native formula gives what a scheme declares.
    pub fn new<'a>(
        patch: Arc<dyn BlockQuant>,
        decisions: impl IntoIterator<Item = (&'a str, &'a Scheme)>,
    ) -> Result<Self> {
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

    /// Names of the profiles it computes, each once.
    pub fn profiles(&self) -> Vec<&'static str> {
        let names: BTreeSet<&str> = self.recipes.values().map(|(profile, _)| profile.name()).collect();
        names.into_iter().collect()
    }
}

/// The native profile that does what the scheme says.
fn reproduced(patch: &str, tensor: &str, scheme: &Scheme) -> Result<Profile> {
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
        return Err(refused(what(), why, next));
    }
    let profile = scheme.profile.parse::<Profile>().map_err(|e| {
        refused(what(), format!("for tensor `{tensor}` it declares a profile that the host does not have: {e}"), next)
    })?;
    let native =
        CastSpec { round_bf16: scheme.cast.round_bf16, ..profile.cast_spec(scheme.cast.format, scheme.cast.edges) };
    if native != scheme.cast {
        let why = format!(
            "for tensor `{tensor}` it declares profile {profile} with a cast, floor or contract of its own: {:?}, the \
             host's is {native:?}",
            scheme.cast
        );
        return Err(refused(what(), why, next));
    }
    Ok(profile)
}

impl BlockQuant for Native {
    fn name(&self) -> &str {
        NAME
    }

    fn decide(
        &self,
        model: &ModelInfo,
        reader: &Consumer,
        tensors: &[TensorInfo],
    ) -> std::result::Result<Vec<Decision>, HookError> {
        self.decides.decide(model, reader, tensors)
    }

    fn activation(&self, _: &ModelInfo) -> std::result::Result<Option<ActivationRule>, HookError> {
        Ok(Some(self.activation))
    }

    fn scales(&self, blocks: &Blocks<'_>, amax: &[f32]) -> std::result::Result<Vec<f32>, HookError> {
        let Some((profile, cast)) = self.recipes.get(blocks.tensor) else {
            return Err(unsupported("scales", format!("tensor `{}` was not in the decision", blocks.tensor)));
        };
        Ok(amax.iter().map(|amax| profile.given(cast.format, cast.edges, *amax)).collect())
    }

    fn scales_with_moments(&self, _: &Blocks<'_>, _: &[f32], _: &[f32]) -> std::result::Result<Vec<f32>, HookError> {
        Err(unsupported("scales-with-moments", "native profiles need amax only".to_string()))
    }

    fn panel_scales(&self, _: &Blocks<'_>, _: &RowPanel, _: &[f32]) -> std::result::Result<Vec<f32>, HookError> {
        Err(unsupported("panel-scales", "native profiles need amax only".to_string()))
    }

    fn activation_scales(&self, _: &[f32]) -> std::result::Result<Vec<f32>, HookError> {
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
