//! Numbers and words that occur in a component. A patch that answers wrongly for one value only must contain that
//! value, in its code or its data. Random questions would not meet one value in four thousand million, so the probe
//! asks about those that the component contains.

use std::collections::BTreeSet;
use wasmparser::{Operator, Parser, Payload};

/// Most numbers of code, and of data.
const WORDS: usize = 4_096;
/// Most words, and their length in bytes.
const NAMES: usize = 512;
const NAME_BYTES: std::ops::RangeInclusive<usize> = 4..=120;

/// The numbers and words that a component contains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Constants {
    /// 32-bit words of code, ascending.
    pub code: Vec<u32>,
    /// 32-bit words of data segments that code does not have, ascending.
    pub data: Vec<u32>,
    /// Runs of printable ASCII in data segments.
    pub names: Vec<String>,
}

/// Reads the numbers and words of a component. Of bytes that do not parse it finds none; the audit refuses those
/// anyway.
pub fn constants(component: &[u8]) -> Constants {
    let mut code = BTreeSet::new();
    let mut data = BTreeSet::new();
    let mut names = BTreeSet::new();
    for payload in Parser::new(0).parse_all(component) {
        match payload {
            Ok(Payload::CodeSectionEntry(body)) => {
                let Ok(operators) = body.get_operators_reader() else { continue };
                operators.into_iter().map_while(Result::ok).for_each(|op| operand(&op, &mut code));
            }
            Ok(Payload::GlobalSection(globals)) => {
                let operators = globals.into_iter().map_while(Result::ok).map(|g| g.init_expr.get_operators_reader());
                operators.flat_map(|ops| ops.into_iter().map_while(Result::ok)).for_each(|op| operand(&op, &mut code));
            }
            Ok(Payload::DataSection(segments)) => {
                for segment in segments.into_iter().map_while(Result::ok) {
                    segment.data.as_chunks::<4>().0.iter().for_each(|word| {
                        data.insert(u32::from_le_bytes(*word));
                    });
                    printable(segment.data, &mut names);
                }
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    let data: BTreeSet<u32> = data.difference(&code).copied().collect();
    Constants { code: spread(&code), data: spread(&data), names: names.into_iter().collect() }
}

/// At most as many as allowed, taken evenly from the whole range.
fn spread(words: &BTreeSet<u32>) -> Vec<u32> {
    words.iter().step_by(words.len().div_ceil(WORDS).max(1)).copied().collect()
}

fn operand(operator: &Operator<'_>, words: &mut BTreeSet<u32>) {
    let mut halves = |x: u64| words.extend([x as u32, (x >> 32) as u32]);
    match operator {
        Operator::I32Const { value } => halves(u64::from(*value as u32)),
        Operator::I64Const { value } => halves(*value as u64),
        Operator::F32Const { value } => halves(u64::from(value.bits())),
        Operator::F64Const { value } => {
            halves(value.bits());
            halves(u64::from((f64::from_bits(value.bits()) as f32).to_bits()));
        }
        Operator::V128Const { value } => {
            let (lanes, _) = value.bytes().as_chunks::<4>();
            lanes.iter().for_each(|lane| halves(u64::from(u32::from_le_bytes(*lane))));
        }
        _ => {}
    }
}

fn printable(data: &[u8], names: &mut BTreeSet<String>) {
    for run in data.split(|byte| !byte.is_ascii_graphic()) {
        if NAME_BYTES.contains(&run.len()) && names.len() < NAMES {
            names.insert(String::from_utf8_lossy(run).into_owned());
        }
    }
}

/// The values of amax that a condition on one of these words could mean: its bits, its neighbors, the half of it that
/// bf16 keeps, and the number itself.
pub(super) fn values(words: &[u32]) -> Vec<f32> {
    let of = |word: u32| {
        let (exact, whole) = (f32::from_bits(word), word as f32);
        let halves = [word << 16, word & 0xffff_0000].map(f32::from_bits);
        [exact, exact.next_up(), exact.next_down(), -exact, whole, halves[0], halves[1]]
    };
    let mut values: Vec<f32> = words.iter().flat_map(|word| of(*word)).filter(|x| x.is_finite() && *x > 0.0).collect();
    values.sort_by(f32::total_cmp);
    values.dedup();
    values
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_guest_could_wait_for_is_found() {
        let text = r#"(component (core module
            (memory 1)
            (global i32 (i32.const 77))
            (data (i32.const 0) "model.layers.17\00\01\00\00\00")
            (func (param f32) (result i32)
                (i32.and (i32.eq (i32.reinterpret_f32 (local.get 0)) (i32.const 0xC0FFEE))
                    (f32.eq (local.get 0) (f32.const 1.75))))))"#;
        let found = constants(&wat::parse_str(text).unwrap());
        for word in [0xC0_FFEE, 1.75f32.to_bits(), 77] {
            assert!(found.code.contains(&word), "{word:#x}");
        }
        assert_eq!(found.names, ["model.layers.17"]);
        assert!(found.data.contains(&u32::from_le_bytes(*b"mode")));
        let values = values(&found.code);
        for value in [f32::from_bits(0xC0_FFEE), 12_648_430.0, 1.75, f32::from_bits(0xC0_0000)] {
            assert!(values.contains(&value), "{value:e}");
        }
    }

    #[test]
    fn garbage_has_none() {
        assert_eq!(constants(b"nothing of the kind"), Constants::default());
        assert_eq!(constants(&[]), Constants::default());
    }
}
