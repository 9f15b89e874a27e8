//! Whether block FP8 still fits when the model is cut over several GPUs: vLLM's rules (`validate_fp8_block_shape` and
//! `Fp8MoEMethod.create_weights`), applied to the tensors of an export.
//!
//! Row-parallel: the input of each rank is a multiple of the block's columns. Column-parallel: each rank's part of each
//! output is a multiple of the block's rows. Merged and not cut: all outputs but the last. Experts: each rank's part of
//! the intermediate size is a multiple of both.

use std::collections::BTreeMap;

use patchhost_runtime::config::RawConfig;
use patchhost_runtime::families::Arch;
use patchhost_runtime::hooks::Role;

use super::consumer::Agreement;
use super::decide::{Entry, Plan, group};
use super::{Result, refused, usage};

/// Largest tensor-parallel size.
const MOST: usize = 1024;

/// Modules that differ only in their layer, and what becomes of them at each size.
#[derive(Debug, Clone, serde::Serialize)]
pub struct TpRow {
    /// Name, with `*` for the layer.
    pub module: String,
    /// How it is cut: `row`, `column`, `experts`, `whole`.
    pub cut: &'static str,
    /// How many modules.
    pub count: usize,
    /// One for each size: none where it loads, else why not.
    pub problems: Vec<Option<String>>,
    /// The tensors of the first of them.
    pub tensors: Vec<String>,
}

struct Heads {
    q: usize,
    kv: usize,
}

/// How a module is cut, with the sizes that matter.
enum Cut {
    Row { input: usize },
    Column { outputs: Vec<Part> },
    Experts { width: usize },
    Whole { outputs: Vec<usize> },
}

struct Part {
    rows: usize,
    /// Heads it consists of, where ranks get whole heads; key and value heads are repeated where ranks outnumber them.
    heads: Option<usize>,
    repeats: bool,
}

/// Reads "1,2,4,8".
pub fn sizes(text: &str) -> Result<Vec<usize>> {
    let refuse =
        |why: String| usage(format!("--check-tp {}", text.escape_debug()), why, "write for example --check-tp 1,2,4,8");
    let mut all = Vec::new();
    for part in text.split(',') {
        let size = part.trim().parse().ok().filter(|n| (1..=MOST).contains(n));
        let size =
            size.ok_or_else(|| refuse(format!("`{}` is not a whole number from 1 to {MOST}", part.escape_debug())))?;
        if all.contains(&size) {
            return Err(refuse(format!("{size} stands there twice")));
        }
        all.push(size);
    }
    Ok(all)
}

/// The table for the given sizes. `config` is the text of config.json, for the numbers of heads.
pub fn check(plan: &Plan, config: &str, sizes: &[usize]) -> Result<Vec<TpRow>> {
    let raw = RawConfig::parse(config)?;
    let common = Arch::from_config(&raw)?.common;
    let heads = Heads { q: common.heads, kv: common.kv_heads };
    let mut modules: BTreeMap<String, Vec<&Entry>> = BTreeMap::new();
    for entry in plan.entries.iter().filter(|e| e.is_quantized()) {
        let name = &entry.output.name;
        let module = group(&entry.output, Agreement::Fused)
            .unwrap_or_else(|| name.strip_suffix(".weight").unwrap_or(name).to_string());
        modules.entry(module).or_default().push(entry);
    }
    let mut rows: Vec<TpRow> = Vec::new();
    for (module, members) in &modules {
        let Some((label, cut)) = cut(members, &heads) else { continue };
        let problems: Vec<Option<String>> = sizes.iter().map(|tp| problem(&cut, *tp, plan.block)).collect();
        let pattern = without_layer(module);
        match rows.iter_mut().find(|r| r.module == pattern && r.problems == problems && r.cut == label) {
            Some(row) => row.count += 1,
            None => rows.push(TpRow {
                module: pattern,
                cut: label,
                count: 1,
                problems,
                tensors: members.iter().take(3).map(|e| e.output.name.clone()).collect(),
            }),
        }
    }
    Ok(rows)
}

/// Refuses if anything does not load.
pub fn require(rows: &[TpRow], sizes: &[usize]) -> Result<()> {
    let failing: Vec<usize> = (0..sizes.len()).filter(|i| rows.iter().any(|r| r.problems[*i].is_some())).collect();
    let Some(first) = failing.first() else { return Ok(()) };
    let bad: Vec<String> = rows
        .iter()
        .filter_map(|r| {
            let name = r.tensors.first()?;
            let more = if r.count > 1 { format!(" (and {} like it)", r.count - 1) } else { String::new() };
            r.problems[*first].as_ref().map(|why| format!("`{name}`{more}: {why}"))
        })
        .collect();
    let shown = bad.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
    let more = if bad.len() > 5 { format!("; and {} more kinds", bad.len() - 5) } else { String::new() };
    let at: Vec<String> = failing.iter().map(|i| sizes[*i].to_string()).collect();
    Err(refused(
        format!("--check-tp: the export would not load in vLLM at tensor-parallel size {}", at.join(", ")),
        format!("at {}: {shown}{more}", sizes[*first]),
        "use a size at which it loads, or keep these tensors unquantized (--set keep=GLOB)",
    ))
}

/// `model.layers.3.mlp` becomes `model.layers.*.mlp`.
fn without_layer(module: &str) -> String {
    let star = |c: &str| if c.bytes().all(|b| b.is_ascii_digit()) { "*".to_string() } else { c.to_string() };
    module.split('.').map(star).collect::<Vec<_>>().join(".")
}

fn last(entry: &Entry) -> &str {
    let name = entry.output.name.strip_suffix(".weight").unwrap_or(&entry.output.name);
    name.rsplit('.').next().unwrap_or(name)
}

fn cut(members: &[&Entry], heads: &Heads) -> Option<(&'static str, Cut)> {
    let dims = |e: &Entry| match e.output.shape[..] {
        [n, k] => Some((n, k)),
        _ => None,
    };
    let first = members.first()?;
    if first.output.role == Role::Expert {
        let widths = members.iter().filter_map(|e| {
            let (n, k) = dims(e)?;
            Some(if matches!(last(e), "down_proj" | "w2") { k } else { n })
        });
        return Some(("experts", Cut::Experts { width: widths.min()? }));
    }
    let order = |e: &&&Entry| match last(e) {
        "q_proj" | "gate_proj" | "w1" | "q_a_proj" => 0,
        "k_proj" | "up_proj" | "w3" | "kv_a_proj_with_mqa" => 1,
        _ => 2,
    };
    let mut sorted: Vec<&&Entry> = members.iter().collect();
    sorted.sort_by_key(order);
    match last(first) {
        "o_proj" | "out_proj" | "down_proj" | "w2" => Some(("row", Cut::Row { input: dims(first)?.1 })),
        "q_a_proj" | "kv_a_proj_with_mqa" => {
            Some(("whole", Cut::Whole { outputs: sorted.iter().filter_map(|e| Some(dims(e)?.0)).collect() }))
        }
        "q_proj" | "k_proj" | "v_proj" | "gate_proj" | "up_proj" | "w1" | "w3" | "q_b_proj" | "kv_b_proj"
        | "in_proj_qkvz" => {
            let part = |e: &&&Entry| {
                let (heads, repeats) = match last(e) {
                    "q_proj" | "q_b_proj" | "kv_b_proj" => (Some(heads.q), false),
                    "k_proj" | "v_proj" => (Some(heads.kv), true),
                    _ => (None, false),
                };
                Some(Part { rows: dims(e)?.0, heads, repeats })
            };
            Some(("column", Cut::Column { outputs: sorted.iter().filter_map(part).collect() }))
        }
        _ => None,
    }
}

/// Why a module does not load at this size.
fn problem(cut: &Cut, tp: usize, [block_rows, block_cols]: [usize; 2]) -> Option<String> {
    let divide = |what: &str, size: usize, block: usize| {
        if !size.is_multiple_of(tp) {
            return Some(format!("{what} {size} does not divide by {tp}"));
        }
        (!(size / tp).is_multiple_of(block))
            .then(|| format!("{what} {size} / {tp} = {} is not a multiple of {block}", size / tp))
    };
    match cut {
        Cut::Row { input } if tp > 1 => divide("input", *input, block_cols),
        Cut::Row { .. } => None,
        Cut::Experts { width } => divide("expert width", *width, block_rows).or_else(|| {
            if tp > 1 { divide("expert width", *width, block_cols) } else { None }
        }),
        Cut::Whole { outputs } => all_but_last(outputs, block_rows),
        Cut::Column { outputs } if tp == 1 => {
            all_but_last(&outputs.iter().map(|p| p.rows).collect::<Vec<_>>(), block_rows)
        }
        Cut::Column { outputs } => outputs.iter().find_map(|p| match p.heads {
            Some(heads) if p.repeats && heads < tp => {
                if !tp.is_multiple_of(heads) {
                    return Some(format!("{heads} key and value heads cannot be repeated for {tp}"));
                }
                let each = p.rows / heads;
                (!each.is_multiple_of(block_rows)).then(|| {
                    format!("output {} of {heads} heads: one head of {each} for each rank is not a multiple of {block_rows}", p.rows)
                })
            }
            Some(heads) if !heads.is_multiple_of(tp) => Some(format!("{heads} heads do not divide by {tp}")),
            _ => divide("output", p.rows, block_rows),
        }),
    }
}

fn all_but_last(outputs: &[usize], block_rows: usize) -> Option<String> {
    let (_, merged) = outputs.split_last()?;
    let bad = merged.iter().find(|n| !n.is_multiple_of(block_rows))?;
    Some(format!("merged output {bad} is not a multiple of {block_rows}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rules_of_vllm() {
        let block = [128, 128];
        let ok = |cut: &Cut, tp| problem(cut, tp, block).is_none();
        let row = Cut::Row { input: 768 };
        assert!(ok(&row, 1) && ok(&row, 2) && ok(&row, 3) && !ok(&row, 4) && !ok(&row, 5));
        // A row-parallel input that is no multiple of the block loads on one GPU.
        assert!(ok(&Cut::Row { input: 700 }, 1));
        let experts = Cut::Experts { width: 1536 };
        assert!(ok(&experts, 4) && !ok(&experts, 8));
        assert!(!ok(&Cut::Experts { width: 700 }, 1));
        // Merged outputs: the last may end in a partial block as long as nothing is cut (DeepSeek's fused_qkv_a_proj).
        assert!(ok(&Cut::Whole { outputs: vec![1536, 576] }, 8));
        assert!(!ok(&Cut::Whole { outputs: vec![576, 1536] }, 1));
        // Eight query heads and two key and value heads of 64.
        let qkv = Cut::Column {
            outputs: vec![
                Part { rows: 512, heads: Some(8), repeats: false },
                Part { rows: 128, heads: Some(2), repeats: true },
                Part { rows: 128, heads: Some(2), repeats: true },
            ],
        };
        assert!(ok(&qkv, 1));
        assert!(problem(&qkv, 2, block).unwrap().contains("128 / 2 = 64"));
        assert!(problem(&qkv, 4, block).unwrap().contains("one head of 64"));
        assert!(problem(&qkv, 3, block).unwrap().contains("8 heads do not divide by 3"));
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(sizes("1,2, 4,8").unwrap(), [1, 2, 4, 8]);
        for bad in ["", "0", "1,,2", "2,2", "-1", "1;2", "4096", "two"] {
            assert!(sizes(bad).is_err(), "{bad}");
        }
    }
}
