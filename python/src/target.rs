//! Tensors of Python as a target of refits. What is live lies in somebody else's engine: here it is known by names, shapes and
//! types, and a refit makes the tensors that are handed on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use patchhost::compare::{CompareError, Pair, State, TensorRow, Unit, totals};
use patchhost::live::CanaryUnit;
use patchhost::patch::{
    Attempt, Compared, Description, Digests, Generation, HookOptions, Proved, RefitTarget, ShadowPolicy, TensorFinding,
    Verdict,
};
use patchhost_kernels::cast::CastReport;
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::checkpoint::CheckpointTensor;
use patchhost_runtime::error::{Refusal, RuntimeError};
use patchhost_runtime::hooks::{Consumer, Decision, Elem, ModelInfo, Role, TensorInfo};
use patchhost_runtime::refit::{Progress, RefitHooks, RefitReport, RefitRules, Source, info, observe, rounded};
use safetensors::Dtype as Stored;
use serde_json::{Value, json};

use crate::make::{Done, Made, Output, Outputs, digest, elem, finite, precision, quantized, receipts, stored_of};

/// Names, types and shapes of the first refit: every later one must bring the same.
type Declared = BTreeMap<String, (Stored, Vec<usize>)>;

/// A refit that is proved.
pub struct Ready {
    pub outputs: Outputs,
    declared: Declared,
    report: RefitReport,
}

/// The tensors of one model in an engine of somebody else.
pub struct Tensors {
    pub to: Description,
    pub model: ModelInfo,
    pub reader: Consumer,
    pub rules: RefitRules,
    declared: Mutex<Option<Declared>>,
    roles: Mutex<BTreeMap<String, Role>>,
    /// What the last refit did.
    live: Mutex<Option<RefitReport>>,
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
            live: Mutex::default(),
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

    fn role_of(&self, name: &str) -> Role {
        lock(&self.roles).get(name).copied().unwrap_or(Role::Other)
    }

    fn infos(&self, tensors: &[&CheckpointTensor]) -> Vec<TensorInfo> {
        tensors.iter().map(|t| info(t, self.role_of(&t.name))).collect()
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
        let (Some(from), Some(to)) = (elem(tensor.stored), self.rounded_to(tensor)) else {
            return Ok((bytes, tensor.stored));
        };
        let cast = rounded(&bytes, from, to).map_err(|(i, value)| {
            let why = format!("the value at index {i} is {value}, beyond the {to:?} that it is declared in");
            RuntimeError::NonFinite(Refusal::new(format!("tensor `{}`", tensor.name), why, "repair the weight"))
        })?;
        Ok((cast, stored_of(to)))
    }

    /// The type that its elements are rounded to, where it came more precise than it is declared.
    fn rounded_to(&self, tensor: &CheckpointTensor) -> Option<Elem> {
        let declared = lock(&self.declared).as_ref().and_then(|d| d.get(&tensor.name)).map(|(stored, _)| *stored);
        declared.filter(|stored| precision(tensor.stored) > precision(*stored)).and_then(elem)
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
            let (outputs_of, cast) = match (decision, &hooks.quant) {
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
                    (made, Some(cast))
                }
                _ => {
                    report.kept += 1;
                    casts.non_finite += finite(tensor, &bytes, stored, hooks.rules.non_finite)?;
                    (
                        vec![Output {
                            name: tensor.name.clone(),
                            stored,
                            shape: tensor.shape.clone(),
                            bytes,
                            block: None,
                        }],
                        None,
                    )
                }
            };
            report.bytes_after += outputs_of.iter().map(|output| output.bytes.len() as u64).sum::<u64>();
            let unchanged = cast.is_none() && stored == tensor.stored;
            outputs.push(Made { name: tensor.name.clone(), outputs: outputs_of, cast, unchanged });
        }
        progress(total, total, "");
        report.blocks_proved = casts.proved;
        (report.saturated, report.flushed, report.non_finite) = (casts.saturated, casts.flushed, casts.non_finite);
        report.seconds = began.elapsed().as_secs_f64();
        report.relative_rmse = (casts.squared_sum > 0.0).then(|| (casts.squared_error / casts.squared_sum).sqrt());
        Ok((Arc::new(outputs), report))
    }

    /// Proves what the candidate makes of the source as a refit would, and compares it with the live set tensor by tensor.
    fn compare_into(
        &self,
        source: &Source,
        active: &Generation,
        to: &Generation,
        rules: &ShadowPolicy,
        into: &mut Compared<Value>,
    ) -> Result<(), CompareError> {
        let (live, mut candidate) = (active.hooks(self.options()), to.hooks(self.options()));
        // Observers watch the live refit; shown a second one, they might count it.
        candidate.observers.clear();
        let (_, made) = self.make(source, &candidate, &|_, _, _| {})?;
        let unit = |t: &CheckpointTensor| Unit::of_tensor(t, self.role_of(&t.name), self.rounded_to(t));
        let units: Vec<Unit> = source.checkpoint().tensors().map(unit).collect();
        let pair = Pair {
            model: &self.model,
            reader: &self.reader,
            live: live.quant.as_deref(),
            candidate: candidate.quant.as_deref(),
            to: to.digest(),
            rules,
        };
        let mut rows = Vec::new();
        let compared = pair.compare(&units, |row, findings| {
            into.differing_tensors += usize::from(row.differs());
            into.findings.extend(findings);
            rows.push(row);
            Ok(())
        });
        into.seen = json!({
            "tensors": rows.iter().filter(|row| row.differs()).map(shown).collect::<Vec<_>>(),
            "totals": totals(&rows), "live": *lock(&self.live), "candidate": made,
        });
        compared
    }

    fn options(&self) -> HookOptions {
        HookOptions { rules: self.rules, ..HookOptions::default() }
    }
}

impl RefitTarget for Tensors {
    type Staged<'t> = Ready;
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
        let receipts = self.hash.load(Ordering::Relaxed).then(|| receipts(source, &outputs)).transpose()?;
        Ok(Proved {
            label,
            report: report.clone(),
            sha256: receipts.as_deref().map(digest),
            digests: receipts.map(Digests::of_tensors),
            staged: Ready { outputs, declared, report },
        })
    }

    fn publish(&self, Ready { outputs, declared, report }: Ready) -> Done<Outputs> {
        lock(&self.declared).get_or_insert(declared);
        *lock(&self.numbers) += 1;
        *lock(&self.live) = Some(report);
        Ok(outputs)
    }

    fn compare(&self, source: &Source, active: &Generation, to: &Generation, rules: &ShadowPolicy) -> Compared<Value> {
        let mut compared = Compared { findings: Vec::new(), differing_tensors: 0, seen: Value::Null };
        if let Err(error) = self.compare_into(source, active, to, rules, &mut compared) {
            compared.findings.push(TensorFinding::failed(error));
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

/// A row of the report: what differs, and what each of the two sets made of it.
fn shown(row: &TensorRow) -> Value {
    json!({
        "name": row.name, "state": row.state,
        "bytes_changed": row.weight_bytes.map(|bytes| bytes.differing), "bytes": row.weight_bytes.map(|bytes| bytes.total),
        "scales_changed": row.scales.map(|scales| scales.differing), "scales": row.scales.map(|scales| scales.total),
        "max_scale_ulp": row.scales.map(|scales| scales.max_ulp),
        "only_one_quantizes": matches!(row.state, State::OnlyA | State::OnlyB),
        "max_abs_difference": row.max_abs_difference, "live": row.a, "candidate": row.b,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
