//! patchhost's side of `bench/peers`: a worker that is told on standard input, one JSON object a line, what to do, and
//! answers with one JSON object a line. The driver keeps one worker per engine and asks them in turn, so that a noisy
//! machine spoils all alike. See `bench/peers/README.md`.

mod decode;
mod linear;
mod quantize;

use anyhow::Context;
use clap::{Parser, Subcommand};
use patchhost::patch::{Patch, Reviewing, Sandbox, Terms, resolve};
use serde_json::{Value, json};
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// A worker of bench/peers
#[derive(Parser)]
struct Cli {
    /// Worker threads
    #[arg(long, global = true, default_value_t = 1)]
    threads: usize,
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// Block FP8 quantization: jobs {"what", "input", "rows", "cols", "repeats", "keep"?, "dump"?}
    Quantize,
    /// y = x * w^T: jobs {"m", "k", "n", "bytes", "repeats", "weights": "fp8" or "bf16"}; read bandwidth: {"read": true, "bytes",
    /// "repeats", "pages": "small" or "large"}
    Linear,
    /// Generation: jobs {"prompts": [[token, ...], ...], "new"}
    Decode {
        /// A Hugging Face model folder
        model: PathBuf,
        /// The patch that quantizes; none: weights as stored
        #[arg(long)]
        component: Option<String>,
        /// Weight-only: activations before FP8 matrices are not quantized
        #[arg(long)]
        weight_only: bool,
    },
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    rayon::ThreadPoolBuilder::new().num_threads(cli.threads).build_global()?;
    let sandbox = Sandbox::new(cli.threads).map_err(|e| anyhow::anyhow!("{e:#}"))?;
    match cli.work {
        Work::Quantize => {
            let mut work = quantize::Work::new(&sandbox)?;
            answer(json!({}), |job| work.run(job))
        }
        Work::Linear => {
            let mut work = linear::Work::default();
            answer(json!({}), |job| work.run(job))
        }
        Work::Decode { model, component, weight_only } => {
            let (work, ready) = decode::Work::load(&sandbox, &model, component.as_deref(), weight_only)?;
            answer(ready, |job| work.run(job))
        }
    }
}

/// Says that it is ready, then does one job a line until the input ends.
fn answer(ready: Value, mut work: impl FnMut(&Value) -> anyhow::Result<Value>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let mut say = |value: Value| -> anyhow::Result<()> {
        writeln!(out, "{value}")?;
        Ok(out.flush()?)
    };
    say(
        json!({ "ready": true, "version": env!("CARGO_PKG_VERSION"), "isa": format!("{:?}", patchhost_kernels::Isa::detect()), "about": ready }),
    )?;
    for line in std::io::stdin().lock().lines() {
        let job: Value = serde_json::from_str(&line?).context("a job is a JSON object")?;
        say(match work(&job) {
            Ok(value) => value,
            Err(error) => json!({ "error": format!("{error:#}") }),
        })?;
    }
    Ok(())
}

/// A bundled patch, or one from a file, ready to be called.
fn ready(sandbox: &Sandbox, name: &str, settings: &[(String, String)]) -> anyhow::Result<Arc<Patch>> {
    let candidate = resolve(name)?;
    Ok(Reviewing::default().start(candidate, &Terms::settings(settings.to_vec()), sandbox)?)
}

/// A whole number of a job.
fn number(job: &Value, key: &str) -> anyhow::Result<usize> {
    let value = job[key].as_u64().with_context(|| format!("`{key}` must be a whole number: {job}"))?;
    Ok(usize::try_from(value)?)
}

/// Seconds of each of so many runs, after one that is not counted.
fn timed(repeats: usize, mut run: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Value> {
    run()?;
    let mut seconds = Vec::with_capacity(repeats);
    for _ in 0..repeats {
        let started = Instant::now();
        run()?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    Ok(json!({ "seconds": seconds }))
}

/// Numbers that look like weights: the sum of four uniforms, from a fixed seed.
fn normal(count: usize, scale: f32) -> impl Iterator<Item = f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..count).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let sum: u32 = (0..4).map(|i| (state >> (16 * i)) as u32 & 0xffff).sum();
        (sum as f32 / 65536.0 - 2.0) * scale
    })
}
