//! Patches that were let in, as Python asks them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use patchhost::base::Digest;
use patchhost::patch::{
    Applicability, Attachments, Description, HookOptions, HostIdentity, Origin, Patch, Phase, Site, Terms, resolve,
};
use patchhost::trust::{Gate, Policy};
use patchhost_kernels::cast::{CastReport, Measure};
use patchhost_runtime::hooks::{BlockQuant, Blocks, Consumer, Decision, ModelInfo, Scheme as Inner};
use patchhost_runtime::quantize::{Input, On, Strides, grid, quantize_into};
use patchhost_runtime::refit::{RefitHooks, RefitRules};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use serde_json::json;

use crate::errors::{Raised, Result, off, on};
use crate::place::{Place, no_program, same_process};
use crate::scheme::Scheme;
use crate::tensors::{Out, Raw, RawTuple};
use crate::words::{self, Info};

/// Elements of a matrix that the calling thread quantizes alone.
const SMALL: usize = 1 << 17;

/// What somebody wants to load: component, digest, settings.
pub type Spec = (String, Option<String>, Vec<(String, String)>);

/// Everything that goes with the patches of one model in one engine.
pub struct Loaded {
    pub pid: u32,
    pub attachments: Attachments,
    pub hooks: RefitHooks,
    pub rules: RefitRules,
    pub policy: Policy,
    pub gate: Arc<Gate>,
    pub site: Site,
    pub model: ModelInfo,
    pub reader: Consumer,
}

/// Patches that passed the gate, the audit and their start.
#[pyclass(frozen, module = "patchhost._native")]
pub struct NativeSet {
    pub loaded: Arc<Loaded>,
}

#[pymethods]
impl NativeSet {
    #[new]
    fn new(
        py: Python<'_>,
        specs: Vec<Spec>,
        engine: String,
        engine_version: String,
        architecture: String,
        config: String,
        policy: Option<PathBuf>,
        lock: Option<PathBuf>,
        locked: bool,
        isolate: bool,
    ) -> PyResult<Self> {
        let host = HostIdentity::new(engine, engine_version);
        let loaded = off(py, || {
            let model = model(architecture, config)?;
            let (policy, gate) = gate(policy.as_deref(), lock.as_deref(), locked)?;
            let place = Place::here()?;
            // In the pool: the compiler shares its work out over the threads that it runs on.
            place.pool.install(|| load(place, &specs, host, model, policy, gate, isolate))
        })?;
        Ok(Self { loaded: Arc::new(loaded) })
    }

    #[getter]
    fn digest(&self) -> String {
        self.loaded.attachments.set().digest().to_string()
    }

    fn patches(&self) -> String {
        let rows = self.loaded.attachments.entries().iter().map(|(patch, applies)| row(patch, applies));
        serde_json::Value::from_iter(rows).to_string()
    }

    fn stats(&self) -> String {
        let stats = self.loaded.attachments.entries().iter().map(|(patch, _)| {
            let stats = patch.stats();
            json!({
                "name": patch.info().name, "generation": patch.generation(), "calls": stats.hook_calls(),
                "fuel": stats.functions.values().map(|f| f.fuel_total).sum::<u64>(),
                "seconds": stats.functions.values().map(|f| f.wall_ns).sum::<u64>() as f64 / 1e9,
                "functions": serde_json::to_value(&stats.functions).unwrap_or_default(),
            })
        });
        serde_json::Value::from_iter(stats).to_string()
    }

    fn decide(&self, py: Python<'_>, tensors: Vec<Info>) -> PyResult<Vec<(String, Option<Scheme>)>> {
        let loaded = &self.loaded;
        let decided = off(py, || {
            let quant = loaded.quant("decide")?;
            Ok(quant.decide(&loaded.model, &loaded.reader, &words::infos(tensors)?)?)
        })?;
        Ok(decided
            .into_iter()
            .map(|decision| match decision {
                Decision::Keep(why) => (why, None),
                Decision::Quantize(inner) => (inner.rule.clone(), Some(Scheme { inner })),
            })
            .collect())
    }

    fn scales(
        &self,
        py: Python<'_>,
        name: &str,
        rows: usize,
        cols: usize,
        scheme: &Scheme,
        first_block: usize,
        amax: usize,
        count: usize,
        out: usize,
    ) -> PyResult<()> {
        let loaded = &self.loaded;
        let (mut amax, mut out) = on(py, || Ok((Out::new("amax", amax, count)?, Out::new("scales", out, count)?)))?;
        let ask = move || {
            let quant = loaded.quant("scales")?;
            let blocks = blocks(name, rows, cols, &scheme.inner, first_block);
            let given = quant.scales(&blocks, amax.floats("amax")?)?;
            let out = out.floats("scales")?;
            if given.len() != out.len() {
                let why = format!("it gave {} scales for {} blocks", given.len(), out.len());
                return Err(Raised::new("patch", format!("patch `{}`", quant.name()), why, "do not use it"));
            }
            out.copy_from_slice(&given);
            Ok(())
        };
        off(py, ask)
    }

    fn scale_table<'py>(&self, py: Python<'py>, scheme: &Scheme) -> PyResult<Bound<'py, PyBytes>> {
        let loaded = &self.loaded;
        let table = off(py, || crate::table::make(&*loaded.quant("scale_table")?, &scheme.inner))?;
        Ok(PyBytes::new(py, &table))
    }

    fn quantize(
        &self,
        py: Python<'_>,
        name: &str,
        source: RawTuple,
        scheme: &Scheme,
        codes: usize,
        scales: usize,
        measure: &str,
    ) -> PyResult<(u64, u64, u64, f64, f64)> {
        let loaded = &self.loaded;
        let raw = on(py, || Raw::new(name, source))?;
        let measure = on(py, || match measure {
            "all" => Ok(Measure::All),
            "sample" => Ok(Measure::Sample),
            "nothing" => Ok(Measure::Nothing),
            other => {
                let next = "give `nothing`, `sample` or `all`";
                Err(Raised::usage("the measure of a cast", format!("it is {other:?}"), next))
            }
        })?;
        let report = off(py, move || {
            let quant = loaded.quant("quantize")?;
            let place = Place::here()?;
            let work = |on| quantize(loaded, &*quant, name, &raw, &scheme.inner, codes, scales, measure, on);
            // Waking the pool costs as much as quantizing a small matrix.
            let small = raw.shape.iter().product::<usize>() <= SMALL;
            match small || place.pool.current_num_threads() == 1 {
                true => work(On::Caller),
                false => place.pool.install(|| work(On::Pool)),
            }
        })?;
        Ok((report.saturated, report.flushed, report.non_finite, report.squared_error, report.squared_sum))
    }

    fn map_loader(&self, py: Python<'_>, registry: Vec<Info>, checkpoint: Vec<Info>) -> PyResult<String> {
        let loaded = &self.loaded;
        off(py, || {
            same_process("this PatchSet", loaded.pid)?;
            let loader = loaded.hooks.loader.clone().ok_or_else(|| loaded.no_patch("map_loader", "loader-map"))?;
            let (registry, checkpoint) = (words::infos(registry)?, words::infos(checkpoint)?);
            let places = loader.resolve(&loaded.model, &registry, &checkpoint)?;
            Ok(serde_json::to_value(&places).unwrap_or_default().to_string())
        })
    }

    fn admit_lora(
        &self,
        py: Python<'_>,
        peft_config: &str,
        registry: Vec<Info>,
        adapter: Vec<Info>,
    ) -> PyResult<String> {
        let loaded = &self.loaded;
        off(py, || {
            same_process("this PatchSet", loaded.pid)?;
            let lora = loaded.attachments.set().lora().ok_or_else(|| loaded.no_patch("admit_lora", "lora"))?;
            let (registry, adapter) = (words::infos(registry)?, words::infos(adapter)?);
            let plan = lora.admit(&loaded.model, peft_config, &registry, &adapter)?;
            Ok(serde_json::to_value(&plan).unwrap_or_default().to_string())
        })
    }

    fn masked(&self, py: Python<'_>, rows: u32, vocabulary: u32) -> PyResult<Vec<(u32, u32)>> {
        let loaded = &self.loaded;
        off(py, || {
            same_process("this PatchSet", loaded.pid)?;
            // As a refit asks it: held against what it said first.
            let options = HookOptions { vocabulary: Some(vocabulary), rules: loaded.rules, ..HookOptions::default() };
            let mask = loaded.attachments.set().hooks(options).mask;
            let mask = mask.ok_or_else(|| loaded.no_patch("masked", "logits-mask"))?;
            let ranges = mask.patch.masked(&loaded.model, rows, vocabulary)?;
            Ok(ranges.into_iter().map(|range| (range.start, range.end)).collect())
        })
    }
}

impl Loaded {
    /// The patch that quantizes.
    pub fn quant(&self, what: &str) -> Result<Arc<dyn BlockQuant>> {
        same_process("this PatchSet", self.pid)?;
        self.hooks.quant.clone().ok_or_else(|| self.no_patch(what, "block-quant"))
    }

    fn no_patch(&self, what: &str, hook: &str) -> Raised {
        let not = self.attachments.entries().iter().find_map(|(patch, applies)| match applies {
            Applicability::NotApplicable { reason } if patch.hooks().iter().any(|h| h.to_string() == hook) => {
                Some(format!("patch `{}` is not applicable: {reason}", patch.info().name))
            }
            _ => None,
        });
        let why = not.unwrap_or_else(|| format!("no patch of this set has the hook {hook}"));
        Raised::usage(format!("PatchSet.{what}"), why, "load a patch that has it and is for this engine and model")
    }
}

fn blocks<'a>(name: &'a str, rows: usize, cols: usize, scheme: &Inner, first_block: usize) -> Blocks<'a> {
    Blocks { tensor: name, rows, cols, block_rows: scheme.block_rows, block_cols: scheme.block_cols, first_block }
}

fn quantize(
    loaded: &Loaded,
    quant: &dyn BlockQuant,
    name: &str,
    raw: &Raw,
    scheme: &Inner,
    codes: usize,
    scales: usize,
    measure: Measure,
    on: On,
) -> Result<CastReport> {
    let elem = words::elem(name, &raw.dtype)?;
    let (count, rows, cols) = match raw.shape[..] {
        [rows, cols] => (1, rows, cols),
        [count, rows, cols] => (count, rows, cols),
        _ => {
            let why = format!("it has {} dimensions; a matrix has 2, a stack of experts 3", raw.shape.len());
            return Err(Raised::tensor(name, why, "keep it as it is, or reshape it"));
        }
    };
    let (row, col) = raw.matrix_strides();
    let (grid_rows, grid_cols) = grid(rows, cols, scheme);
    let each = grid_rows * grid_cols;
    let (mut codes, mut scales) =
        (Out::new("codes", codes, count * rows * cols)?, Out::new("scales", scales, count * each)?);
    let (codes, scales) = (codes.bytes(), scales.floats("scales")?);
    let mut report = CastReport::default();
    for i in 0..count {
        let data = raw.matrix(name, i, elem.size())?;
        let input = Input { name, data, elem, rows, cols };
        let (q, s) = (&mut codes[i * rows * cols..][..rows * cols], &mut scales[i * each..][..each]);
        let rule = loaded.rules.non_finite;
        report += quantize_into(rule, &input, Strides { row, col }, scheme, quant, measure, on, q, s)?;
    }
    Ok(report)
}

/// What patches are told about the model: of a Hugging Face config.
fn model(architecture: String, config: String) -> Result<ModelInfo> {
    let bad = |why: String| Raised::usage("config", why, "give the model's Hugging Face config (`model.config`)");
    let json: serde_json::Value = serde_json::from_str(&config).map_err(|e| bad(format!("it is no JSON: {e}")))?;
    let outer = json.as_object().ok_or_else(|| bad("it is no JSON object".to_owned()))?;
    let text = outer.get("text_config").and_then(serde_json::Value::as_object).unwrap_or(outer);
    let number = |names: &[&str]| {
        let found = names.iter().find_map(|name| text.get(*name).and_then(serde_json::Value::as_u64));
        found.and_then(|n| u32::try_from(n).ok()).unwrap_or_default()
    };
    Ok(ModelInfo {
        architecture,
        model_type: outer.get("model_type").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned(),
        layers: number(&["num_hidden_layers", "n_layer"]),
        experts: number(&["num_experts", "n_routed_experts", "num_local_experts"]),
        config,
    })
}

/// Policy and gate, as the program's own flags `--policy`, `--lock` and `--locked` make them.
fn gate(policy: Option<&Path>, lock: Option<&Path>, locked: bool) -> Result<(Policy, Arc<Gate>)> {
    let (read, places) = Policy::found(policy, lock)?;
    let gate = Gate::new(&read, places);
    if locked {
        gate.require_lock();
    }
    gate.check()?;
    Ok((read, Arc::new(gate)))
}

fn load(
    place: &Place,
    specs: &[Spec],
    host: HostIdentity,
    model: ModelInfo,
    policy: Policy,
    gate: Arc<Gate>,
    isolate: bool,
) -> Result<Loaded> {
    let site = place.site(isolate)?;
    let reader = Consumer { engine: host.engine.clone(), version: host.version.clone() };
    let mut attachments = Attachments::new(Description { host, architecture: model.architecture.clone() });
    for spec in specs {
        attachments.attach(start(place, &gate, &site, spec)?, Phase::EngineUp)?;
    }
    let rules = policy.refit_rules();
    let hooks = attachments.set().hooks(HookOptions { rules, ..HookOptions::default() });
    Ok(Loaded { pid: std::process::id(), attachments, hooks, rules, policy, gate, site, model, reader })
}

/// A component through every stage.
fn start(place: &Place, gate: &Gate, site: &Site, (component, sha256, settings): &Spec) -> Result<Arc<Patch>> {
    let candidate = resolve(component)?;
    if candidate.origin() != Origin::Bundled && place.program.is_none() {
        return Err(no_program(&format!("component `{component}`")));
    }
    let terms = Terms { sha256: digest(sha256.as_deref())?, ..Terms::settings(settings.iter().cloned()) };
    Ok(candidate.admit(gate, &terms)?.audit()?.compile(site)?.ready()?)
}

/// A digest as users write it, with or without `sha256:`.
pub fn digest(text: Option<&str>) -> Result<Option<Digest>> {
    let Some(text) = text else { return Ok(None) };
    let parsed = text.parse().map_err(|_| {
        let why =
            format!("`{}` is no SHA-256: 64 hexadecimal digits, `sha256:` before them or not", text.escape_debug());
        Raised::usage("a digest", why, "copy it from `patchhost patches` or from `PatchSet.patches`")
    })?;
    Ok(Some(parsed))
}

/// One patch for people.
fn row(patch: &Patch, applies: &Applicability) -> serde_json::Value {
    let (state, reason) = match applies {
        Applicability::Applies => ("applied", None),
        Applicability::NotApplicable { reason } => ("not applicable", Some(reason)),
    };
    json!({
        "name": patch.info().name, "version": patch.info().version, "sha256": patch.digest().hex(),
        "generation": patch.generation().to_string(), "hooks": patch.hooks().iter().map(|h| h.to_string()).collect::<Vec<_>>(),
        "state": state, "reason": reason, "settings": patch.settings(),
    })
}
