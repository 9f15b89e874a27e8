//! Writing a decided export: one tensor after the other, so that memory holds one at a time.

use std::collections::BTreeMap;
use std::path::Path;

use patchhost_kernels::cast::CastReport;
use patchhost_kernels::e4m3::contains_nan_code;
use patchhost_runtime::hooks::{BlockQuant, Role, Scheme};
use patchhost_runtime::quantize::{Input, Measure, Quantized, quantize};

use super::decide::{Entry, Fate, Plan};
use super::shards::{Placed, Shard, index, shards};
use super::tensors::{Data, Output};
use super::{Companions, Result, refused};
use crate::checkpoint::stream::{CHUNK, StreamFile, sha256, write_small};

/// What was done for one kind of tensor.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct ClassReport {
    /// Attention, experts, …
    pub class: &'static str,
    /// Tensors that became FP8.
    pub quantized: usize,
    /// Tensors that were copied.
    pub kept: usize,
    /// Bytes in the checkpoint.
    pub bytes_before: u64,
    /// Bytes in the export, scales included.
    pub bytes_after: u64,
    /// Relative root mean square error of what became FP8.
    pub relative_rmse: Option<f64>,
    /// Values that were clipped to ±448 times the scale.
    pub saturated: u64,
    /// Values other than zero that became zero.
    pub flushed: u64,
    #[serde(skip)]
    sums: CastReport,
}

impl ClassReport {
    fn add(&mut self, entry: &Entry, placed: &Placed, cast: Option<CastReport>) {
        self.bytes_before += entry.output.bytes();
        self.bytes_after += placed.weight.len + placed.scale.as_ref().map_or(0, |s| s.len);
        match cast {
            Some(cast) => {
                self.quantized += 1;
                self.sums += cast;
            }
            None => self.kept += 1,
        }
        self.saturated = self.sums.saturated;
        self.flushed = self.sums.flushed;
        self.relative_rmse =
            (self.sums.squared_sum > 0.0).then(|| (self.sums.squared_error / self.sums.squared_sum).sqrt());
    }
}

/// A file of the export.
#[derive(Debug, Clone, serde::Serialize)]
pub struct WrittenFile {
    pub name: String,
    pub bytes: u64,
    /// SHA-256, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// What an export did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// All kinds together.
    #[serde(flatten)]
    pub total: ClassReport,
    /// Each kind that the model has.
    pub classes: Vec<ClassReport>,
    /// The files, by name.
    pub files: Vec<WrittenFile>,
}

/// Called while an export goes on: (tensors done, tensors in all, bytes written, bytes in all, name of the last).
pub type Progress<'a> = &'a dyn Fn(usize, usize, u64, u64, &str);

/// Everything that is written.
pub struct Job<'a> {
    /// What becomes of each tensor.
    pub plan: &'a Plan,
    /// Who gives the scales.
    pub quant: &'a dyn BlockQuant,
    /// The text of config.json.
    pub config: &'a str,
    /// Tokenizer and the like.
    pub companions: &'a Companions,
    /// `__metadata__` of each file.
    pub metadata: &'a BTreeMap<String, String>,
    /// Most bytes of data in a file.
    pub max_shard: u64,
    /// Whether to compute the digest of each file.
    pub digests: bool,
}

/// Writes the export into an empty folder, everything on disk when it returns.
pub fn write(job: &Job<'_>, folder: &Path, progress: Progress<'_>) -> Result<Report> {
    let shards = shards(job.plan, job.max_shard, job.metadata)?;
    let bytes: u64 = shards.iter().map(|s| s.len).sum();
    let mut classes: BTreeMap<&'static str, ClassReport> = BTreeMap::new();
    let mut total = ClassReport { class: "all", ..ClassReport::default() };
    let (mut done, mut written) = (0, 0);
    for shard in &shards {
        let mut file = StreamFile::create(&folder.join(&shard.file), shard.len)?;
        file.write_at(0, &shard.header)?;
        written += shard.header.len() as u64;
        for placed in &shard.tensors {
            let entry = &job.plan.entries[placed.entry];
            let cast = one(job, entry, placed, &mut file)?;
            let class = class(entry.output.role);
            classes
                .entry(class)
                .or_insert_with(|| ClassReport { class, ..ClassReport::default() })
                .add(entry, placed, cast);
            total.add(entry, placed, cast);
            done += 1;
            written += placed.weight.len + placed.scale.as_ref().map_or(0, |s| s.len);
            progress(done, job.plan.entries.len(), written, bytes, &entry.output.name);
        }
        file.finish()?;
    }
    let mut names: Vec<String> = shards.iter().map(|s: &Shard| s.file.clone()).collect();
    if let Some(index) = index(&shards) {
        write_small(&folder.join("model.safetensors.index.json"), index.as_bytes())?;
        names.push("model.safetensors.index.json".to_string());
    }
    write_small(&folder.join("config.json"), job.config.as_bytes())?;
    names.push("config.json".to_string());
    names.extend(job.companions.write(folder)?);
    names.sort();
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        let path = folder.join(&name);
        let bytes = path.metadata().map_err(super::io(&path))?.len();
        let sha256 = if job.digests { Some(sha256(&path)?) } else { None };
        files.push(WrittenFile { name, bytes, sha256 });
    }
    Ok(Report { total, classes: classes.into_values().collect(), files })
}

/// Writes one entry.
fn one(job: &Job<'_>, entry: &Entry, placed: &Placed, file: &mut StreamFile) -> Result<Option<CastReport>> {
    let output = &entry.output;
    match (&entry.fate, &placed.scale) {
        (Fate::Quantize { scheme, .. }, Some(scale)) => {
            let made = to_fp8(output, scheme, job.quant)?;
            let scales: Vec<u8> = made.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
            fits(output, &placed.weight.name, placed.weight.len, made.q.len())?;
            fits(output, &scale.name, scale.len, scales.len())?;
            file.write_at(placed.weight.offset, &made.q)?;
            file.write_at(scale.offset, &scales)?;
            Ok(Some(made.report))
        }
        _ => {
            copy(output, placed, file)?;
            Ok(None)
        }
    }
}

fn copy(output: &Output, placed: &Placed, file: &mut StreamFile) -> Result<()> {
    let data = match &output.data {
        Data::Plain(data) => data.clone(),
        Data::Columns { .. } => output.load()?.into(),
    };
    fits(output, &placed.weight.name, placed.weight.len, data.len())?;
    for part in data.parts(CHUNK) {
        let (start, bytes) = part?;
        file.write_at(placed.weight.offset + start as u64, &bytes)?;
    }
    Ok(())
}

fn to_fp8(output: &Output, scheme: &Scheme, quant: &dyn BlockQuant) -> Result<Quantized> {
    let ([rows, cols], Some(elem)) = (&output.shape[..], output.elem) else { return Err(output.short().into()) };
    let data = output.load()?;
    let made =
        quantize(&Input { name: &output.name, data, elem, rows: *rows, cols: *cols }, scheme, quant, Measure::All)?;
    if contains_nan_code(&made.q) {
        return Err(refused(
            format!("tensor `{}`", output.name),
            "its FP8 codes hold NaN under the chosen edge policy; an engine would load a model with NaN weights",
            "repair the weight (--set edges=strict names the value)",
        ));
    }
    Ok(made)
}

/// What is written is what the header promised.
fn fits(output: &Output, name: &str, planned: u64, made: usize) -> Result<()> {
    if planned == made as u64 {
        return Ok(());
    }
    Err(refused(
        format!("tensor `{name}`"),
        format!("{made} bytes were made of `{}`, {planned} were planned", output.name),
        "please report this",
    ))
}

fn class(role: Role) -> &'static str {
    match role {
        Role::Attention => "attention",
        Role::Expert => "experts",
        Role::SharedExpert => "shared experts",
        Role::Mlp => "dense",
        Role::Router => "router",
        Role::Embedding => "embedding",
        Role::LmHead => "lm_head",
        Role::Norm => "norm",
        Role::Buffer => "buffer",
        Role::Other => "other",
    }
}
