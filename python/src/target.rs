//! Tensors of Python as a target of refits. What is live lies in somebody else's engine: here it is known by names, shapes and
//! types, and a refit makes the tensors that are handed on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use patchhost::live::CanaryUnit;
use patchhost::patch::{
    Attempt, Compared, Description, Generation, HookOptions, Proved, RefitTarget, ShadowPolicy, TensorFinding, Verdict,
};
use patchhost_kernels::cast::CastReport;
use patchhost_kernels::e4m3::contains_nan_code;
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::checkpoint::CheckpointTensor;
use patchhost_runtime::error::{Refusal, RuntimeError};
use patchhost_runtime::hooks::{Consumer, Decision, Elem, ModelInfo, Role, Scheme, TensorInfo};
use patchhost_runtime::quantize::{Input, Measure, On, Strides, grid, quantize_into};
use patchhost_runtime::refit::{
    NonFinite, Progress, RefitHooks, RefitReport, RefitRules, Source, first_nonfinite, info, nonfinite, observe,
    rounded,
};
use rayon::prelude::*;
use safetensors::Dtype as Stored;
use serde_json::{Value, json};

type Done<T> = Result<T, RuntimeError>;

/// A tensor that is handed on.
pub struct Output {
    pub name: String,
    pub stored: Stored,
    pub shape: Vec<usize>,
    pub bytes: TensorBytes,
    /// Of scales: the rows and columns of a block.
    pub block: Option<(usize, usize)>,
}

/// What one attempt made: of each tensor of the source, in the order of its names, itself or its codes and scales.
pub type Outputs = Arc<Vec<(String, Vec<Output>)>>;

/// Names, types and shapes of the first refit: every later one must bring the same.
type Declared = BTreeMap<String, (Stored, Vec<usize>)>;

/// The tensors of one model in an engine of somebody else.
pub struct Tensors {
    pub to: Description,
    pub model: ModelInfo,
    pub reader: Consumer,
    pub rules: RefitRules,
    declared: Mutex<Option<Declared>>,
    roles: Mutex<BTreeMap<String, Role>>,
    report: Mutex<Option<Value>>,
    /// Somebody waits no longer for the refit that is made.
    pub stop: AtomicBool,
    /// The ledger gets a digest of everything that is handed on.
    pub hash: AtomicBool,
    numbers: Mutex<u64>,
}

impl Tensors {
    pub fn new(to: Description, model: ModelInfo, reader: Consumer, rules: RefitRules) -> Self {
        Self {
            to,
            model,
            reader,
            rules,
            declared: Mutex::default(),
            roles: Mutex::default(),
            report: Mutex::default(),
            stop: AtomicBool::new(false),
            hash: AtomicBool::new(false),
            numbers: Mutex::default(),
        }
    }

    /// What a tensor is for, as Python says.
    pub fn role(&self, name: &str, role: Role) {
        lock(&self.roles).insert(name.to_owned(), role);
    }

    /// The last comparison of a candidate.
    pub fn last_report(&self) -> Option<Value> {
        lock(&self.report).clone()
    }

    fn infos(&self, tensors: &[&CheckpointTensor]) -> Vec<TensorInfo> {
        let roles = lock(&self.roles);
        tensors.iter().map(|t| info(t, roles.get(&t.name).copied().unwrap_or(Role::Other))).collect()
    }

    /// Refuses what is missing, unknown, misshapen or narrowed against the first refit.
    fn covers(&self, tensors: &[&CheckpointTensor], source: &Source) -> Done<()> {
        let declared = lock(&self.declared);
        let Some(declared) = declared.as_ref() else { return Ok(()) };
        let refuse = |name: &str, why: String, next: &str| {
            Err(RuntimeError::Refit(Refusal::new(format!("tensor `{name}`"), why, next.to_owned())))
        };
        let came: BTreeMap<&str, &CheckpointTensor> = tensors.iter().map(|t| (t.name.as_str(), *t)).collect();
        let missing: Vec<&String> = declared.keys().filter(|name| !came.contains_key(name.as_str())).collect();
        if let Some(name) = missing.first() {
            let more =
                if missing.len() > 1 { format!(" ({} more are missing)", missing.len() - 1) } else { String::new() };
            let next = "send every tensor of the model in each refit; the old weights keep serving";
            return refuse(name, format!("the first refit brought it, and it did not come{more}"), next);
        }
        for (name, tensor) in came {
            let Some((stored, shape)) = declared.get(name) else {
                let near = patchhost_runtime::words::nearest(name, declared.keys().map(String::as_str));
                let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
                let next = "send the tensors of this model under the names of its first refit";
                return refuse(name, format!("the first refit had no tensor of this name{hint}"), next);
            };
            if *shape != tensor.shape {
                let why = format!("its shape is {:?}, that of the first refit was {shape:?}", tensor.shape);
                return refuse(name, why, "send it whole and in its own shape");
            }
            let narrower = precision(tensor.stored) < precision(*stored);
            if narrower && !source.begin().allow_narrowing {
                let why = format!("it came as {:?}, and it is declared {stored:?}: bits would be lost", tensor.stored);
                return refuse(name, why, "send it in its own dtype, or say allow_narrowing=True");
            }
            if (precision(*stored) == 0 || precision(tensor.stored) == 0) && *stored != tensor.stored {
                let why = format!("it came as {:?}, and it is declared {stored:?}", tensor.stored);
                return refuse(name, why, "send it in its own dtype");
            }
        }
        Ok(())
    }

    /// The bytes of a tensor in the type that it is declared in.
    fn declared_bytes(&self, tensor: &CheckpointTensor) -> Done<(TensorBytes, Stored)> {
        let bytes = tensor.data.load()?;
        let to = lock(&self.declared).as_ref().and_then(|d| d.get(&tensor.name)).map(|(stored, _)| *stored);
        let (Some(from), Some(to)) = (elem(tensor.stored), to.and_then(elem)) else {
            return Ok((bytes, tensor.stored));
        };
        if precision(tensor.stored) <= precision(stored_of(to)) {
            return Ok((bytes, tensor.stored));
        }
        let cast = rounded(&bytes, from, to).map_err(|(i, value)| {
            let why = format!("the value at index {i} is {value}, beyond the {to:?} that it is declared in");
            RuntimeError::NonFinite(Refusal::new(format!("tensor `{}`", tensor.name), why, "repair the weight"))
        })?;
        Ok((cast, stored_of(to)))
    }

    fn make(&self, source: &Source, hooks: &RefitHooks, progress: Progress<'_>) -> Done<(Outputs, RefitReport)> {
        let tensors: Vec<&CheckpointTensor> = source.checkpoint().tensors().collect();
        self.covers(&tensors, source)?;
        let began = Instant::now();
        let mut report = RefitReport::default();
        if hooks.loader.is_some() {
            report
                .remarks
                .push("the loader map is not asked about tensors of Python; use PatchSet.map_loader".to_owned());
        }
        if hooks.layout.is_some() {
            report
                .remarks
                .push("the layout is not asked about tensors of Python: they are handed on row-major".to_owned());
        }
        let decisions = match &hooks.quant {
            Some(quant) => quant.decide(&self.model, &self.reader, &self.infos(&tensors))?,
            None => tensors.iter().map(|_| Decision::Keep("no patch quantizes".to_owned())).collect(),
        };
        let names: BTreeMap<&str, ()> = tensors.iter().map(|t| (t.name.as_str(), ())).collect();
        let total = tensors.len();
        let mut outputs = Vec::with_capacity(total);
        let mut casts = CastReport::default();
        for (at, (tensor, decision)) in tensors.iter().zip(&decisions).enumerate() {
            if self.stop.load(Ordering::Relaxed) {
                let next = "begin it again; the old weights keep serving";
                return Err(RuntimeError::Refit(Refusal::new("this refit", "it was interrupted", next)));
            }
            progress(at, total, &tensor.name);
            let (bytes, stored) = self.declared_bytes(tensor)?;
            report.bytes_before += bytes.len() as u64;
            let made = match (decision, &hooks.quant) {
                (Decision::Quantize(scheme), Some(quant)) => {
                    if names.contains_key(format!("{}{}", tensor.name, scheme.scale_suffix).as_str()) {
                        return Err(RuntimeError::Refit(Refusal::new(
                            format!("tensor `{}{}`", tensor.name, scheme.scale_suffix),
                            "it came, and the scales of a quantized tensor would have its name",
                            "send weights that are not quantized yet",
                        )));
                    }
                    report.quantized += 1;
                    report.quantized_elements += tensor.shape.iter().product::<usize>() as u64;
                    let (made, cast) =
                        quantized(tensor, bytes, stored, scheme, quant.as_ref(), hooks.rules.non_finite)?;
                    casts += cast;
                    made
                }
                _ => {
                    report.kept += 1;
                    casts.non_finite += finite(tensor, &bytes, stored, hooks.rules.non_finite)?;
                    vec![Output { name: tensor.name.clone(), stored, shape: tensor.shape.clone(), bytes, block: None }]
                }
            };
            report.bytes_after += made.iter().map(|output| output.bytes.len() as u64).sum::<u64>();
            outputs.push((tensor.name.clone(), made));
        }
        progress(total, total, "");
        (report.saturated, report.flushed, report.non_finite) = (casts.saturated, casts.flushed, casts.non_finite);
        report.seconds = began.elapsed().as_secs_f64();
        report.relative_rmse = (casts.squared_sum > 0.0).then(|| (casts.squared_error / casts.squared_sum).sqrt());
        Ok((Arc::new(outputs), report))
    }

    fn options(&self) -> HookOptions {
        HookOptions { rules: self.rules, ..HookOptions::default() }
    }
}

impl RefitTarget for Tensors {
    type Staged<'t> = (Outputs, Declared);
    type Weights = Outputs;
    type Seen = Value;

    fn describe(&self) -> Description {
        self.to.clone()
    }

    fn attempt<'t>(&'t self, source: &Source, attempt: &Attempt<'_>) -> Done<Proved<Self::Staged<'t>>> {
        let hooks = attempt.hooks(|generation| generation.hooks(self.options()));
        let label = source.begin().version.clone().unwrap_or_else(|| (*lock(&self.numbers) + 1).to_string());
        let observers = observe(&hooks.observers, &label, source)?;
        let (outputs, mut report) = self.make(source, &hooks, attempt.progress)?;
        report.observers = observers;
        report.label.clone_from(&label);
        report.version = *lock(&self.numbers) + 1;
        let declared = source.checkpoint().tensors().map(|t| (t.name.clone(), (t.stored, t.shape.clone()))).collect();
        Ok(Proved {
            label,
            report,
            sha256: self.hash.load(Ordering::Relaxed).then(|| digest(&outputs)),
            staged: (outputs, declared),
        })
    }

    fn publish(&self, (outputs, declared): Self::Staged<'_>) -> Done<Outputs> {
        lock(&self.declared).get_or_insert(declared);
        *lock(&self.numbers) += 1;
        Ok(outputs)
    }

    fn compare(&self, source: &Source, active: &Generation, to: &Generation, rules: &ShadowPolicy) -> Compared<Value> {
        let mut compared = Compared { findings: Vec::new(), differing_tensors: 0, seen: Value::Null };
        let made = |generation: &Generation| {
            let mut hooks = generation.hooks(self.options());
            hooks.observers.clear();
            self.make(source, &hooks, &|_, _, _| {})
        };
        match (made(active), made(to)) {
            (Ok((live, of_live)), Ok((candidate, of_candidate))) => {
                let mut rows = Vec::new();
                for ((name, a), (_, b)) in live.iter().zip(candidate.iter()) {
                    let row = compare_one(name, a, b);
                    if row.differs {
                        compared.differing_tensors += 1;
                        compared.findings.extend(row.judge(rules));
                        rows.push(row.json());
                    }
                }
                compared.seen = json!({ "tensors": rows, "live": of_live, "candidate": of_candidate });
            }
            (Err(error), _) | (_, Err(error)) => compared.findings.push(TensorFinding::failed(error)),
        }
        compared
    }

    fn judged(&self, verdict: &Verdict, seen: Value) -> Option<String> {
        let report = json!({
            "refit": verdict.refit, "version": verdict.version, "live": verdict.live, "candidate": verdict.candidate,
            "mode": verdict.mode, "clean_refits": verdict.clean_refits, "differing_tensors": verdict.differing_tensors,
            "findings": verdict.findings, "more_findings": verdict.more_findings, "compared": seen,
        });
        *lock(&self.report) = Some(report);
        None
    }

    fn retains(&self) -> bool {
        // The trainer's own memory: its next step writes to it.
        false
    }

    fn canary(&self) -> Option<CanaryUnit> {
        Some(CanaryUnit::Tensor)
    }
}

/// How two sets made one tensor.
struct Row {
    name: String,
    differs: bool,
    /// Bytes of the codes that differ, and all of them; scales likewise. None: only one of them quantizes it.
    bytes: Option<(usize, usize)>,
    scales: Option<(usize, usize, u32)>,
}

fn compare_one(name: &str, a: &[Output], b: &[Output]) -> Row {
    let same = |a: &Output, b: &Output| a.stored == b.stored && a.shape == b.shape;
    let comparable = a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b));
    if !comparable {
        return Row { name: name.to_owned(), differs: true, bytes: None, scales: None };
    }
    let count =
        |a: &Output, b: &Output| (a.bytes.iter().zip(b.bytes.iter()).filter(|(a, b)| a != b).count(), a.bytes.len());
    let bytes = a.first().zip(b.first()).map(|(a, b)| count(a, b));
    let scales = a.get(1).zip(b.get(1)).map(|(a, b)| {
        let pairs = a.bytes.as_chunks::<4>().0.iter().zip(b.bytes.as_chunks::<4>().0);
        let ulps = pairs.map(|(a, b)| u32::from_le_bytes(*a).abs_diff(u32::from_le_bytes(*b)));
        ulps.fold((0, a.bytes.len() / 4, 0), |(n, all, most), ulp| (n + usize::from(ulp != 0), all, most.max(ulp)))
    });
    let differs = bytes.is_some_and(|(n, _)| n > 0) || scales.is_some_and(|(n, ..)| n > 0);
    Row { name: name.to_owned(), differs, bytes, scales }
}

impl Row {
    /// What the rules do not allow.
    fn judge(&self, rules: &ShadowPolicy) -> Vec<TensorFinding> {
        let mut findings = Vec::new();
        let mut find = |what: String| findings.push(TensorFinding { tensor: self.name.clone(), what });
        if let Some((n, all)) = self.bytes {
            let share = n as f64 / all.max(1) as f64;
            if share > rules.max_bytes_changed {
                find(format!("{share:.6} of its bytes differ, allowed is {}", rules.max_bytes_changed));
            }
        }
        if let Some((n, all, ulp)) = self.scales {
            let share = n as f64 / all.max(1) as f64;
            if share > rules.max_scales_changed {
                find(format!("{share:.6} of its scales differ, allowed is {}", rules.max_scales_changed));
            }
            if let Some(most) = rules.max_scale_ulp.filter(|most| u64::from(ulp) > *most) {
                find(format!("a scale differs by {ulp} ulp, allowed is {most}"));
            }
        }
        findings
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "bytes_changed": self.bytes.map(|(n, _)| n), "bytes": self.bytes.map(|(_, all)| all),
            "scales_changed": self.scales.map(|(n, ..)| n), "scales": self.scales.map(|(_, all, _)| all),
            "max_scale_ulp": self.scales.map(|(.., ulp)| ulp), "only_one_quantizes": self.bytes.is_none(),
        })
    }
}

fn quantized(
    tensor: &CheckpointTensor,
    bytes: TensorBytes,
    stored: Stored,
    scheme: &Scheme,
    quant: &dyn patchhost_runtime::hooks::BlockQuant,
    rule: NonFinite,
) -> Done<(Vec<Output>, CastReport)> {
    let refuse = |why: String| {
        let next = "use a patch that keeps it, or send it as a matrix";
        RuntimeError::Refit(Refusal::new(format!("tensor `{}`", tensor.name), why, next))
    };
    let elem = elem(stored).ok_or_else(|| refuse(format!("the patch quantizes it, and it is {stored:?}")))?;
    let (count, rows, cols) = match tensor.shape[..] {
        [rows, cols] => (1, rows, cols),
        [count, rows, cols] => (count, rows, cols),
        _ => return Err(refuse(format!("the patch quantizes it, and it has {} dimensions", tensor.shape.len()))),
    };
    let (grid_rows, grid_cols) = grid(rows, cols, scheme);
    let (mut codes, mut scales) = (vec![0u8; count * rows * cols], vec![0f32; count * grid_rows * grid_cols]);
    let (each, per, size) = (rows * cols, grid_rows * grid_cols, rows * cols * elem.size());
    let mut report = CastReport::default();
    for i in 0..count {
        let data = bytes.slice(i * size..(i + 1) * size).ok_or_else(|| refuse("its data is short".to_owned()))?;
        let input = Input { name: &tensor.name, data, elem, rows, cols };
        let strides = Strides { row: cols, col: 1 };
        let (q, s) = (&mut codes[i * each..][..each], &mut scales[i * per..][..per]);
        report += quantize_into(rule, &input, strides, scheme, quant, Measure::Sample, On::Pool, q, s)?;
    }
    if contains_nan_code(&codes) {
        let why = "its FP8 codes hold NaN under the chosen edge policy; a model with NaN weights cannot be served";
        let next = "repair the weight (edges=strict names it)";
        return Err(RuntimeError::NonFinite(Refusal::new(format!("tensor `{}`", tensor.name), why, next)));
    }
    let mut grid = vec![grid_rows, grid_cols];
    if tensor.shape.len() == 3 {
        grid.insert(0, count);
    }
    let scales: Vec<u8> = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
    let output = |name: String, stored, shape, bytes: Vec<u8>, block| {
        let len = bytes.len();
        let bytes = TensorBytes::new(Arc::new(bytes), 0..len).ok_or_else(|| refuse("-".to_owned()))?;
        Ok::<_, RuntimeError>(Output { name, stored, shape, bytes, block })
    };
    let weight = output(tensor.name.clone(), Stored::F8_E4M3, tensor.shape.clone(), codes, None)?;
    let block = Some((scheme.block_rows, scheme.block_cols));
    let scale = output(format!("{}{}", tensor.name, scheme.scale_suffix), Stored::F32, grid, scales, block)?;
    Ok((vec![weight, scale], report))
}

/// Refuses values that are not finite, or counts them.
fn finite(tensor: &CheckpointTensor, bytes: &TensorBytes, stored: Stored, rule: NonFinite) -> Done<u64> {
    let Some(elem) = elem(stored) else { return Ok(0) };
    let Some((at, value)) = first_nonfinite(bytes, elem) else { return Ok(0) };
    let count = nonfinite(bytes, elem);
    if rule == NonFinite::Allow {
        return Ok(count);
    }
    let cols = tensor.shape.last().copied().unwrap_or(1).max(1);
    let more = if count > 1 { format!(", and {count} of its values are not finite") } else { String::new() };
    let index = if tensor.shape.len() > 1 { vec![at / cols, at % cols] } else { vec![at] };
    Err(RuntimeError::NonFinite(Refusal::new(
        format!("tensor `{}`", tensor.name),
        format!("the value at index {index:?} is {value}{more}; a model with such weights cannot be served"),
        "repair the weight; `[quant] non_finite = \"allow\"` in the policy file lets it pass",
    )))
}

/// SHA-256 over name, type, shape and SHA-256 of each tensor, in the order of the names.
fn digest(outputs: &Outputs) -> String {
    let all: Vec<&Output> = outputs.iter().flat_map(|(_, made)| made).collect();
    let parts: Vec<String> = all.par_iter().map(|output| patchhost::base::Digest::of(&output.bytes).hex()).collect();
    let lines: String = all
        .iter()
        .zip(parts)
        .map(|(output, sum)| format!("{} {:?} {:?} {sum}\n", output.name, output.stored, output.shape))
        .collect();
    patchhost::base::Digest::of(lines.as_bytes()).hex()
}

/// Significant bits of a float; 0 for what is none.
fn precision(stored: Stored) -> u32 {
    match stored {
        Stored::F64 => 53,
        Stored::F32 => 24,
        Stored::F16 => 11,
        Stored::BF16 => 8,
        _ => 0,
    }
}

fn elem(stored: Stored) -> Option<Elem> {
    match stored {
        Stored::F32 => Some(Elem::F32),
        Stored::F16 => Some(Elem::F16),
        Stored::BF16 => Some(Elem::Bf16),
        _ => None,
    }
}

fn stored_of(elem: Elem) -> Stored {
    match elem {
        Elem::F32 => Stored::F32,
        Elem::F16 => Stored::F16,
        Elem::Bf16 => Stored::BF16,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
