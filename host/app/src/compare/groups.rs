//! Tensors in lines: each on its own, or those that are alike in all but the numbers in their names summed up in one.

use super::class::layer_of;
use super::report::Report;
use super::tables::{Table, decibel, lost, most, number, ratio, side};
use super::tensors::{SideRow, State, TensorRow, Totals, totals};
use crate::base::fold::fold;

/// Tensors that share a line.
pub(super) struct Group {
    /// What their names have in common: `layers.3.mlp.experts.{0..127}.up_proj.weight`.
    pub(super) name: String,
    /// Dimensions of each.
    shape: String,
    /// Who quantizes them.
    by: String,
    /// Their sums.
    pub(super) totals: Totals,
}

/// How far tensors are put together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// Each has a line.
    Tensor,
    /// The experts of a layer share one.
    Experts,
    /// The experts of all layers share one, as does whatever else differs in numbers alone.
    Numbers,
}

/// The groups, those first that hold the worst tensors.
pub(super) fn groups(report: &Report, by: By) -> Vec<Group> {
    if by == By::Tensor {
        return report.tensors.iter().map(|row| group(row.name.clone(), row, totals([row]))).collect();
    }
    // Whoever quantizes them and in which blocks: tensors that differ in that are not alike.
    let key = |row: &TensorRow| {
        let apart = match by {
            By::Experts if row.name.contains("experts.") => layer_of(&row.name).map(|layer| layer.to_string()),
            By::Experts => Some(row.name.clone()),
            _ => None,
        };
        (row.shape.clone(), quantized_by(row), apart)
    };
    let folds = fold(report.tensors.iter().map(|row| (row.name.as_str(), key(row))));
    folds
        .into_iter()
        .filter_map(|fold| {
            let members = || fold.rows.iter().filter_map(|i| report.tensors.get(*i));
            Some(group(fold.name.clone(), members().next()?, totals(members())))
        })
        .collect()
}

fn group(name: String, first: &TensorRow, totals: Totals) -> Group {
    let shape = first.shape.iter().map(u64::to_string).collect::<Vec<_>>().join("x");
    Group { name: patchhost_runtime::error::plain(name), shape, by: quantized_by(first), totals }
}

/// In words, with both sizes of blocks where they are not the same.
fn quantized_by(row: &TensorRow) -> String {
    let block = |s: &Option<SideRow>| s.as_ref().map_or("-".to_string(), |s| format!("{}x{}", s.block[0], s.block[1]));
    match row.state {
        State::Both => "both".to_string(),
        State::OnlyA => "only A".to_string(),
        State::OnlyB => "only B".to_string(),
        State::DifferentBlocks => format!("{} / {}", block(&row.a), block(&row.b)),
    }
}

/// Every tensor, or the `most` worst lines after the experts of each layer were summed up.
pub(super) fn worst(report: &Report, most: Option<usize>) -> Table {
    let title = "Tensors, the worst first".to_string();
    let Some(most) = most else { return table(title, &groups(report, By::Tensor)) };
    let groups = groups(report, By::Experts);
    let (shown, left) = groups.split_at(most.min(groups.len()));
    let mut table = table(title, shown);
    let left: usize = left.iter().map(|group| group.totals.tensors).sum();
    if left > 0 {
        table.notes.push(format!("and {left} more (--all)"));
    }
    table
}

/// The groups as a table. How many tensors share a line is said where any do.
pub(super) fn table(title: String, groups: &[Group]) -> Table {
    let row = |group: &Group| {
        let t = &group.totals;
        vec![
            group.name.clone(),
            t.tensors.to_string(),
            group.shape.clone(),
            group.by.clone(),
            ratio(t.scales.differing, t.scales.total),
            most(t.scales.max_ulp, t.scales.total),
            ratio(t.weight_bytes.differing, t.weight_bytes.total),
            most(t.weight_bytes.max_steps, t.weight_bytes.total),
            number(t.max_abs_difference),
            side(t.a.as_ref(), |s| decibel(s.snr_db)),
            side(t.b.as_ref(), |s| decibel(s.snr_db)),
            side(t.a.as_ref(), lost),
            side(t.b.as_ref(), lost),
        ]
    };
    let mut head = vec![
        "tensor",
        "tensors",
        "shape",
        "quantized by",
        "scales differ",
        "max ulp",
        "weight bytes differ",
        "max steps",
        "max |A-B|",
        "SNR A",
        "SNR B",
        "sat+flush A",
        "sat+flush B",
    ];
    let mut rows: Vec<Vec<String>> = groups.iter().map(row).collect();
    if groups.iter().all(|group| group.totals.tensors == 1) {
        head.remove(1);
        rows.iter_mut().for_each(|row| drop(row.remove(1)));
    }
    Table { title, head, rows, notes: Vec::new() }
}
