//! Checkpoints of a run: `step-N` folders that appear whole or not at all. What is drawn at random follows from the seed
//! and the number of the step, so there is no other state of a generator to keep.
//!
//! | file | holds |
//! |---|---|
//! | `masters.safetensors` | master weights, F32, by the model's own names |
//! | `adamw.safetensors` | the moments, F32: `m.NAME` and `v.NAME` |
//! | `state.json` | steps and updates done, settings, patch set, how far the metrics were, digests of the other files |

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use patchhost_runtime::checkpoint::Checkpoint as Tensors;
use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{Result, TrainError, refused, usage};
use super::lines::Mark;
use super::masters::{Masters, le_bytes};
use super::metrics::Point;
use super::trainer::Trainer;
use crate::checkpoint::staging::{Staging, StagingError, sweep};
use crate::checkpoint::stream::{io, sha256};
use crate::checkpoint::write::{Out, safetensors, write_file};

const PREFIX: &str = "step-";
const MASTERS: &str = "masters.safetensors";
const ADAMW: &str = "adamw.safetensors";
const STATE: &str = "state.json";
const FORMAT: u32 = 1;

/// `state.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    format: u32,
    /// Steps done.
    pub step: u64,
    /// Updates of the optimizer.
    pub updates: u64,
    /// [`super::Settings`].
    pub settings: Value,
    /// Digest of the patch set of the last step.
    pub patch_set: Option<String>,
    /// How far the metrics file was; none where there is none.
    pub metrics: Option<Mark>,
    /// What the plot shows.
    pub history: Vec<Point>,
    /// SHA-256 of the other files.
    files: BTreeMap<String, String>,
}

/// The folder of a run's checkpoints. One process at a time.
pub struct Checkpoints {
    dir: PathBuf,
    keep: usize,
    /// Held as long as the run lives.
    _lock: File,
}

impl Checkpoints {
    /// Opens the folder, which is made if it is not there. Of the checkpoints the newest `keep` stay.
    pub fn open(dir: &Path, keep: usize) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(io(dir))?;
        let path = dir.join(".lock");
        let lock = File::options().create(true).append(true).open(&path).map_err(io(&path))?;
        if let Err(std::fs::TryLockError::WouldBlock) = lock.try_lock() {
            return Err(refused(shown(dir), "another run is writing to it", "wait for it, or give another folder"));
        }
        sweep(dir, PREFIX)?;
        Ok(Self { dir: dir.to_path_buf(), keep: keep.max(1), _lock: lock })
    }

    /// Numbers of the steps that there are checkpoints of, the newest first.
    pub fn steps(&self) -> Result<Vec<u64>> {
        let mut steps = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(io(&self.dir))? {
            let name = entry.map_err(io(&self.dir))?.file_name();
            steps.extend(name.to_str().and_then(|n| n.strip_prefix(PREFIX)).and_then(|n| n.parse::<u64>().ok()));
        }
        steps.sort_unstable_by(|a, b| b.cmp(a));
        Ok(steps)
    }

    /// Refuses a folder that holds a run already.
    pub fn require_empty(&self) -> Result<()> {
        match self.steps()?.first() {
            None => Ok(()),
            Some(step) => Err(usage(
                shown(&self.dir),
                format!("it holds a run of {step} steps"),
                "give --resume to go on with it, or another folder",
            )),
        }
    }

    fn folder(&self, step: u64) -> PathBuf {
        self.dir.join(format!("{PREFIX}{step:08}"))
    }

    /// Writes a checkpoint of the run as it stands, then removes the oldest ones.
    pub fn save(&self, trainer: &Trainer, metrics: Option<Mark>, history: &[Point]) -> Result<PathBuf> {
        let place = self.folder(trainer.step);
        if place.exists() {
            return Ok(place);
        }
        let staging = Staging::new(place, self.dir.clone(), false).map_err(|e| match e {
            StagingError::Write(e) => TrainError::Write(e),
            StagingError::Busy(hidden) => {
                refused(shown(&self.dir), format!("`{}` is being written", hidden.display()), "wait for the other run")
            }
        })?;
        let all = trainer.masters.all();
        let mut weights = Vec::with_capacity(all.len());
        let mut moments = Vec::with_capacity(2 * all.len());
        for (master, state) in all.iter().zip(&trainer.optimizer.moments) {
            let out = |name: String, values: &[f32]| Out {
                name,
                dtype: Dtype::F32,
                shape: master.shape.clone(),
                data: Cow::Owned(le_bytes(values)),
            };
            weights.push(out(master.name.clone(), &master.values()?));
            moments.push(out(format!("m.{}", master.name), &state.m));
            moments.push(out(format!("v.{}", master.name), &state.v));
        }
        let mut files = BTreeMap::new();
        for (name, tensors) in [(MASTERS, weights), (ADAMW, moments)] {
            let path = staging.path().join(name);
            safetensors(&path, &tensors, HashMap::new())?;
            files.insert(name.to_string(), sha256(&path)?);
        }
        let state = State {
            format: FORMAT,
            step: trainer.step,
            updates: trainer.optimizer.updates,
            settings: trainer.settings.value(),
            patch_set: trainer.patch_set.clone(),
            metrics,
            history: history.to_vec(),
            files,
        };
        let path = staging.path().join(STATE);
        let text = serde_json::to_vec_pretty(&state).map_err(std::io::Error::from).map_err(io(&path))?;
        write_file(&path, &text)?;
        let place = staging.publish()?;
        for old in self.steps()?.into_iter().skip(self.keep) {
            let path = self.folder(old);
            std::fs::remove_dir_all(&path).map_err(io(&path))?;
        }
        Ok(place)
    }

    /// Brings a run that has not begun to where the newest checkpoint is; none where there is no checkpoint. A damaged
    /// checkpoint is told to `skipped` and an older one taken.
    pub fn resume(&self, trainer: &mut Trainer, skipped: &dyn Fn(&str)) -> Result<Option<State>> {
        for step in self.steps()? {
            let folder = self.folder(step);
            let state = match read_state(&folder) {
                Ok(state) => state,
                Err(why) => {
                    skipped(&format!("checkpoint `{}` is passed over: {why}", folder.display()));
                    continue;
                }
            };
            same_settings(&folder, &state.settings, &trainer.settings.value())?;
            restore(trainer, &folder, &state)?;
            return Ok(Some(state));
        }
        Ok(None)
    }
}

/// The state of a checkpoint whose files are whole.
fn read_state(folder: &Path) -> std::result::Result<State, String> {
    let path = folder.join(STATE);
    let text =
        patchhost_runtime::files::read(&path, patchhost_runtime::files::LIST).map_err(|e| format!("{STATE}: {e}"))?;
    let state: State = serde_json::from_slice(&text).map_err(|e| format!("{STATE}: {e}"))?;
    if state.format != FORMAT {
        return Err(format!("its format is {}, this program reads {FORMAT}", state.format));
    }
    for name in [MASTERS, ADAMW] {
        let found = sha256(&folder.join(name)).map_err(|e| e.to_string().replace("\n ", ";"))?;
        if state.files.get(name) != Some(&found) {
            return Err(format!("{name} has sha256 {found}, {STATE} says another"));
        }
    }
    Ok(state)
}

/// Names the first setting that is another than in the checkpoint.
fn same_settings(folder: &Path, then: &Value, now: &Value) -> Result<()> {
    let Some((name, then, now)) = difference("", then, now) else { return Ok(()) };
    let text = |v: &Value| crate::base::text::clean(&v.to_string(), 160);
    Err(refused(
        format!("resuming from `{}`", folder.display()),
        format!("`{name}` is {}, the run began with {}", text(now), text(then)),
        "give the same settings (patches and --steps may differ), or begin a new run in another folder",
    ))
}

/// The first leaf that differs, by its path.
fn difference<'v>(path: &str, then: &'v Value, now: &'v Value) -> Option<(String, &'v Value, &'v Value)> {
    let (Some(a), Some(b)) = (then.as_object(), now.as_object()) else {
        return (then != now).then(|| (path.to_string(), then, now));
    };
    let missing = &Value::Null;
    b.keys().chain(a.keys()).find_map(|key| {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        difference(&path, a.get(key).unwrap_or(missing), b.get(key).unwrap_or(missing))
    })
}

fn restore(trainer: &mut Trainer, folder: &Path, state: &State) -> Result<()> {
    let weights = Tensors::open(&folder.join(MASTERS))?;
    let moments = Tensors::open(&folder.join(ADAMW))?;
    // Everything is read before anything is replaced.
    let values = read(&trainer.masters, &weights, "")?;
    let m = read(&trainer.masters, &moments, "m.")?;
    let v = read(&trainer.masters, &moments, "v.")?;
    for (master, values) in trainer.masters.all().iter().zip(values) {
        master.set(values)?;
    }
    for ((state, m), v) in trainer.optimizer.moments.iter_mut().zip(m).zip(v) {
        (state.m, state.v) = (m, v);
    }
    trainer.optimizer.updates = state.updates;
    trainer.step = state.step;
    trainer.patch_set = state.patch_set.clone();
    Ok(())
}

fn read(masters: &Masters, from: &Tensors, prefix: &str) -> Result<Vec<Vec<f32>>> {
    let one = |name: &str, shape: &[usize]| -> Result<Vec<f32>> {
        let found = from.get(&format!("{prefix}{name}"));
        let found = found.filter(|t| t.stored == Dtype::F32 && t.shape == shape);
        let found = found.ok_or_else(|| {
            let why = "the checkpoint does not hold it in F32 with the model's shape";
            usage(format!("tensor `{prefix}{name}`"), why, "resume with the model that the run began with")
        })?;
        Ok(found.data.load()?.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    };
    masters.all().iter().map(|m| one(&m.name, &m.shape)).collect()
}

fn shown(dir: &Path) -> String {
    format!("--checkpoint-dir {}", crate::base::text::clean(&dir.display().to_string(), 200))
}
