//! Claims layout, lora, logits-mask and refit-observer, and misbehaves in the one way that the setting `fault` names; in
//! all others it is honest.

use evil_hooks::bindings::exports::patchhost::patch::identity::{self, Info, Target};
use evil_hooks::bindings::exports::patchhost::patch::layout::{self, Pass};
use evil_hooks::bindings::exports::patchhost::patch::logits_mask::{self, Range};
use evil_hooks::bindings::exports::patchhost::patch::lora::{self, Place, Plan, Side, Slot};
use evil_hooks::bindings::exports::patchhost::patch::refit_observer::{self, Arrival, Verdict};
use std::sync::OnceLock;

static FAULT: OnceLock<String> = OnceLock::new();

fn fault(name: &str) -> bool {
    FAULT.get().is_some_and(|f| f == name)
}

fn spin() -> ! {
    let mut n = 0u64;
    loop {
        n = std::hint::black_box(n.wrapping_add(1));
    }
}

struct AnyHook;

impl identity::Guest for AnyHook {
    fn describe() -> Info {
        Info {
            name: "any-hook".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Misbehaves on purpose".into(),
            reason: "a test of the host".into(),
            upstream: None,
            remove_when: None,
            targets: vec![Target { engine: "patchhost".into(), versions: ">=0.1, <0.2".into(), architectures: vec![] }],
        }
    }

    fn configure(settings: Vec<(String, String)>) -> Result<(), String> {
        for (key, value) in settings {
            if key != "fault" {
                return Err(format!("unknown setting `{key}`; known is: fault"));
            }
            let _ = FAULT.set(value);
        }
        Ok(())
    }
}

impl layout::Guest for AnyHook {
    fn passes(_: layout::Model, _: layout::Consumer, tensors: Vec<layout::Tensor>) -> Result<Vec<Vec<Pass>>, String> {
        if fault("layout-spin") {
            spin();
        }
        let mut all: Vec<Vec<Pass>> = tensors.iter().map(|_| Vec::new()).collect();
        if fault("layout-short") {
            all.pop();
        }
        if fault("layout-twice") {
            all[0] = vec![Pass::Ue8m0, Pass::Ue8m0];
        }
        if fault("layout-swap-everything") {
            all.iter_mut().for_each(|p| p.push(Pass::SwapW13));
        }
        if fault("layout-align-everything") {
            all.iter_mut().for_each(|p| p.push(Pass::ColMajorAlign));
        }
        Ok(all)
    }
}

/// The right place of an attention module's adapter tensor.
fn place(name: &str) -> Option<Place> {
    let (module, side) = match name.split_once(".lora_A.") {
        Some((module, _)) => (module, Side::A),
        None => (name.split_once(".lora_B.")?.0, Side::B),
    };
    let module = module.strip_prefix("base_model.model.")?;
    let (parent, leaf) = module.rsplit_once('.')?;
    let (slot, fused) = match leaf {
        "q_proj" => (Slot::Q, "qkv_proj"),
        "k_proj" => (Slot::K, "qkv_proj"),
        "v_proj" => (Slot::V, "qkv_proj"),
        other => (Slot::Whole, other),
    };
    Some(Place { target: format!("{parent}.{fused}.weight"), slot, expert: None, side })
}

impl lora::Guest for AnyHook {
    fn admit(_: lora::Model, _: String, _: Vec<lora::Tensor>, adapter: Vec<lora::Tensor>) -> Result<Plan, String> {
        if fault("lora-spin") {
            spin();
        }
        let mut places: Vec<Place> = adapter.iter().filter_map(|t| place(&t.name)).collect();
        let mut plan_rank = 4;
        let mut scaling = 2.0;
        match FAULT.get().map_or("", String::as_str) {
            "lora-short" => drop(places.pop()),
            "lora-target" => places[0].target = "model.layers.0.mlp.nowhere.weight".into(),
            "lora-norm" => places[0].target = "model.norm.weight".into(),
            "lora-slot" => places[0].slot = Slot::W2,
            "lora-expert" => places[0].expert = Some(3),
            "lora-twice" => places[1] = places[0].clone(),
            "lora-sides" => places.iter_mut().for_each(|p| p.side = if p.side == Side::A { Side::B } else { Side::A }),
            "lora-rank" => plan_rank = 5,
            "lora-rank-huge" => plan_rank = 4_000_000_000,
            "lora-scaling" => scaling = 20.0,
            "lora-scaling-nan" => scaling = f32::NAN,
            _ => {}
        }
        Ok(Plan { rank: plan_rank, scaling, places })
    }
}

impl logits_mask::Guest for AnyHook {
    fn masked(_: logits_mask::Model, rows: u32, _: u32) -> Result<Vec<Range>, String> {
        let range = |first, end| Range { first, end };
        Ok(match FAULT.get().map_or("", String::as_str) {
            "mask-spin" => spin(),
            "mask-overlap" => vec![range(1, 5), range(4, 6)],
            "mask-descending" => vec![range(5, 6), range(1, 2)],
            "mask-empty" => vec![range(3, 3)],
            "mask-backwards" => vec![range(5, 3)],
            "mask-beyond" => vec![range(1, rows + 1)],
            "mask-all" => vec![range(0, 2), range(2, rows)],
            "mask-many" => (0..70_000).map(|i| range(2 * i, 2 * i + 1)).collect(),
            _ => vec![],
        })
    }
}

impl refit_observer::Guest for AnyHook {
    fn begin(_: String, _: Option<Vec<String>>) -> Verdict {
        match FAULT.get().map_or("", String::as_str) {
            "observer-spin" => spin(),
            "observer-trap-begin" => panic!("on purpose"),
            "observer-veto-begin" => Verdict::Veto("not today".into()),
            "observer-long-reason" => Verdict::Veto("x".repeat(5_000)),
            "observer-huge-reason" => Verdict::Veto("x".repeat(40 << 20)),
            "observer-control-characters" => Verdict::Veto("\u{1b}[2J\u{1b}[31mgood\r\n".into()),
            _ => Verdict::Accept,
        }
    }

    fn tensors(batch: Vec<Arrival>) -> Verdict {
        if fault("observer-trap-tensors") {
            panic!("on purpose");
        }
        if fault("observer-veto-tensors") {
            return Verdict::Veto(format!("I do not like {}", batch[0].name));
        }
        Verdict::Accept
    }

    fn finish(_: u32) -> Verdict {
        if fault("observer-veto-finish") { Verdict::Veto("one too many".into()) } else { Verdict::Accept }
    }
}

evil_hooks::bindings::export!(AnyHook with_types_in evil_hooks::bindings);
