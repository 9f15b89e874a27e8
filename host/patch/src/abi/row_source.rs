//! `patchhost:patch/row-source`: the one host function. Its cost is bounded by the size of a read and by an allowance
//! per call.

use super::bindings::row_source as wit;
use crate::sandbox::{ImportRefused, Lent, State};
use patchhost_kernels::source::Source;
use patchhost_kernels::spec::Elem;
use patchhost_runtime::hooks::{HookCause, RowPanel};
use wasmtime::component::{HasSelf, Linker};

/// Most bytes of bf16 in one read, unless one row is longer.
const READ_BYTES: usize = 128 << 10;

/// Links the interface.
pub(crate) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    wit::add_to_linker::<State, HasSelf<State>>(linker, |state| state)
}

/// How many rows one read may ask for.
pub(super) fn max_rows(cols: usize) -> usize {
    (READ_BYTES / 2).checked_div(cols).unwrap_or(0).max(1)
}

impl wit::Host for State {
    fn read_rows(&mut self, first: u32, n: u32) -> wasmtime::Result<Vec<u16>> {
        let Some(lent) = &mut self.lent else {
            return refuse(HookCause::BadOutput, "it called `read-rows` outside of `panel-scales`".into());
        };
        let range = check(lent, first as usize, n as usize)?;
        to_bf16(&lent.panel.data[range], lent.panel.elem, lent.panel.cols)
    }
}

/// The bytes of rows `first .. first + n` of the panel.
fn check(lent: &mut Lent, first: usize, n: usize) -> wasmtime::Result<std::ops::Range<usize>> {
    let RowPanel { cols, rows, first_row, elem, ref data } = lent.panel;
    if first.checked_add(n).is_none_or(|end| end > rows) {
        let why = format!("it asked for rows {first} to {first}+{n} of a panel of {rows}");
        return refuse(HookCause::BadOutput, why);
    }
    if n > max_rows(cols) {
        let why = format!("it asked for {n} rows in one read; `max-rows` was {}", max_rows(cols));
        return refuse(HookCause::Limit, why);
    }
    let values = n * cols;
    // At least one: reading nothing must not be free.
    let Some(left) = lent.allowance.checked_sub((values as u64).max(1)) else {
        let why = "it read its panel more often than the limit `panel_reads` allows".into();
        return refuse(HookCause::Limit, why);
    };
    lent.allowance = left;
    let start = (first_row + first) * cols * elem.size();
    let range = start..start + values * elem.size();
    if range.end > data.len() {
        // Not the guest's fault: the host lent a panel that its bytes do not hold.
        return refuse(HookCause::Unsupported, "the lent panel ends beyond its tensor".into());
    }
    Ok(range)
}

fn refuse<T>(cause: HookCause, why: String) -> wasmtime::Result<T> {
    Err(wasmtime::Error::new(ImportRefused { cause, why }))
}

/// The rows as bf16 bits: copied, or rounded to nearest even by the kernels' own code.
fn to_bf16(bytes: &[u8], elem: Elem, cols: usize) -> wasmtime::Result<Vec<u16>> {
    let row_bytes = cols * elem.size();
    let rows = bytes.len().checked_div(row_bytes).unwrap_or(0);
    let Ok(source) = Source::new(bytes, elem, rows, cols) else {
        return refuse(HookCause::Unsupported, "the lent panel is not whole rows".into());
    };
    let mut out = vec![0; rows * cols];
    for (row, out) in out.chunks_mut(cols.max(1)).enumerate() {
        source.row_bf16(row, out);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};
    use patchhost_runtime::bytes::TensorBytes;
    use std::sync::Arc;

    fn lent(rows: usize, cols: usize, allowance: u64) -> Lent {
        let bytes: Vec<u8> = (0..(rows + 2) * cols).flat_map(|i| (i as u16).to_le_bytes()).collect();
        let length = bytes.len();
        let data = TensorBytes::new(Arc::new(bytes), 0..length).expect("the whole of it");
        Lent { panel: RowPanel { data, elem: Elem::Bf16, cols, first_row: 2, rows }, allowance }
    }

    #[test]
    fn reads_are_of_the_panel_only() {
        let mut lent = lent(4, 3, 1_000);
        let range = check(&mut lent, 1, 2).expect("inside");
        let values = to_bf16(&lent.panel.data[range], Elem::Bf16, 3).expect("whole rows");
        assert_eq!(values, [9, 10, 11, 12, 13, 14]);
        check(&mut lent, 3, 2).expect_err("a row too many");
        check(&mut lent, usize::MAX, 1).expect_err("no wrap");
    }

    #[test]
    fn reading_for_ever_ends() {
        let mut lent = lent(4, 3, 24);
        check(&mut lent, 0, 4).expect("once");
        check(&mut lent, 0, 4).expect("twice");
        check(&mut lent, 0, 0).expect_err("not even nothing");
    }

    #[test]
    fn a_read_is_bounded() {
        assert_eq!(max_rows(4096), 16);
        assert_eq!(max_rows(1 << 20), 1);
        assert_eq!(max_rows(0), 1);
    }

    #[test]
    fn other_types_are_rounded() {
        let f32s: Vec<u8> = [1.0f32, -2.5, 1.003].iter().flat_map(|x| x.to_le_bytes()).collect();
        let expected = [1.0f32, -2.5, 1.003].map(|x| bf16::from_f32(x).to_bits());
        assert_eq!(to_bf16(&f32s, Elem::F32, 3).expect("one row"), expected);
        let f16s: Vec<u8> = [1.0f32, -2.5].iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        assert_eq!(to_bf16(&f16s, Elem::F16, 1).expect("two rows"), expected[..2]);
    }
}
