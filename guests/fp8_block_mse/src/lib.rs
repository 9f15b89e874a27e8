//! Block FP8 with the scale of least squared error for each block. It reads the weights through its only import,
//! `row-source`, and measures every candidate scale (`kit::mse`).

#[path = "../../kit/glue/block_quant.rs"]
mod glue;

/// Generated from the WIT.
#[allow(missing_docs, unused, clippy::all)]
mod bindings {
    wit_bindgen::generate!({ path: "../../wit/patch/0.1.0", world: "quant-rows-patch" });
}

use bindings::exports::patchhost::patch::block_quant::{self, ActivationRule, Consumer, Decision, Model, Tensor};
use bindings::exports::patchhost::patch::block_quant_rows;
use bindings::exports::patchhost::patch::identity::{self, Info, Target};
use bindings::patchhost::patch::row_source::read_rows;
use kit::engines::{PATCHHOST, SGLANG, VLLM};
use kit::mse::{Panel, Search, panel_scales};
use kit::settings::MseSettings;
use std::sync::OnceLock;

static SETTINGS: OnceLock<(MseSettings, Search)> = OnceLock::new();

fn settings() -> &'static (MseSettings, Search) {
    SETTINGS.get_or_init(|| with_search(MseSettings::default()))
}

fn with_search(settings: MseSettings) -> (MseSettings, Search) {
    let search = Search::new(&settings);
    (settings, search)
}

struct Fp8BlockMse;

impl identity::Guest for Fp8BlockMse {
    fn describe() -> Info {
        Info {
            name: "fp8_block_mse".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Block FP8 (e4m3) with the scale of least squared error for each block".into(),
            reason: "the scale amax / 448 is not the one that loses least: which of the block's values fall where in \
                     their binade decides, and that can only be measured on the weights"
                .into(),
            upstream: None,
            remove_when: Some("the trainer sends block FP8 weights with scales of its own choice".into()),
            // Stored as `fp8_block` stores: an engine multiplies by whatever scale it is given.
            targets: [PATCHHOST, VLLM, SGLANG]
                .map(|(engine, versions)| Target {
                    engine: engine.into(),
                    versions: versions.into(),
                    architectures: vec![],
                })
                .into(),
        }
    }

    fn configure(pairs: Vec<(String, String)>) -> Result<(), String> {
        let parsed = MseSettings::parse(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())))?;
        let set = SETTINGS.set(with_search(parsed));
        set.map_err(|_| "configure was called twice; it is called once, before any hook".into())
    }
}

impl block_quant::Guest for Fp8BlockMse {
    fn decide(m: Model, _: Consumer, tensors: Vec<Tensor>) -> Result<Vec<Decision>, String> {
        let (s, _) = settings();
        glue::decide(&s.scheme(), &s.common.selection, &m, &tensors)
    }

    fn activation(_: Model) -> Option<ActivationRule> {
        let (s, _) = settings();
        s.common.activation_rule.then(|| glue::activation(s.activation()))
    }

    fn scales(b: block_quant::Blocks, _: Vec<f32>) -> Result<Vec<f32>, String> {
        Err(needs_rows(&b.tensor))
    }

    fn scales_with_moments(b: block_quant::Blocks, _: Vec<f32>, _: Vec<f32>) -> Result<Vec<f32>, String> {
        Err(needs_rows(&b.tensor))
    }

    fn activation_scales(amax: Vec<f32>) -> Result<Vec<f32>, String> {
        settings().0.activation().scales(&amax)
    }
}

impl block_quant_rows::Guest for Fp8BlockMse {
    fn panel_scales(
        b: block_quant_rows::Blocks,
        panel_rows: u32,
        max_rows: u32,
        amax: Vec<f32>,
    ) -> Result<Vec<f32>, String> {
        let panel = Panel {
            tensor: &b.tensor,
            first_block: b.first_block,
            rows: panel_rows,
            cols: b.cols,
            block_cols: b.block_cols,
            max_rows,
        };
        panel_scales(&settings().1, &panel, &amax, read_rows)
    }
}

fn needs_rows(tensor: &str) -> String {
    format!("tensor `{tensor}`: this patch declares `needs: rows`; ask `panel-scales`, or use fp8_block instead")
}

bindings::export!(Fp8BlockMse with_types_in bindings);
