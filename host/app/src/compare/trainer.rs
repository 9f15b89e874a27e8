//! The trainer's log-probs, from a safetensors file.
//!
//! | tensor | dtype, shape | meaning |
//! |---|---|---|
//! | `input_ids` | I64 [n] or [b, n] | whole sequences: prompt and response |
//! | `logprobs` (or verl's `old_log_probs`) | F32 [n], [b, n], or [b, t] with t < n | the trainer's log-prob of each token given those before it in its sequence; [b, t] is for the last t tokens, as verl has it. The value of a sequence's first token is not used |
//! | `response_mask` | BOOL, U8, I64 or F32, shape of `logprobs`; optional | 1 where a token counts, else 0; without it every token counts |
//! | `attention_mask` | BOOL, U8, I64 or F32, shape of `input_ids`; optional | 0 is padding, on either end of a sequence: it is cut off before the forward pass |
//!
//! A sequence's first token never counts: nothing comes before it.

use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use safetensors::tensor::Dtype;

use super::error::{CompareError, Result, usage};
use super::rollout_corr::Token;

/// One sequence.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    ids: Vec<u32>,
    /// Of each token but the first: the trainer's log-prob, where it counts.
    training: Vec<Option<f64>>,
}

/// The trainer's view of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Trainer {
    rows: Vec<Row>,
}

impl Trainer {
    /// Reads and checks the file.
    pub fn read(label: &str, file: &Checkpoint) -> Result<Self> {
        let reader = Reader { label, file };
        let (rows, n, ids) = reader.ids()?;
        let logprobs = match (file.get("logprobs"), file.get("old_log_probs")) {
            (Some(_), Some(_)) => return Err(reader.bad("it has both `logprobs` and `old_log_probs`")),
            (Some(found), None) | (None, Some(found)) => found,
            (None, None) => return Err(reader.bad("it has no tensor `logprobs` (nor `old_log_probs`)")),
        };
        let t = reader.columns(logprobs, rows, n)?;
        let training = reader.floats(logprobs)?;
        let counts = reader.mask("response_mask", &logprobs.shape)?;
        let present = reader.mask("attention_mask", &reader.shape_of("input_ids"))?;

        let mut out = Vec::with_capacity(rows);
        for i in 0..rows {
            let range = match &present {
                None => 0..n,
                Some(mask) => reader.unpadded(i, &mask[i * n..(i + 1) * n])?,
            };
            let row_ids = ids[i * n..(i + 1) * n].get(range.clone()).unwrap_or_default().to_vec();
            let of = |position: usize| -> Result<Option<f64>> {
                let Some(k) = position.checked_sub(n - t) else { return Ok(None) };
                let at = i * t + k;
                if counts.as_ref().is_some_and(|mask| !mask[at]) {
                    return Ok(None);
                }
                let value = f64::from(training[at]);
                // A little above 0 is rounding of the trainer; more is no log-prob.
                if value.is_finite() && value <= 1e-3 {
                    return Ok(Some(value));
                }
                Err(reader.bad(format!("`{}` of sequence {i}, token {position} is {value}", logprobs.name)))
            };
            let training = range.skip(1).map(of).collect::<Result<_>>()?;
            out.push(Row { ids: row_ids, training });
        }
        if out.iter().all(|r: &Row| r.training.iter().all(Option::is_none)) {
            return Err(reader.bad("no token counts: the masks leave none that has another before it"));
        }
        Ok(Self { rows: out })
    }

    /// Token ids of the sequences, padding cut off.
    pub fn sequences(&self) -> impl Iterator<Item = &[u32]> {
        self.rows.iter().map(|r| r.ids.as_slice())
    }

    /// Tokens that count.
    pub fn counted(&self) -> usize {
        self.rows.iter().map(|r| r.training.iter().flatten().count()).sum()
    }

    /// The batch of the metrics, with the rollout's log-probs of each sequence's tokens but the first.
    pub fn batch(&self, rollout: &[Vec<f64>]) -> Vec<Vec<Token>> {
        let pair = |row: &Row, rollout: &Vec<f64>| {
            let both = row.training.iter().zip(rollout);
            both.filter_map(|(t, r)| t.map(|training| Token { training, rollout: *r })).collect()
        };
        self.rows.iter().zip(rollout).map(|(row, rollout)| pair(row, rollout)).collect()
    }
}

struct Reader<'a> {
    label: &'a str,
    file: &'a Checkpoint,
}

impl Reader<'_> {
    fn bad(&self, why: impl Into<String>) -> CompareError {
        usage(
            format!("--trainer-logprobs {}", self.label),
            why,
            "give `input_ids` I64 [b,n], `logprobs` F32 [b,n] or [b,t], finite and at most 0, and if needed \
             `response_mask` and `attention_mask` (see `patchhost compare --help`)",
        )
    }

    fn shape_of(&self, name: &str) -> Vec<usize> {
        self.file.get(name).map(|t| t.shape.clone()).unwrap_or_default()
    }

    /// Sequences, tokens of each, and the ids.
    fn ids(&self) -> Result<(usize, usize, Vec<u32>)> {
        let tensor = self.file.get("input_ids").ok_or_else(|| self.bad("it has no tensor `input_ids`"))?;
        if tensor.stored != Dtype::I64 {
            return Err(self.bad(format!("`input_ids` is {:?}, not I64", tensor.stored)));
        }
        let (rows, n) = match tensor.shape[..] {
            [n] if n > 0 => (1, n),
            [rows, n] if rows > 0 && n > 0 => (rows, n),
            _ => return Err(self.bad(format!("`input_ids` has shape {:?}", tensor.shape))),
        };
        let data = tensor.data.load()?;
        let ids = data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b));
        let ids: std::result::Result<Vec<u32>, i64> = ids.map(|id| u32::try_from(id).map_err(|_| id)).collect();
        Ok((rows, n, ids.map_err(|id| self.bad(format!("`input_ids` holds {id}, which is no token id")))?))
    }

    /// Columns of the log-probs.
    fn columns(&self, tensor: &CheckpointTensor, rows: usize, n: usize) -> Result<usize> {
        match tensor.shape[..] {
            [t] if rows == 1 && (1..=n).contains(&t) => Ok(t),
            [b, t] if b == rows && (1..=n).contains(&t) => Ok(t),
            _ => Err(self.bad(format!(
                "`{}` has shape {:?}, `input_ids` {:?}",
                tensor.name,
                tensor.shape,
                self.shape_of("input_ids")
            ))),
        }
    }

    fn floats(&self, tensor: &CheckpointTensor) -> Result<Vec<f32>> {
        if tensor.stored != Dtype::F32 {
            return Err(self.bad(format!("`{}` is {:?}, not F32", tensor.name, tensor.stored)));
        }
        Ok(tensor.data.load()?.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    fn mask(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<bool>>> {
        let Some(tensor) = self.file.get(name) else { return Ok(None) };
        if tensor.shape != shape {
            return Err(self.bad(format!("`{name}` has shape {:?}, it belongs to {shape:?}", tensor.shape)));
        }
        let data = tensor.data.load()?;
        let values: Vec<f64> = match tensor.stored {
            Dtype::BOOL | Dtype::U8 => data.iter().map(|b| f64::from(*b)).collect(),
            Dtype::I64 => data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
            Dtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
            other => return Err(self.bad(format!("`{name}` is {other:?}, not BOOL, U8, I64 or F32"))),
        };
        match values.iter().find(|v| **v != 0.0 && **v != 1.0) {
            Some(v) => Err(self.bad(format!("`{name}` holds {v}; a mask is 0 or 1"))),
            None => Ok(Some(values.iter().map(|v| *v == 1.0).collect())),
        }
    }

    /// Where a sequence's tokens lie between its padding.
    fn unpadded(&self, row: usize, mask: &[bool]) -> Result<std::ops::Range<usize>> {
        let first = mask.iter().position(|m| *m);
        let last = mask.iter().rposition(|m| *m);
        match first.zip(last) {
            Some((first, last)) if mask[first..=last].iter().all(|m| *m) => Ok(first..last + 1),
            Some(_) => Err(self.bad(format!("`attention_mask` of sequence {row} has a hole"))),
            None => Err(self.bad(format!("`attention_mask` of sequence {row} leaves no token"))),
        }
    }
}
