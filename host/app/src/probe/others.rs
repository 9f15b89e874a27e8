//! The checks of all hooks but block quantization: the same question gets the same answer, in any order, and an answer
//! that a refit would refuse fails here.

use super::run::{Found, Probe};
use super::synthetic;
use crate::base::Hook;
use crate::base::text::answer;
use crate::checkpoint::bundled;
use crate::patch::{Applicability, Description, Patch};
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::hooks::{HookError, Layout, LoaderMap, LogitsMask, Lora, RefitObserver, TensorInfo, Verdict};
use patchhost_runtime::refit::{RefitHooks, info};
use std::sync::Arc;

/// Rows of an output layer, and ids of its tokenizer: some rows are padding.
const ROWS: u32 = 512;
const VOCABULARY: u32 = 500;

/// Makes the checks of every hook but block quantization that the patch has.
pub(super) fn run(probe: &mut Probe<'_>, patch: &Arc<Patch>) {
    if patch.has_state() && !probe.options.stateful {
        probe.skip("answers", None, "the other hooks", "it remembers what it is asked");
        return;
    }
    if let Some(hook) = patch.loader_map() {
        let about = "the same tensors go to the same places, in any order, and fill a real model";
        match patch.applies_to(&Description::patchhost(BUNDLED)) {
            Applicability::Applies => {
                probe.check("placements", Some(Hook::LoaderMap), about, |_| remembering(patch, placements(&hook)));
            }
            Applicability::NotApplicable { reason } => {
                probe.skip("placements", Some(Hook::LoaderMap), about, &format!("not for the bundled model: {reason}"));
            }
        }
    }
    if let Some(hook) = patch.layout() {
        let about = "the same tensors have the same layout, in any order";
        probe.check("passes", Some(Hook::Layout), about, |_| remembering(patch, passes(patch, &*hook)));
    }
    if let Some(hook) = patch.lora() {
        let about = "an adapter's tensors adapt the same parts, in any order";
        probe.check("adapter", Some(Hook::Lora), about, |_| remembering(patch, adapter(patch, &*hook)));
    }
    if let Some(hook) = patch.logits_mask() {
        let about = "the same ids are masked when it is asked again";
        probe.check("mask", Some(Hook::LogitsMask), about, |_| remembering(patch, mask(patch, &*hook)));
    }
    if let Some(twin) = probe.options.twin.clone().filter(|_| !patch.has_state()) {
        let about = "the same answers in another instance, of code that was compiled without optimization";
        probe.check("twin answers", None, about, |_| twins(patch, &twin));
    }
    if !probe.options.stateful {
        return;
    }
    if let Some(hook) = patch.refit_observer() {
        let about = "an ordinary refit is accepted, and so is the same one again";
        probe.check("refit", Some(Hook::RefitObserver), about, |_| observed(&*hook));
    }
    if patch.has_state() {
        let about = "what it remembers comes back as it was given";
        probe.check("state", None, about, |_| state(patch));
    }
}

/// Whether patch and twin give the same layouts, masks, adapters and placements.
fn twins(one: &Arc<Patch>, twin: &Arc<Patch>) -> Result<Found, String> {
    let (model, reader, tensors) = (synthetic::model(one), synthetic::reader(), synthetic::tensors());
    let (config, parts) = synthetic::adapter();
    // Errors count as answers; their texts name the patch, which is the same.
    let answers = |patch: &Arc<Patch>| {
        let text = |answer: Result<String, HookError>| answer.unwrap_or_else(|e| format!("{:?}: {}", e.cause, e.why));
        let layout = patch.layout().map(|h| text(h.passes(&model, &reader, &tensors).map(|a| format!("{a:?}"))));
        let mask = patch.logits_mask().map(|h| text(h.masked(&model, ROWS, VOCABULARY).map(|a| format!("{a:?}"))));
        let admit = patch.lora().map(|h| text(h.admit(&model, &config, &tensors, &parts).map(|a| format!("{a:?}"))));
        let places = patch.loader_map().map(|h| text(h.resolve(&model, &tensors, &tensors).map(|a| format!("{a:?}"))));
        [layout, mask, admit, places]
    };
    let (a, b) = (answers(one), answers(twin));
    match a.iter().zip(&b).position(|(a, b)| a != b) {
        None => Ok(Found::asked(a.iter().flatten().count() * 2)),
        Some(at) => {
            let name = ["passes", "masked", "admit", "resolve"][at];
            Err(format!("`{name}` has another answer without optimization"))
        }
    }
}

/// A patch that exports `state` may give another answer because it remembers the questions before. For such a patch
/// that is a remark and not a failure.
fn remembering(patch: &Patch, found: Result<Found, String>) -> Result<Found, String> {
    match found {
        Err(why) if patch.has_state() && why.starts_with("asked") => {
            Ok(Found { note: Some(format!("it exports `state`, and {why}")), ..Found::asked(2) })
        }
        other => other,
    }
}

/// Architecture of the bundled model.
const BUNDLED: &str = "Qwen3MoeForCausalLM";

fn placements(hook: &Arc<dyn LoaderMap>) -> Result<Found, String> {
    let text = |e: patchhost_runtime::error::RuntimeError| e.to_string();
    let engine = Engine::new(bundled::CONFIG, EngineOptions::default()).map_err(text)?;
    let checkpoint = bundled::outline().map_err(text)?;
    let registry: Vec<TensorInfo> = engine.registry().params().iter().map(|param| param.info()).collect();
    let mut tensors: Vec<TensorInfo> =
        checkpoint.tensors().map(|t| info(t, patchhost_runtime::hooks::Role::Other)).collect();
    let resolve = |tensors: &[TensorInfo]| hook.resolve(engine.info(), &registry, tensors).map_err(|e| e.to_string());
    let first = resolve(&tensors)?;
    same("asked again", &tensors, &first, &resolve(&tensors)?)?;
    tensors.reverse();
    let mut back = resolve(&tensors)?;
    back.reverse();
    tensors.reverse();
    same("asked in another order", &tensors, &first, &back)?;
    // Targets, shapes, overlaps and coverage, as a refit checks them.
    let hooks = RefitHooks { loader: Some(hook.clone()), ..RefitHooks::default() };
    let (_, remarks) = engine.explain_with_remarks(&checkpoint, &hooks).map_err(text)?;
    let note = (!remarks.is_empty()).then(|| remarks.join("; "));
    Ok(Found { note, ..Found::asked(3 * tensors.len()) })
}

fn same<T: PartialEq + serde::Serialize>(what: &str, tensors: &[TensorInfo], a: &[T], b: &[T]) -> Result<(), String> {
    if a.len() != b.len() {
        return Err(format!("{what}: {} answers, and then {}", a.len(), b.len()));
    }
    match a.iter().zip(b).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => {
            let name = tensors.get(at).map_or("", |t| t.name.as_str());
            Err(format!("{what}: about `{name}` it answered {}, and then {}", answer(&a[at]), answer(&b[at])))
        }
    }
}

fn passes(patch: &Patch, hook: &dyn Layout) -> Result<Found, String> {
    let (model, reader, mut tensors) = (synthetic::model(patch), synthetic::reader(), synthetic::tensors());
    let ask = |tensors: &[TensorInfo]| hook.passes(&model, &reader, tensors).map_err(|e| e.to_string());
    let first = ask(&tensors)?;
    same("asked again", &tensors, &first, &ask(&tensors)?)?;
    tensors.reverse();
    let mut back = ask(&tensors)?;
    back.reverse();
    tensors.reverse();
    same("asked in another order", &tensors, &first, &back)?;
    Ok(Found::asked(3 * tensors.len()))
}

fn adapter(patch: &Patch, hook: &dyn Lora) -> Result<Found, String> {
    let (config, mut tensors) = synthetic::adapter();
    let (model, registry) = (synthetic::model(patch), synthetic::tensors());
    let ask = |tensors: &[TensorInfo]| hook.admit(&model, &config, &registry, tensors).map_err(|e| e.to_string());
    let first = match ask(&tensors) {
        Ok(plan) => plan,
        // It may be for other adapters; that it says so is an answer.
        Err(why) => {
            let note = format!("it does not admit a plain adapter of rank 8: {}", why.replace('\n', " "));
            return Ok(Found { note: Some(note), ..Found::asked(1) });
        }
    };
    let again = ask(&tensors)?;
    same("asked again", &tensors, &first.places, &again.places)?;
    if (first.rank, first.scaling.to_bits()) != (again.rank, again.scaling.to_bits()) {
        return Err("asked again: another rank or scaling".to_owned());
    }
    tensors.reverse();
    let mut back = ask(&tensors)?.places;
    back.reverse();
    tensors.reverse();
    same("asked in another order", &tensors, &first.places, &back)?;
    Ok(Found::asked(3 * tensors.len()))
}

fn mask(patch: &Patch, hook: &dyn LogitsMask) -> Result<Found, String> {
    let model = synthetic::model(patch);
    let ask = || hook.masked(&model, ROWS, VOCABULARY).map_err(|e| e.to_string());
    let first = ask()?;
    if first != ask()? {
        return Err("asked again: other ids".to_owned());
    }
    let masked: u32 = first.iter().map(|range| range.end - range.start).sum();
    let of_tokenizer = first.iter().map(|range| range.end.min(VOCABULARY).saturating_sub(range.start.min(VOCABULARY)));
    let note = match VOCABULARY - of_tokenizer.sum::<u32>() {
        0 => return Err(format!("it leaves none of the {VOCABULARY} ids of the tokenizer: nothing could be sampled")),
        1 => Some(format!("it leaves one id of {VOCABULARY}: every text would be that token again and again")),
        _ => None,
    };
    Ok(Found { worst: Some(format!("{masked} of {ROWS} ids")), note, ..Found::asked(2) })
}

fn observed(hook: &dyn RefitObserver) -> Result<Found, String> {
    let arrivals = synthetic::arrivals();
    let names: Vec<String> = arrivals.iter().map(|a| a.name.clone()).collect();
    let mut note = None;
    for version in ["probe-1", "probe-1"] {
        let (verdict, mut watch) = hook.begin(version, Some(&names)).map_err(|e| e.to_string())?;
        let mut verdicts = vec![verdict];
        for batch in arrivals.chunks(16) {
            verdicts.push(watch.tensors(batch).map_err(|e| e.to_string())?);
        }
        verdicts.push(watch.finish(arrivals.len() as u32).map_err(|e| e.to_string())?);
        if let Some(Verdict::Veto(reason)) = verdicts.into_iter().find(|v| *v != Verdict::Accept) {
            note = Some(format!("it vetoes the refit of a synthetic model: {reason}"));
        }
    }
    Ok(Found { note, ..Found::asked(2 * (arrivals.len() + 2)) })
}

fn state(patch: &Patch) -> Result<Found, String> {
    let text = |e: patchhost_runtime::hooks::HookError| e.to_string();
    let Some(first) = patch.export_state().map_err(text)? else {
        return Err("it exports `state` and gives none".to_owned());
    };
    patch.import_state(first.clone()).map_err(text)?;
    match patch.export_state().map_err(text)? {
        Some(second) if second == first => Ok(Found { worst: Some(first.to_string()), ..Found::asked(2) }),
        Some(second) => Err(format!("it was given {first}, and then has {second}")),
        None => Err("after taking state it has none".to_owned()),
    }
}
