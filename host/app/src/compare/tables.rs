//! The report as tables of text, for the terminal and for HTML alike.

use super::ablation::{Ablation, Candidate};
use super::groups;
use super::logprobs::Distance;
use super::report::{Report, RolloutCorr};
use super::subset::Subset;
use super::tensors::{SideTotals, Totals};

/// A table: the first column is words, the others are numbers.
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) head: Vec<&'static str>,
    pub(crate) rows: Vec<Vec<String>>,
    /// What a reader should know, below it.
    pub(crate) notes: Vec<String>,
}

/// All tables; of the tensors every one, or the `most` worst lines after the experts of each layer were summed up.
pub(super) fn tables(report: &Report, most: Option<usize>) -> Vec<Table> {
    let mut out = vec![classes(report), groups::worst(report, most)];
    out.extend(predictions(report));
    out
}

/// The tables of forward passes; none where there were none.
pub(super) fn predictions(report: &Report) -> Vec<Table> {
    let mut out = Vec::new();
    if let Some(ablation) = &report.ablation {
        out.extend(effects(ablation));
    }
    if let Some(corr) = &report.rollout_corr {
        out.push(rollout_corr(corr));
    }
    out
}

/// Sums by class of layers.
pub(super) fn classes(report: &Report) -> Table {
    let row = |name: &str, t: &Totals| {
        vec![
            name.to_string(),
            t.tensors.to_string(),
            ratio(t.scales.differing, t.scales.total),
            most(t.scales.max_ulp, t.scales.total),
            ratio(t.weight_bytes.differing, t.weight_bytes.total),
            rate(t.weight_bytes.differing, t.weight_bytes.total),
            most(t.weight_bytes.max_steps, t.weight_bytes.total),
            number(t.max_abs_difference),
            side(t.a.as_ref(), |s| decibel(s.snr_db)),
            side(t.b.as_ref(), |s| decibel(s.snr_db)),
            side(t.a.as_ref(), |s| percent(s.relative_rmse)),
            side(t.b.as_ref(), |s| percent(s.relative_rmse)),
            side(t.a.as_ref(), lost),
            side(t.b.as_ref(), lost),
        ]
    };
    let mut rows: Vec<Vec<String>> = report.classes.iter().map(|c| row(c.class.name(), &c.totals)).collect();
    rows.push(row("all", &report.total));
    let mut notes = Vec::new();
    let t = &report.total;
    for (count, what) in [
        (t.only_a, "only A quantizes"),
        (t.only_b, "only B quantizes"),
        (t.different_blocks, "A and B cut into blocks of different sizes: their bytes cannot be compared"),
    ] {
        if count > 0 && report.b.kind != "bf16" {
            notes.push(format!("{count} of these tensors {what}"));
        }
    }
    if report.kept > 0 {
        notes.push(format!("{} more tensors are quantized by neither side", report.kept));
    }
    Table {
        title: "Quantized tensors by class".to_string(),
        head: vec![
            "class",
            "tensors",
            "scales differ",
            "max ulp",
            "weight bytes differ",
            "rate",
            "max steps",
            "max |A-B|",
            "SNR A",
            "SNR B",
            "RMSE A",
            "RMSE B",
            "sat+flush A",
            "sat+flush B",
        ],
        rows,
        notes,
    }
}

fn effects(ablation: &Ablation) -> Vec<Table> {
    let head = vec![
        "only this quantized",
        "side",
        "tensors",
        "KL mean, nats",
        "KL max, nats",
        "share of sum",
        "k3_kl, nats",
        "kl, nats",
        "top-1 agreement",
    ];
    let mut classes = Vec::new();
    let mut layers = Vec::new();
    let sides = [("A", Some(&ablation.a)), ("B", ablation.b.as_ref())];
    for (side, candidate) in sides.iter().filter_map(|(side, c)| c.map(|c| (*side, c))) {
        for effect in candidate.classes.iter().chain(&candidate.layers) {
            let (name, sum, rows) = match effect.only {
                Subset::Class(class) => (class.name().to_string(), candidate.sum_of_classes, &mut classes),
                Subset::Layer(l) => (format!("layer {l}"), candidate.sum_of_layers.unwrap_or(0.0), &mut layers),
            };
            let share = if sum > 0.0 { Some(effect.distance.kl_vocab / sum) } else { None };
            rows.push(distance_row(name, side, effect.tensors.to_string(), &effect.distance, percent(share)));
        }
        classes.push(sum_row(side, "sum of the classes", candidate.sum_of_classes));
        classes.push(distance_row("all together".into(), side, "-".into(), &candidate.all, "-".into()));
        if let Some(noise) = &candidate.noise_floor {
            classes.push(distance_row("noise floor".into(), side, "-".into(), noise, "-".into()));
        }
        if let Some(sum) = candidate.sum_of_layers {
            layers.push(sum_row(side, "sum of the layers", sum));
            layers.push(distance_row("all together".into(), side, "-".into(), &candidate.all, "-".into()));
        }
    }
    let mut notes = vec![
        format!(
            "KL(unquantized || quantized) over the whole vocabulary in nats, over {} positions of {}; k3_kl and kl over \
             the {} next tokens",
            ablation.a.all.positions,
            if ablation.sequences == 1 {
                "1 sequence".to_string()
            } else {
                format!("{} sequences", ablation.sequences)
            },
            ablation.a.all.tokens
        ),
        "the sum differs from all together as far as classes amplify or cancel each other".to_string(),
    ];
    if let Some(note) = noise_note(ablation) {
        notes.push(note);
    }
    let mut out = vec![Table {
        title: "What quantizing only one class does".to_string(),
        head: head.clone(),
        rows: classes,
        notes,
    }];
    if !layers.is_empty() {
        let title = "What quantizing only one layer does".to_string();
        out.push(Table { title, head, rows: layers, notes: Vec::new() });
    }
    if let Some(between) = &ablation.between {
        let row = distance_row("B against A".into(), "-", "-".into(), between, "-".into());
        let head = vec!["", "KL mean, nats", "KL max, nats", "k3_kl, nats", "kl, nats", "top-1 agreement"];
        let pick = [0, 3, 4, 6, 7, 8].into_iter().filter_map(|i| row.get(i).cloned()).collect();
        out.push(Table {
            title: "Between the two sides".to_string(),
            head,
            rows: vec![pick],
            notes: vec!["A whole is the reference, B whole the candidate".to_string()],
        });
    }
    out
}

/// What the noise floor is, and how much of what stands above it may be noise.
fn noise_note(ablation: &Ablation) -> Option<String> {
    let sides = [("A", Some(&ablation.a)), ("B", ablation.b.as_ref())];
    let floors = sides.iter().filter_map(|(side, c)| {
        let candidate = (*c)?;
        let noise = candidate.noise_floor.as_ref()?.kl_vocab;
        let share = percent((candidate.all.kl_vocab > 0.0).then(|| noise / candidate.all.kl_vocab));
        Some(format!("KL {} ({share} of all together) for {side}", number(noise)))
    });
    let floors: Vec<String> = floors.collect();
    (!floors.is_empty()).then(|| {
        format!(
            "noise floor: {}: the same weights against themselves, products summed in f64 instead of f32. Quantized activations \
             turn such a difference into steps of e4m3, so a KL of this size says nothing about weights",
            floors.join(", ")
        )
    })
}

fn sum_row(side: &str, name: &str, sum: f64) -> Vec<String> {
    let dash = || "-".to_string();
    vec![name.to_string(), side.to_string(), dash(), number(sum), dash(), dash(), dash(), dash(), dash()]
}

fn distance_row(name: String, side: &str, tensors: String, d: &Distance, share: String) -> Vec<String> {
    let optional = |v: Option<f64>| v.map_or("-".to_string(), number);
    vec![
        name,
        side.to_string(),
        tensors,
        number(d.kl_vocab),
        number(d.kl_vocab_max),
        share,
        optional(d.k3_kl),
        optional(d.kl),
        format!("{:.2} %", d.top1_agreement * 100.0),
    ]
}

fn rollout_corr(corr: &RolloutCorr) -> Table {
    let rows = corr.a.0.iter().map(|(name, a)| {
        let b = corr.b.get(name).map_or("-".to_string(), number);
        vec![name.clone(), number(*a), b]
    });
    let tokens = corr.tokens;
    let sequences = corr.sequences;
    Table {
        title: "rollout_corr: this engine against the trainer's log-probs".to_string(),
        head: vec!["metric", "A", "B"],
        rows: rows.collect(),
        notes: vec![format!("{tokens} counted tokens of {sequences} sequences; NaN is undefined")],
    }
}

/// The classes of a candidate and their mean KL, for charts.
pub(super) fn kl_by_class(candidate: &Candidate) -> Vec<(String, f64)> {
    let name = |only: Subset| match only {
        Subset::Class(class) => class.name().to_string(),
        Subset::Layer(layer) => layer.to_string(),
    };
    candidate.classes.iter().map(|e| (name(e.only), e.distance.kl_vocab)).collect()
}

/// `part/whole`; a dash of nothing.
pub(super) fn ratio(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_string() } else { format!("{part}/{whole}") }
}

/// What a side has; a dash where it quantizes nothing.
pub(super) fn side(side: Option<&SideTotals>, of: impl Fn(&SideTotals) -> String) -> String {
    side.map_or("-".to_string(), of)
}

/// Values that were clipped, and values that became zero.
pub(super) fn lost(side: &SideTotals) -> String {
    format!("{}+{}", side.saturated, side.flushed)
}

/// The greatest of `whole` distances; a dash where there were none.
pub(super) fn most(distance: u32, whole: u64) -> String {
    if whole == 0 { "-".to_string() } else { distance.to_string() }
}

fn rate(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_string() } else { number(part as f64 / whole as f64) }
}

/// A ratio in dB; where nothing was lost it has none.
pub(super) fn decibel(snr: Option<f64>) -> String {
    snr.map_or("exact".to_string(), |s| format!("{s:.2} dB"))
}

/// A share in percent.
pub(super) fn percent(share: Option<f64>) -> String {
    share.map_or("-".to_string(), |s| format!("{:.3} %", s * 100.0))
}

/// Four digits, whatever the size.
pub(crate) fn number(v: f64) -> String {
    match v {
        0.0 => "0".to_string(),
        v if !v.is_finite() => v.to_string(),
        v if (1e-2..1e4).contains(&v.abs()) => {
            let digits = 3 - (v.abs().log10().floor() as i32).clamp(-2, 3);
            format!("{v:.*}", digits.max(0) as usize)
        }
        v => format!("{v:.3e}"),
    }
}

/// Three digits, written out where that is not too long: for sentences and charts.
pub(crate) fn brief(v: f64) -> String {
    match v {
        0.0 => "0".to_string(),
        v if !v.is_finite() => v.to_string(),
        v => {
            let short = format!("{v:.2e}");
            // The power of ten after rounding: 99.96 has three digits as 100 and not as 100.0.
            let power = short.split_once('e').and_then(|(_, power)| power.parse::<i32>().ok()).unwrap_or(0);
            if (-5..6).contains(&power) { format!("{v:.*}", (2 - power).max(0) as usize) } else { short }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{brief, number};

    #[test]
    fn sentences_have_three_digits_and_few_exponents() {
        for (v, text) in [
            (0.0, "0"),
            (0.00191, "0.00191"),
            (-0.5, "-0.500"),
            (31.62, "31.6"),
            (99.97, "100"),
            (123456.7, "123457"),
            (1.5e-7, "1.50e-7"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(brief(v), text);
        }
    }

    #[test]
    fn numbers_have_four_digits() {
        for (v, text) in [
            (0.0, "0"),
            (1.0, "1.000"),
            (-0.5, "-0.5000"),
            (0.012344, "0.01234"),
            (123.456, "123.5"),
            (9999.4, "9999"),
            (0.00029, "2.900e-4"),
            (123456.0, "1.235e5"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(number(v), text);
        }
    }
}
