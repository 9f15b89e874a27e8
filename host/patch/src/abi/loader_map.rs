//! `patchhost:patch/loader-map`: where checkpoint tensors go. Shapes, overlap and coverage are the refit's to check.

use super::bindings::loader_map as wit;
use super::guest::{Guest, Subject};
use super::model::{NAME_BYTES, REASON_BYTES, check_question};
use crate::base::Function;
use crate::base::text;
use patchhost_runtime::hooks::{HookCause, HookError, LoaderMap, ModelInfo, Placement, Slot, TensorInfo};
use std::sync::Arc;

lower!(loader_map: lower_model, lower_tensors);

/// A patch as the runtime's [`LoaderMap`].
pub(crate) struct LoaderAdapter(pub(crate) Arc<Guest>);

impl LoaderMap for LoaderAdapter {
    fn name(&self) -> &str {
        &self.0.info().name
    }

    fn resolve(
        &self,
        model: &ModelInfo,
        registry: &[TensorInfo],
        checkpoint: &[TensorInfo],
    ) -> Result<Vec<Placement>, HookError> {
        let guest = &self.0;
        let subject = Subject::Tensors(checkpoint.len());
        let fail = |cause, why| guest.error(Function::Resolve, &subject, cause, why);
        check_question(model, &[registry, checkpoint]).map_err(|why| fail(HookCause::Limit, why))?;

        let output = checkpoint.len().saturating_mul(size_of::<wit::Placement>() + NAME_BYTES);
        let budget = guest.limits().model_budget(registry.len() + checkpoint.len(), model.config.len(), output);
        let answer = guest.call(Function::Resolve, &subject, &budget, None, |store, exports| {
            let Some(exports) = &exports.loader_map else { return Ok(Err("no export `loader-map`".into())) };
            exports.call_resolve(store, lower::model(model), &lower::tensors(registry), &lower::tensors(checkpoint))
        })?;

        if answer.len() != checkpoint.len() {
            let why = format!("it returned {} placements for {} tensors", answer.len(), checkpoint.len());
            return Err(fail(HookCause::BadOutput, why));
        }
        let placed = answer.into_iter().zip(checkpoint).map(|(placement, tensor)| {
            convert(placement).map_err(|why| {
                let why = format!("the placement of `{}`: {why}", text::clean(&tensor.name, 120));
                fail(HookCause::BadOutput, why)
            })
        });
        placed.collect()
    }
}

fn convert(placement: wit::Placement) -> Result<Placement, String> {
    let bounded = |what: &str, text: &str, most: usize| {
        if text.len() > most {
            return Err(format!("`{what}` has {} bytes; the interface allows {most}", text.len()));
        }
        Ok(())
    };
    Ok(match placement {
        wit::Placement::Native => Placement::Native,
        wit::Placement::Ignore(reason) => {
            bounded("ignore", &reason, REASON_BYTES)?;
            Placement::Ignore(text::clean(&reason, 4 * REASON_BYTES))
        }
        wit::Placement::Place(place) => {
            bounded("target", &place.target, NAME_BYTES)?;
            Placement::Place {
                target: place.target,
                slot: slot(place.slot),
                expert: place.expert,
                transposed: place.transposed,
            }
        }
    })
}

fn slot(slot: wit::Slot) -> Slot {
    match slot {
        wit::Slot::Whole => Slot::Whole,
        wit::Slot::W1 => Slot::W1,
        wit::Slot::W2 => Slot::W2,
        wit::Slot::W3 => Slot::W3,
        wit::Slot::W13 => Slot::W13,
        wit::Slot::Q => Slot::Q,
        wit::Slot::K => Slot::K,
        wit::Slot::V => Slot::V,
        wit::Slot::Gate => Slot::Gate,
        wit::Slot::Up => Slot::Up,
    }
}
