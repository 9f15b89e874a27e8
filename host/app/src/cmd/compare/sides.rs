//! The two sides: which argument is which, and the patches of each.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use patchhost_runtime::hooks::Decision;
use patchhost_runtime::refit::RefitHooks;

use super::super::args::PatchArgs;
use super::super::failure::{HostError, Result, UsageError};
use super::super::session::{LedgerRow, Load, Patches};
use super::{Against, Args};
use crate::compare::{CompareError, SideInfo, Unit};
use crate::native::Formulas;
use crate::patch::bundled::bundled;

/// What takes B's place.
#[derive(Debug, PartialEq, Eq)]
pub enum Other {
    Component(String),
    /// The host computes A's profile with its own formulas.
    Native,
    /// Nothing is quantized.
    Bf16,
}

/// Which of the positional arguments are components and which is the model.
#[derive(Debug, PartialEq, Eq)]
pub struct Named {
    a: String,
    pub other: Other,
    pub model: Option<PathBuf>,
}

/// A path that ends in .wasm, or the name of a bundled patch. A folder that has the name of a patch is the model.
fn is_component(name: &str) -> bool {
    let wasm = Path::new(name).extension().is_some_and(|x| x.eq_ignore_ascii_case("wasm"));
    !Path::new(name).is_dir() && (wasm || bundled(name).is_some())
}

impl Named {
    pub(super) fn parse(names: &[String], against: Option<Against>) -> Result<Self, UsageError> {
        let next = "write A.wasm B.wasm [MODEL], or A.wasm [MODEL] --against native (or bf16)";
        let components = names.iter().take_while(|n| is_component(n)).count();
        let (components, rest) = names.split_at(components);
        let refuse = |what: String, why: &str| Err(UsageError::new(format!("compare {what}"), why, next));
        let (a, other) = match (components, against) {
            ([], _) => {
                let first = names.first().map(|n| n.escape_debug().to_string()).unwrap_or_default();
                return refuse(
                    first,
                    "the first argument must be a component: a path that ends in .wasm, or a bundled patch",
                );
            }
            ([a], None) => return refuse(a.escape_debug().to_string(), "there is nothing to compare it with"),
            ([a], Some(Against::Native)) => (a, Other::Native),
            ([a], Some(Against::Bf16)) => (a, Other::Bf16),
            ([a, b], None) => (a, Other::Component(b.clone())),
            ([_, b], Some(_)) => {
                return refuse(b.escape_debug().to_string(), "it is a second component, and --against takes its place");
            }
            _ => return refuse(names.join(" ").escape_debug().to_string(), "only two components can be compared"),
        };
        match rest {
            [] => Ok(Self { a: a.clone(), other, model: None }),
            [model] => Ok(Self { a: a.clone(), other, model: Some(model.into()) }),
            [first, ..] => refuse(
                names.join(" ").escape_debug().to_string(),
                &format!("`{}` is no component, so it is the model, and nothing may follow it", first.escape_debug()),
            ),
        }
    }

    fn component(&self, side: usize) -> Option<&str> {
        match (&self.other, side) {
            (_, 0) => Some(&self.a),
            (Other::Component(b), _) => Some(b),
            _ => None,
        }
    }

    fn components(&self) -> usize {
        if matches!(self.other, Other::Component(_)) { 2 } else { 1 }
    }
}

/// One of the two quantizations.
pub struct Side {
    pub info: SideInfo,
    /// Its loader, its quantizer and the treatment of activations. No layout and no observer: nothing is published.
    pub hooks: RefitHooks,
    patches: Option<Patches>,
}

impl Side {
    /// Loads component `side` with its settings.
    pub(super) fn load(args: &Args, named: &Named, side: usize, architecture: &str, plain: bool) -> Result<Self> {
        if args.sha256.len() > named.components() {
            return Err(UsageError::new(
                format!("{} --sha256 for {} component(s)", args.sha256.len(), named.components()),
                "the n-th --sha256 is the digest of the n-th component",
                "give at most one --sha256 per component, in the same order",
            )
            .into());
        }
        let own = if side == 0 { &args.set_a } else { &args.set_b };
        let patch_args = PatchArgs {
            isolate: false,
            components: named.component(side).map(str::to_string).into_iter().collect(),
            settings: merged(&args.set, own),
            sha256: args.sha256.get(side).cloned().into_iter().collect(),
            // A plain file has no runtime tensors that a loader map could fill.
            no_default_patches: args.no_default_patches || plain,
            trust: args.trust.clone(),
        };
        let patches = Patches::load(Load::new(&patch_args, architecture))?;
        let (patch, quant) = patches
            .require_quant(if side == 0 { "compare (side A)" } else { "compare (side B)" })
            .map_err(|e| e.with_next("compare patches that quantize, for example fp8_block.wasm"))?;
        let info = SideInfo {
            kind: "patch",
            name: patch.info().name.clone(),
            version: Some(patch.info().version.clone()),
            sha256: Some(patch.digest().hex()),
            generation: Some(patch.generation().hex()),
            settings: patch.settings().iter().map(|(k, v)| format!("{k}={v}")).collect(),
        };
        let hooks = RefitHooks {
            loader: patches.set().loader_map(),
            quant: Some(quant),
            activation: args.fp8_activation.into(),
            rules: patches.policy().refit_rules(),
            ..RefitHooks::default()
        };
        Ok(Self { info, hooks, patches: Some(patches) })
    }

    /// The same decisions, with scales that the host computes itself.
    pub fn native(&self, units: &[Unit], decisions: &[Decision]) -> Result<Self> {
        let quant = self.hooks.quant.clone();
        let patch = quant.ok_or_else(|| HostError::bug("compare --against native", "side A does not quantize"))?;
        let schemes = units.iter().zip(decisions).filter_map(|(unit, decision)| match decision {
            Decision::Quantize(scheme) => Some((unit.info.name.as_str(), scheme)),
            Decision::Keep(_) => None,
        });
        let native = Formulas::new(patch, schemes).map_err(CompareError::Refused)?;
        let profiles = native.profiles().join(", ");
        let info = SideInfo {
            kind: "native",
            name: format!("native: the host's own {profiles}, by A's decisions"),
            ..self.nobody()
        };
        let hooks = RefitHooks { quant: Some(Arc::new(native)), ..self.hooks.clone() };
        Ok(Self { info, hooks, patches: None })
    }

    /// A side that quantizes nothing.
    pub fn unquantized(&self) -> Self {
        let info = SideInfo { kind: "bf16", name: "the unquantized weights".to_string(), ..self.nobody() };
        Self { info, hooks: RefitHooks { quant: None, ..self.hooks.clone() }, patches: None }
    }

    fn nobody(&self) -> SideInfo {
        SideInfo { kind: "", name: String::new(), version: None, sha256: None, generation: None, settings: Vec::new() }
    }

    pub fn ledger(&self) -> Vec<LedgerRow> {
        self.patches.as_ref().map(Patches::ledger).unwrap_or_default()
    }

    pub fn print_ledger(&self, label: &str) {
        if let Some(patches) = &self.patches {
            out!("\n{label} ");
            patches.print_ledger();
        }
    }
}

/// Settings of both sides, but those that the side sets itself.
fn merged(both: &[String], own: &[String]) -> Vec<String> {
    let key = |s: &String| s.split_once('=').map_or(s.clone(), |(k, _)| k.to_string());
    let kept = both.iter().filter(|s| !own.iter().any(|o| key(o) == key(s)));
    kept.chain(own).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_told_apart() {
        let parse = |names: &[&str], against| {
            Named::parse(&names.iter().map(|n| n.to_string()).collect::<Vec<_>>(), against).map_err(|e| e.to_string())
        };
        let model = |m: &str| Some(PathBuf::from(m));
        let named = |a: &str, other, model| Named { a: a.into(), other, model };
        let b = || Other::Component("fp8_block_mse".into());
        assert_eq!(parse(&["fp8_block", "fp8_block_mse"], None), Ok(named("fp8_block", b(), None)));
        assert_eq!(parse(&["x/y.wasm", "fp8_block_mse", "m"], None), Ok(named("x/y.wasm", b(), model("m"))));
        assert_eq!(
            parse(&["fp8_block.wasm", "w.safetensors"], Some(Against::Native)),
            Ok(named("fp8_block.wasm", Other::Native, model("w.safetensors")))
        );
        for (names, against) in [
            (&["m"][..], None),
            (&["fp8_block"], None),
            (&["fp8_block", "m"], None),
            (&["fp8_block", "fp8_block"], Some(Against::Bf16)),
            (&["fp8_block", "fp8_block", "fp8_block"], None),
            (&["fp8_block", "m", "fp8_block"], Some(Against::Bf16)),
        ] {
            assert!(parse(names, against).is_err_and(|e| e.contains("next: write A.wasm")), "{names:?}");
        }
    }

    #[test]
    fn a_sides_own_settings_win() {
        let s = |v: &[&str]| v.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        assert_eq!(
            merged(&s(&["profile=hf", "block=64x64"]), &s(&["profile=slime"])),
            s(&["block=64x64", "profile=slime"])
        );
        assert_eq!(merged(&s(&["profile=hf"]), &[]), s(&["profile=hf"]));
    }
}
