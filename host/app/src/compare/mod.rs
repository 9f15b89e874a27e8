//! Comparing two quantizations of one model: the bytes they make, what each class of layers costs in predictions, and how
//! far the result is from the trainer. Everything here is computation and rendering; `cmd/compare.rs` does the rest.

mod ablation;
pub(crate) mod axis;
mod bits;
mod chart;
mod class;
mod error;
mod groups;
mod html;
mod judge;
mod logprobs;
pub(crate) mod page;
mod paired;
mod report;
pub mod rollout_corr;
pub mod rollout_rs;
mod subset;
pub(crate) mod svg;
mod tables;
mod tensors;
mod text;
mod trainer;
mod units;
mod verdict;

pub use ablation::{Ablation, Candidate, Effect, Runs};
pub use bits::{CodeDiff, ScaleDiff, Signal, code_steps, scale_ulps};
pub use class::{Class, layer_of};
pub use error::{CompareError, Result};
pub use html::render as html;
pub use judge::{Pair, judge};
pub use logprobs::{Distance, Sequences, token_logprobs};
pub use paired::Paired;
pub use report::{ClassTotals, Report, RolloutCorr, SideInfo};
pub use subset::{Only, Subset};
pub(crate) use tables::{Table, brief, number};
pub use tensors::{SideRow, SideTotals, State, TensorRow, Totals, compare_unit, totals};
pub use text::render as text;
pub use trainer::Trainer;
pub(crate) use units::reader;
pub use units::{Piece, Unit, decide, of_file, of_model};
pub use verdict::{Better, Measure, Verdict};
