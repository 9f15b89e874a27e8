//! The checks of block quantization, in order.

use super::run::{Found, Probe};
use super::{calls, hidden, matrix, rows, scalar, synthetic, twin};
use crate::base::Hook;
use crate::base::text::answer;
use crate::native::{self, Reference};
use crate::patch::Patch;
use patchhost_kernels::profile::Profile;
use patchhost_runtime::hooks::{BlockQuant, Decision, Edges, Needs, Role, Scheme, TensorInfo};
use patchhost_runtime::quantize::edges_name;
use std::sync::Arc;

const HOOK: Option<Hook> = Some(Hook::BlockQuant);

/// Different ways to quantize that are tried; a patch has one or two.
const SCHEMES: usize = 4;

/// Makes all checks of block quantization. Gives the name of the profile whose numbers the patch was compared with.
pub(super) fn run(probe: &mut Probe<'_>, patch: &Arc<Patch>, quant: Arc<dyn BlockQuant>) -> Option<String> {
    let quant: Arc<dyn BlockQuant> = Arc::new(probe.bounded(quant));
    let mut schemes = Vec::new();
    let about = "the same tensors get the same decisions, in any order; what is sensitive is kept";
    probe.check("decisions", HOOK, about, |_| decisions(patch, &*quant, &mut schemes));
    let about = "scales of activations are those of its rule, or finite, positive and in proportion";
    let named = schemes.iter().find_map(|s| Some((native::profile_of(s)?, s.cast.format)));
    probe.check("activation", HOOK, about, |options| calls::activation(patch, &quant, options.random, named));
    let mut named = None;
    for scheme in schemes.iter().take(SCHEMES) {
        let reference = Reference::of(patch.settings(), scheme);
        if reference.is_some() {
            named.get_or_insert_with(|| scheme.profile.clone());
        }
        let asked = Asked { patch, quant: &*quant, scheme, reference: reference.as_ref() };
        match scheme.needs {
            Needs::Rows => asked.rows(probe),
            Needs::Amax | Needs::Moments => asked.amax(probe),
        }
    }
    if schemes.is_empty() {
        probe.skip("scales", HOOK, "scales of blocks", "it quantizes none of the tensors of a Qwen3-MoE");
    }
    let about = "layers and experts that are alike are treated alike";
    probe.check("apart", HOOK, about, |options| hidden::apart(patch, &*quant, options.layers));
    if let Some(twin) = twin::of(probe.options) {
        let about = "the same decisions in code that was compiled without optimization";
        probe.check("twin decisions", HOOK, about, |_| twin::decisions(patch, &*quant, &*twin));
    }
    named
}

/// One way to quantize that a patch decided on, and what it is compared with.
struct Asked<'a> {
    patch: &'a Arc<Patch>,
    quant: &'a dyn BlockQuant,
    scheme: &'a Scheme,
    reference: Option<&'a Reference>,
}

impl Asked<'_> {
    fn contract(&self, probe: &mut Probe<'_>) {
        let about = "the native cast proves every scale against the contract that the scheme declares";
        probe.check("contract", HOOK, about, |options| matrix::contract(self.quant, self.scheme, options));
    }

    fn differential(&self, probe: &mut Probe<'_>) {
        let Some(reference) = self.reference else { return };
        let about = "matrices of odd shapes, FP8 bytes and scales, against native code";
        probe.check("differential", HOOK, about, |options| {
            matrix::differential(self.quant, self.scheme, reference, options)
        });
    }

    fn twin(&self, probe: &mut Probe<'_>) {
        let Some(twin) = twin::of(probe.options) else { return };
        let about = "the same scales in another instance, of code that was compiled without optimization";
        probe.check("twin", HOOK, about, |options| twin::scales(self.quant, &*twin, self.scheme, options));
    }

    fn amax(&self, probe: &mut Probe<'_>) {
        let Self { patch, quant, scheme, reference } = *self;
        self.contract(probe);
        match reference.and_then(Reference::formula) {
            Some(profile) => {
                let about = "bit for bit what the named profile gives, for every class of edges and for random values";
                probe.check("vectors", HOOK, about, |options| scalar::golden(quant, scheme, profile, options));
            }
            None if scheme.profile.parse::<Profile>().is_ok() => {
                let about = "the scheme is the one of the profile that it names";
                probe.check("vectors", HOOK, about, |_| {
                    Err(format!(
                        "it names profile `{}`, and its scheme is not that profile's: {}",
                        scheme.profile,
                        answer(&scheme.cast)
                    ))
                });
            }
            None => {
                probe.skip("vectors", HOOK, "golden vectors", "it has a recipe of its own, without a named profile")
            }
        }
        self.differential(probe);
        let about = "scales are finite, positive, grow with amax, and double when it doubles";
        probe.check("properties", HOOK, about, |options| {
            scalar::properties(quant, scheme, options.seed, options.random)
        });
        let about = "a block's scale depends on that block: not on its neighbors, its place, or how calls are cut";
        probe.check("locality", HOOK, about, |options| scalar::locality(quant, scheme, options.seed));
        let about = "the same amax gets the same scale whatever the tensor is called";
        probe.check("names", HOOK, about, |options| scalar::names(quant, scheme, reference, options.seed));
        let about = "no layer, no expert and no number of blocks is special";
        probe.check("places", HOOK, about, |options| {
            hidden::places(quant, scheme, reference, options.layers, options.seed)
        });
        if let Some(known) = &probe.options.constants {
            let about = "no number and no word that stands in the component is special";
            probe.check("constants", HOOK, about, |_| hidden::constants(quant, scheme, reference, known));
        }
        let about = "questions that no refit asks are answered or refused, without a trap, and change nothing";
        probe.check("odd questions", HOOK, about, |options| hidden::lies(quant, scheme, options.seed));
        let about = "several instances at once give the same answers";
        probe.check("instances", HOOK, about, |options| calls::instances(patch, quant, scheme, options.seed));
        self.twin(probe);
        let until = probe.until();
        let about = "the answers after many calls are the first ones";
        probe
            .check("history", HOOK, about, |options| calls::history(quant, scheme, options.calls, options.seed, until));
        let about = "fuel grows in proportion to the blocks, and stays below its limit";
        probe.check("fuel", HOOK, about, |_| calls::fuel(patch, quant, scheme));
    }

    fn rows(&self, probe: &mut Probe<'_>) {
        let Self { patch, quant, scheme, reference } = *self;
        let named = reference.is_some();
        self.contract(probe);
        match reference {
            Some(reference) => {
                let about = "bit for bit what its own source gives natively, for values that mislead a search";
                probe.check("vectors", HOOK, about, |options| rows::vectors(quant, scheme, reference, options));
            }
            None => {
                probe.skip("vectors", HOOK, "golden vectors", "it has a recipe of its own, without a named profile")
            }
        }
        self.differential(probe);
        let about = "a scale is of magnitudes, grows fourfold with them, and is of its own block";
        probe.check("properties", HOOK, about, |options| rows::properties(quant, scheme, named, options));
        let about = "the same rows get the same scales when they are asked about again";
        probe.check("determinism", HOOK, about, |options| matrix::again(quant, scheme, options.matrix, options.seed));
        self.twin(probe);
        let about = "what the tensor is called, and what was asked before, does not matter";
        probe.check("history", HOOK, about, |options| rows::history(quant, scheme, named, options));
        let about = "fuel stays below its limit";
        probe.check("fuel", HOOK, about, |_| rows::fuel(patch, quant, scheme));
    }
}

/// Whether decisions are the same each time and in any order. The different schemes among them are put into `schemes`.
fn decisions(patch: &Patch, quant: &dyn BlockQuant, schemes: &mut Vec<Scheme>) -> Result<Found, String> {
    let (model, reader, mut tensors) = (synthetic::model(patch), synthetic::reader(), synthetic::tensors());
    let decide = |tensors: &[TensorInfo]| quant.decide(&model, &reader, tensors).map_err(|e| e.to_string());
    let first = decide(&tensors)?;
    let mut asked = first.len();
    let same = |what: &str, name: &str, a: &Decision, b: &Decision| match a == b {
        true => Ok(()),
        false => Err(format!("{what}: about `{name}` it decided {}, and then {}", answer(a), answer(b))),
    };
    for (tensor, (a, b)) in tensors.iter().zip(first.iter().zip(&decide(&tensors)?)) {
        same("asked again", &tensor.name, a, b)?;
    }
    tensors.reverse();
    for (tensor, (a, b)) in tensors.iter().zip(first.iter().rev().zip(&decide(&tensors)?)) {
        same("asked in another order", &tensor.name, a, b)?;
    }
    asked *= 3;
    tensors.reverse();
    let mut sensitive = Vec::new();
    for (tensor, decision) in tensors.iter().zip(&first) {
        let Decision::Quantize(scheme) = decision else { continue };
        let same = |known: &Scheme| Scheme { rule: String::new(), ..known.clone() };
        if !schemes.iter().any(|known| same(known) == same(scheme)) {
            schemes.push(scheme.clone());
        }
        if matches!(tensor.role, Role::Router | Role::Norm | Role::Embedding | Role::LmHead) {
            sensitive.push(tensor.name.as_str());
        }
    }
    let sensitive = (!sensitive.is_empty())
        .then(|| format!("it quantizes {}: routers, norms, embeddings and the head lose most", list(&sensitive)));
    let lax = schemes.iter().map(|scheme| scheme.cast.edges).find(|edges| *edges != Edges::Strict);
    let lax = lax.map(|edges| {
        let edges = edges_name(edges);
        format!("its scheme has edges = {edges}: NaN and infinity pass where the operator's policy lets them")
    });
    let notes: Vec<String> = sensitive.into_iter().chain(lax).collect();
    let note = (!notes.is_empty()).then(|| notes.join("; "));
    Ok(Found { note, ..Found::asked(asked) })
}

fn list(names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(3).map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(shown.len());
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}
