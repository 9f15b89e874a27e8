//! Tensors that are alike in all but the numbers in their names, summed up in one row.

use super::class::layer_of;
use super::report::Report;
use super::tables::{TOTALS, Table, totals_cells};
use super::tensors::{State, TensorRow, Totals, totals};
use crate::base::fold::fold;

/// Tensors that share a row.
pub(super) struct Group {
    /// What their names have in common: `layers.3.mlp.experts.{0..127}.up_proj.weight`.
    pub(super) name: String,
    /// Dimensions of each.
    pub(super) shape: Vec<u64>,
    /// Their sums.
    pub(super) totals: Totals,
}

/// How far tensors are put together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// The experts of a layer.
    Experts,
    /// The experts of all layers, and what else differs in numbers alone.
    Numbers,
}

/// The groups, those first that hold the worst tensors.
pub(super) fn groups(report: &Report, by: By) -> Vec<Group> {
    type Key<'r> = (&'r [u64], State, Option<usize>);
    let key = |row: &'_ TensorRow| match by {
        By::Numbers => None,
        By::Experts => layer_of(&row.name),
    };
    let rows = report.tensors.iter().map(|r| (r.name.as_str(), (r.shape.as_slice(), r.state, key(r)) as Key<'_>));
    let folds = fold(rows);
    folds
        .into_iter()
        .filter_map(|fold| {
            let members = || fold.rows.iter().filter_map(|i| report.tensors.get(*i));
            let shape = members().next()?.shape.clone();
            Some(Group { shape, totals: totals(members()), name: patchhost_runtime::error::plain(fold.name.clone()) })
        })
        .collect()
}

/// The groups as a table.
pub(super) fn table(title: String, groups: &[Group]) -> Table {
    let row = |group: &Group| {
        let shape = group.shape.iter().map(u64::to_string).collect::<Vec<_>>().join("x");
        let mut cells = vec![group.name.clone(), group.totals.tensors.to_string(), shape];
        cells.extend(totals_cells(&group.totals));
        cells
    };
    Table {
        title,
        head: ["tensors", "count", "shape"].into_iter().chain(TOTALS).collect(),
        rows: groups.iter().map(row).collect(),
        notes: Vec::new(),
    }
}
