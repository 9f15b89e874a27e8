//! Looking for special cases that a patch could hide: answers that are wrong for one value, one tensor, one layer or
//! one number of blocks only. A probe cannot find what it does not ask; the cast in the host checks every scale in any
//! case.

use super::ask::{TENSOR, all, differ, scales, shown};
use super::constants::{self, Constants};
use super::run::Found;
use super::{synthetic, vectors};
use crate::native::{self, Reference};
use patchhost_kernels::cast::{Measure, cast_panel};
use patchhost_kernels::source::Source;
use patchhost_runtime::hooks::{BlockQuant, Blocks, Contract, Edges, Elem, HookCause, Needs, Scheme};

/// How many values most questions here have.
const MANY: usize = 256;
/// Values of the small questions that are asked hundreds of times.
const FEW: usize = 4;

/// Whether an answer is right: compared with the expected numbers, or with the contract where no formula gives them.
fn right(scheme: &Scheme, reference: Option<&Reference>, amax: &[f32], got: &[f32]) -> Result<(), String> {
    match reference.and_then(Reference::formula) {
        Some(profile) => {
            let expected = native::expected(profile, scheme, amax);
            match got.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits()) {
                None => Ok(()),
                Some(at) => Err(format!(
                    "for amax {} profile `{}` gives {}, it answered {}",
                    shown(amax[at]),
                    profile.name(),
                    shown(expected[at]),
                    shown(got[at])
                )),
            }
        }
        None => prove(scheme, amax, got),
    }
}

/// Checks scales as the cast of a refit does, with blocks that hold one value each. It checks nothing where the
/// contract allows a share of the values of a block to be clipped: one value has no share.
pub(super) fn prove(scheme: &Scheme, amax: &[f32], given: &[f32]) -> Result<(), String> {
    if matches!(scheme.cast.contract, Contract::Clip(_)) || amax.is_empty() {
        return Ok(());
    }
    let bytes: Vec<u8> = amax.iter().flat_map(|a| a.to_le_bytes()).collect();
    let source = Source::new(&bytes, Elem::F32, 1, amax.len()).map_err(|e| e.to_string())?;
    let (mut q, mut stored) = (vec![0; amax.len()], vec![0.0; amax.len()]);
    cast_panel(&source, 0, 1, 1, given, amax, &scheme.cast, Measure::Nothing, &mut q, &mut stored)
        .map(|_| ())
        .map_err(|violation| format!("scale contract broken: {violation}"))
}

/// Whether the same `amax` got the same scales when something changed that should not matter. Where the patch has a
/// recipe that the host does not know, other scales are allowed if they keep the contract; then it is a remark.
pub(super) fn alike(
    what: &str,
    scheme: &Scheme,
    reference: Option<&Reference>,
    amax: &[f32],
    (first, got): (&[f32], &[f32]),
    note: &mut Option<String>,
) -> Result<(), String> {
    let Err(why) = differ(what, amax, first, got) else { return Ok(()) };
    if reference.is_some() || first.len() != got.len() {
        return Err(why);
    }
    prove(scheme, amax, got).map_err(|broken| format!("{why}: {broken}"))?;
    note.get_or_insert(why);
    Ok(())
}

/// Every number that stands in the component, as amax, as a place, and every word of it as a name.
pub(super) fn constants(
    quant: &dyn BlockQuant,
    scheme: &Scheme,
    reference: Option<&Reference>,
    known: &Constants,
) -> Result<Found, String> {
    let (mut asked, mut note) = (0, None);
    let (code, data) = (constants::values(&known.code), constants::values(&known.data));
    // What code compares with, one at a time: it may look at the first block only.
    for amax in code.chunks(1).chain(data.chunks(MANY)) {
        let got = all(quant, scheme, amax)?;
        right(scheme, reference, amax, &got)?;
        asked += amax.len();
    }
    let amax = vectors::random(0xc057, FEW);
    let first = all(quant, scheme, &amax)?;
    // Places are small: most words are none.
    for word in known.code.iter().filter(|word| **word < 1 << 20) {
        let total = *word as usize + FEW;
        let got = scales(quant, scheme, TENSOR, *word as usize, total, &amax)?;
        alike(&format!("from block {word} on"), scheme, reference, &amax, (&first, &got), &mut note)?;
        asked += FEW;
    }
    for name in &known.names {
        let got = scales(quant, scheme, name, 0, FEW, &amax)?;
        let what = format!("for a tensor called `{}`", crate::base::text::clean(name, 80));
        alike(&what, scheme, reference, &amax, (&first, &got), &mut note)?;
        asked += FEW;
    }
    let worst =
        format!("{} numbers of code, {} of data, {} words", known.code.len(), known.data.len(), known.names.len());
    Ok(Found { worst: Some(worst), note, ..Found::asked(asked) })
}

/// Every layer of a deep model, every expert of a wide one, every size of a question up to a hundred blocks.
pub(super) fn places(
    quant: &dyn BlockQuant,
    scheme: &Scheme,
    reference: Option<&Reference>,
    layers: usize,
    seed: u64,
) -> Result<Found, String> {
    let amax = vectors::random(seed ^ 0x91ace, 96);
    let few = &amax[..FEW];
    let first = all(quant, scheme, &amax)?;
    let (mut asked, mut note) = (first.len(), None);
    let names = |layer: usize| {
        let expert = |e: usize| format!("model.layers.{layer}.mlp.experts.{e}.down_proj.weight");
        let dense = ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"];
        let dense = dense.map(|part| format!("model.layers.{layer}.{part}.weight"));
        dense.into_iter().chain([expert(layer % 8), expert(127 - layer % 128)])
    };
    for name in (0..layers).flat_map(names) {
        let got = scales(quant, scheme, &name, 0, FEW, few)?;
        alike(&format!("for `{name}`"), scheme, reference, few, (&first[..FEW], &got), &mut note)?;
        asked += FEW;
    }
    // Every last letter and every length that a name may have.
    let endings = (b'!'..=b'~').map(|letter| format!("model.layers.0.mlp.{}", char::from(letter)));
    let lengths = (1..=120).map(|length| "model.layers.0.".chars().cycle().take(length).collect());
    for name in endings.chain(lengths) {
        let got = scales(quant, scheme, &name, 0, FEW, few)?;
        alike(&format!("for `{name}`"), scheme, reference, few, (&first[..FEW], &got), &mut note)?;
        asked += FEW;
    }
    for blocks in 1..=amax.len() {
        let some = &amax[..blocks];
        let got = all(quant, scheme, some)?;
        alike(&format!("{blocks} blocks at once"), scheme, reference, some, (&first[..blocks], &got), &mut note)?;
        asked += blocks;
    }
    let worst = format!("{layers} layers, 1 to {} blocks at once", amax.len());
    Ok(Found { worst: Some(worst), note, ..Found::asked(asked) })
}

/// Questions that no refit asks: they may be refused, and must not change what is answered, nor end in a trap.
pub(super) fn lies(quant: &dyn BlockQuant, scheme: &Scheme, seed: u64) -> Result<Found, String> {
    let amax = vectors::random(seed ^ 0x11e5, FEW);
    let before = all(quant, scheme, &amax)?;
    let (rows, cols) = (scheme.block_rows, scheme.block_cols * FEW);
    let honest = Blocks { tensor: TENSOR, rows, cols, block_rows: rows, block_cols: scheme.block_cols, first_block: 0 };
    let long = "x".repeat(512);
    let questions: [(&str, Blocks<'_>, &[f32]); 9] = [
        ("no blocks", honest, &[]),
        ("a matrix without rows", Blocks { rows: 0, ..honest }, &amax),
        ("a matrix without columns", Blocks { cols: 0, ..honest }, &amax),
        ("blocks without rows", Blocks { block_rows: 0, ..honest }, &amax),
        ("blocks without columns", Blocks { block_cols: 0, ..honest }, &amax),
        ("blocks beyond the matrix", Blocks { first_block: u32::MAX as usize, ..honest }, &amax),
        ("the largest matrix", Blocks { rows: u32::MAX as usize, cols: u32::MAX as usize, ..honest }, &amax),
        ("a tensor without a name", Blocks { tensor: "", ..honest }, &amax),
        ("a tensor with a long name", Blocks { tensor: &long, ..honest }, &amax),
    ];
    let mut odd = Vec::new();
    let mut refused = 0;
    let ask = |blocks: &Blocks<'_>, amax: &[f32]| match scheme.needs {
        Needs::Moments => quant.scales_with_moments(blocks, amax, &vec![1.0; amax.len()]),
        _ => quant.scales(blocks, amax),
    };
    for (what, blocks, amax) in &questions {
        match ask(blocks, amax) {
            Ok(got) if got.len() != amax.len() => odd.push(format!("{what}: {} numbers", got.len())),
            Ok(_) => {}
            Err(error) if error.cause == HookCause::Refused => refused += 1,
            Err(error) => odd.push(format!("{what}: {}", error.why)),
        }
    }
    if scheme.cast.edges == Edges::Strict {
        // The host never asks about these under strict edges.
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0] {
            match ask(&honest, &[value; FEW]) {
                Ok(got) if value.is_nan() && got.iter().all(|s| s.is_finite() && *s > 0.0) => {
                    odd.push(format!("amax {value}: it gives an ordinary scale"));
                }
                Ok(_) => {}
                Err(error) if error.cause == HookCause::Refused => refused += 1,
                Err(error) => odd.push(format!("amax {value}: {}", error.why)),
            }
        }
    }
    // Whatever that did, what it says about honest questions is the same as before.
    differ("after odd questions", &amax, &before, &all(quant, scheme, &amax)?)?;
    let note = (!odd.is_empty()).then(|| odd.join("; ").replace('\n', " "));
    Ok(Found { worst: Some(format!("{refused} refused")), note, ..Found::asked(questions.len() + 4) })
}

/// Tensors that are alike but for their layer or expert, and are treated apart: no error, and worth a look.
pub(super) fn apart(patch: &crate::patch::Patch, quant: &dyn BlockQuant, layers: usize) -> Result<Found, String> {
    let tensors = synthetic::tensors_of(layers);
    let decided = quant.decide(&synthetic::model_of(patch, layers), &synthetic::reader(), &tensors);
    let decided = decided.map_err(|e| e.to_string())?;
    let mut known = std::collections::BTreeMap::new();
    for (tensor, decision) in tensors.iter().zip(&decided) {
        let kind: String = tensor.name.chars().filter(|c| !c.is_ascii_digit()).collect();
        let quantized = match decision {
            patchhost_runtime::hooks::Decision::Keep(_) => None,
            patchhost_runtime::hooks::Decision::Quantize(scheme) => {
                Some(Scheme { rule: String::new(), ..scheme.clone() })
            }
        };
        let (name, first) = known.entry(kind).or_insert_with(|| (tensor.name.clone(), quantized.clone()));
        if *first != quantized {
            let note = format!("`{name}` and `{}` are alike, and it treats them apart", tensor.name);
            return Ok(Found { note: Some(note), ..Found::asked(tensors.len()) });
        }
    }
    Ok(Found { worst: Some(format!("{layers} layers")), ..Found::asked(tensors.len()) })
}
