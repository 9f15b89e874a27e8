//! Copies between matrices whose rows are made of heads.

use crate::rows::share;
use crate::team::{Disjoint, Team};

/// Where the values of head h of row i begin: at `i * row + h * head`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strides {
    /// From one row to the next.
    pub row: usize,
    /// From one head to the next.
    pub head: usize,
}

impl Strides {
    /// Row after row, each with `heads` heads of `width` values.
    pub fn rows(heads: usize, width: usize) -> Self {
        Self { row: heads * width, head: width }
    }

    /// Head after head, each with `rows` rows of `width` values.
    pub fn heads(rows: usize, width: usize) -> Self {
        Self { row: width, head: rows * width }
    }
}

/// Copies `width` values of each head of each row.
///
/// # Panics
/// If a slice is too short, or what is written overlaps.
pub fn copy_heads(
    team: &Team,
    [rows, heads, width]: [usize; 3],
    from: &[f32],
    from_at: Strides,
    to: &mut [f32],
    to_at: Strides,
) {
    if rows * heads * width == 0 {
        return;
    }
    let Strides { row, head } = to_at;
    let by_row = head >= width && row >= (heads - 1) * head + width;
    let by_head = row >= width && head >= (rows - 1) * row + width;
    assert!(by_row || by_head, "no two heads of a row lie in the same place");
    let to = Disjoint::new(to);
    share(team, rows, heads * width, &|first, count| {
        for i in first..first + count {
            for h in 0..heads {
                // SAFETY: the assertion above keeps the heads of all rows apart, and each row is one task's.
                let to = unsafe { to.part(i * row + h * head, width) };
                to.copy_from_slice(&from[i * from_at.row + h * from_at.head..][..width]);
            }
        }
    });
}
