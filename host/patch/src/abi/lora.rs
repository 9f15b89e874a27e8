//! `patchhost:patch/lora`: how an adapter is admitted. Targets, shapes and coverage are the runtime's to check.

use super::bindings::lora as wit;
use super::guest::{Guest, Subject};
use super::model::{NAME_BYTES, check_question};
use crate::base::Function;
use patchhost_runtime::hooks::{
    HookCause, HookError, Lora, LoraPlace, LoraPlan, LoraSide, ModelInfo, Slot, TensorInfo,
};
use std::sync::Arc;

lower!(lora: lower_model, lower_tensors);

/// Longest adapter_config.json.
const CONFIG_BYTES: usize = 64 << 10;
/// Most tensors of an adapter.
const TENSORS: usize = 65_536;
/// Largest rank.
const RANK: u32 = 512;

/// A patch as the runtime's [`Lora`].
pub(crate) struct LoraAdapter(pub(crate) Arc<Guest>);

impl Lora for LoraAdapter {
    fn name(&self) -> &str {
        &self.0.info().name
    }

    fn admit(
        &self,
        model: &ModelInfo,
        peft_config: &str,
        registry: &[TensorInfo],
        adapter: &[TensorInfo],
    ) -> Result<LoraPlan, HookError> {
        let guest = &self.0;
        let subject = Subject::Tensors(adapter.len());
        let fail = |cause, why| guest.error(Function::Admit, &subject, cause, why);
        check_question(model, &[registry, adapter]).map_err(|why| fail(HookCause::Limit, why))?;
        if peft_config.len() > CONFIG_BYTES || adapter.len() > TENSORS {
            let why = format!(
                "the adapter has {} tensors and a config of {} bytes; the interface allows {TENSORS} and {CONFIG_BYTES}",
                adapter.len(),
                peft_config.len()
            );
            return Err(fail(HookCause::Limit, why));
        }

        let output = adapter.len().saturating_mul(size_of::<wit::Place>() + NAME_BYTES);
        let text = model.config.len() + peft_config.len();
        let budget = guest.limits().model_budget(registry.len() + adapter.len(), text, output);
        let plan = guest.call(Function::Admit, &subject, &budget, None, |store, exports| {
            let Some(exports) = &exports.lora else { return Ok(Err("no export `lora`".into())) };
            let (registry, adapter) = (lower::tensors(registry), lower::tensors(adapter));
            exports.call_admit(store, lower::model(model), peft_config, &registry, &adapter)
        })?;

        let places = plan.places.into_iter().map(place).collect();
        let plan = LoraPlan { rank: plan.rank, scaling: plan.scaling, places };
        check(&plan, adapter.len()).map_err(|why| fail(HookCause::BadOutput, why))?;
        Ok(plan)
    }
}

/// What the interface says of an answer about so many tensors.
pub(crate) fn check(plan: &LoraPlan, tensors: usize) -> Result<(), String> {
    Err(if plan.places.len() != tensors {
        format!("it returned {} places for {tensors} tensors", plan.places.len())
    } else if !(1..=RANK).contains(&plan.rank) {
        format!("rank {} is not from 1 to {RANK}", plan.rank)
    } else if !plan.scaling.is_finite() {
        format!("scaling {} is not finite", plan.scaling)
    } else if let Some(place) = plan.places.iter().find(|p| p.target.len() > NAME_BYTES) {
        format!("a target has {} bytes; the interface allows {NAME_BYTES}", place.target.len())
    } else {
        return Ok(());
    })
}

fn place(place: wit::Place) -> LoraPlace {
    let slot = match place.slot {
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
    };
    let side = match place.side {
        wit::Side::A => LoraSide::A,
        wit::Side::B => LoraSide::B,
    };
    LoraPlace { target: place.target, slot, expert: place.expert, side }
}
