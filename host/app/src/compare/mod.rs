//! Comparing two quantizations of one model: the bytes they make, what each class of layers costs in predictions, and how
//! far the result is from the trainer. Everything here is computation and rendering; `cmd/compare.rs` does the rest.

mod ablation;
mod bits;
pub(crate) mod chart;
mod class;
mod error;
mod html;
mod judge;
mod logprobs;
mod report;
pub mod rollout_corr;
pub mod rollout_rs;
mod subset;
mod tables;
mod tensors;
mod text;
mod trainer;
mod units;

pub use ablation::{Ablation, Candidate, Effect, Runs};
pub use bits::{CodeDiff, ScaleDiff, Signal, code_steps, scale_ulps};
pub use class::{Class, layer_of};
pub use error::{CompareError, Result};
pub use html::render as html;
pub use judge::{Pair, judge};
pub use logprobs::{Distance, Sequences, token_logprobs};
pub use report::{ClassTotals, Report, RolloutCorr, SideInfo};
pub use subset::{Only, Subset};
pub(crate) use tables::number;
pub use tensors::{SideRow, SideTotals, State, TensorRow, Totals, compare_unit, totals};
pub use text::render as text;
pub use trainer::Trainer;
pub(crate) use units::reader;
pub use units::{Piece, Unit, decide, of_file, of_model};
