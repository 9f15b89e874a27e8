//! What a comparison comes to, in one sentence: which side is better, and by which number.

use serde::Serialize;

use super::ablation::Ablation;
use super::paired::Paired;
use super::report::{Report, SideInfo};
use super::tables::{brief, decibel, percent, ratio};
use super::tensors::{Totals, totals};

/// What a KL is measured in.
const NATS: &str = "nats per token";

/// One of the two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// The first one.
    A,
    /// The second one.
    B,
}

/// A number that both sides have, and which of them is better by it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measure {
    /// Its name in JSON.
    pub by: &'static str,
    /// What it measures, in words.
    pub what: &'static str,
    /// The unit of `shown`, where that does not say it itself.
    #[serde(skip)]
    pub unit: &'static str,
    /// Side A; none where nothing was lost.
    pub a: Option<f64>,
    /// Side B.
    pub b: Option<f64>,
    /// The better side; none where the difference says nothing.
    pub better: Option<Better>,
    /// The two numbers as tables show them.
    #[serde(skip)]
    pub shown: [String; 2],
}

impl Measure {
    fn with_unit(&self, shown: &str) -> String {
        [shown, self.unit].join(" ").trim_end().to_owned()
    }
}

/// Which side is better, and by what.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// None where neither is.
    pub better: Option<Better>,
    /// The number that decides; none where there is none to decide by.
    pub by: Option<&'static str>,
    /// The same in a sentence.
    pub text: String,
    /// All numbers, those that weigh most first.
    pub measures: Vec<Measure>,
    /// What a reader should know before trusting it.
    pub notes: Vec<String>,
}

impl Verdict {
    /// The verdict of a report that is complete.
    pub fn of(report: &Report) -> Self {
        let measures = measures(report);
        let (better, by, text) = decide(report, &measures);
        Self { better, by, text, notes: notes(report, &measures, better), measures }
    }
}

fn measures(report: &Report) -> Vec<Measure> {
    let mut out = Vec::new();
    if let Some(corr) = &report.rollout_corr
        && let (Some(a), Some(b)) = (corr.a.get("k3_kl"), corr.b.get("k3_kl"))
    {
        let better = lower(a, b).filter(|_| corr.paired.is_some_and(|p| p.is_clear()));
        let what = "k3 KL between engine and trainer";
        out.push(Measure {
            by: "rollout_corr/k3_kl",
            what,
            unit: NATS,
            a: Some(a),
            b: Some(b),
            better,
            shown: [a, b].map(brief),
        });
    }
    if let Some(ablation) = &report.ablation {
        out.extend(predictions(ablation));
    }
    out.extend(weights(report));
    out
}

/// The two numbers that forward passes give. A side that quantizes nothing has no distance from the unquantized model.
fn predictions(ablation: &Ablation) -> [Measure; 2] {
    let (a, b) = (&ablation.a.all, ablation.b.as_ref().map(|b| &b.all));
    let kl = [a.kl_vocab, b.map_or(0.0, |b| b.kl_vocab)];
    let top = [a.top1_agreement, b.map_or(1.0, |b| b.top1_agreement)];
    let floor = ablation.noise_floor();
    let clear = match ablation.paired {
        Some(paired) => paired.is_clear() && (kl[0] - kl[1]).abs() > floor,
        None => kl[0] > floor,
    };
    [
        Measure {
            by: "kl_vocab",
            what: "mean KL from the unquantized model",
            unit: NATS,
            a: Some(kl[0]),
            b: Some(kl[1]),
            better: lower(kl[0], kl[1]).filter(|_| clear),
            shown: kl.map(brief),
        },
        Measure {
            by: "top1_agreement",
            what: "same most likely token as unquantized",
            unit: "",
            a: Some(top[0]),
            b: Some(top[1]),
            better: lower(top[1], top[0]).filter(|_| more_than_chance(top, a.positions)),
            shown: top.map(shown_share),
        },
    ]
}

/// Whether two shares of the same positions differ by more than two standard errors of how often each disagrees.
fn more_than_chance(agree: [f64; 2], positions: usize) -> bool {
    let [a, b] = agree.map(|share| (1.0 - share) * positions as f64);
    (a - b).abs() > 2.0 * (a + b).sqrt()
}

/// What the weights say, over the tensors that both sides quantize; other tensors would compare different things.
fn weights(report: &Report) -> Option<Measure> {
    let (a, b) = match report.b.kind {
        "bf16" => (report.total.a.as_ref()?.snr_db, None),
        _ => {
            let Totals { a, b, .. } = shared(report);
            (a?.snr_db, b?.snr_db)
        }
    };
    let shown = [a, b].map(decibel);
    let better = match (a, b) {
        _ if shown[0] == shown[1] => None,
        (Some(a), Some(b)) => lower(b, a),
        (None, _) => Some(Better::A),
        (_, None) => Some(Better::B),
    };
    Some(Measure { by: "snr_db", what: "signal-to-noise ratio of the weights", unit: "", a, b, better, shown })
}

/// Sums over the tensors that both sides quantize.
fn shared(report: &Report) -> Totals {
    totals(report.tensors.iter().filter(|row| row.a.is_some() && row.b.is_some()))
}

fn decide(report: &Report, measures: &[Measure]) -> (Option<Better>, Option<&'static str>, String) {
    let t = &report.total;
    if t.tensors == 0 {
        let text = "There is nothing to compare: neither side quantizes a tensor of this model.";
        return (None, None, text.to_owned());
    }
    let first = measures.first();
    let decisive = measures.iter().find(|m| m.better.is_some());
    let same_bits = same_bits(report);
    if report.b.kind == "bf16" && first.is_some_and(|m| m.by != "rollout_corr/k3_kl") {
        return (first.and_then(|m| m.better), first.map(|m| m.by), cost(report));
    }
    let Some((m, better)) = decisive.and_then(|m| Some((m, m.better?))) else {
        let by = if same_bits { Some("bits") } else { first.map(|m| m.by) };
        return (None, by, equal(report, first, same_bits));
    };
    let (winner, loser, values) = match better {
        Better::A => (("A", &report.a, &report.b), "B", [&m.shown[0], &m.shown[1]]),
        Better::B => (("B", &report.b, &report.a), "A", [&m.shown[1], &m.shown[0]]),
    };
    let how = match m.by {
        "rollout_corr/k3_kl" => "it is closer to the trainer, with a k3 KL of",
        "kl_vocab" => "its predictions are closer to the unquantized model's, with a mean KL of",
        "top1_agreement" => "its most likely token is more often the unquantized model's, at",
        _ => "its weights are closer to their source, with a signal-to-noise ratio of",
    };
    let mut text = format!(
        "{} is better: {how} {} against {loser}'s {}{}",
        named(winner.0, winner.1, winner.2),
        values[0],
        m.with_unit(values[1]),
        difference(m, better)
    );
    // What weighs more and does not decide is said too.
    if let Some(open) = first.filter(|f| f.by != m.by) {
        let [a, b] = &open.shown;
        let b = open.with_unit(b);
        text.push_str(&format!("; by {} there is no clear difference ({a} and {b})", open.what));
    }
    text.push('.');
    (Some(better), Some(m.by), text)
}

/// What quantizing costs: the other side is what A was made from.
fn cost(report: &Report) -> String {
    let a = short(&report.a, None);
    match &report.ablation {
        Some(ablation) => {
            let d = &ablation.a.all;
            format!(
                "Quantizing with {a} costs a mean KL of {} from the unquantized model, which keeps its most likely token at \
                 {} of {} positions.",
                nats(d.kl_vocab),
                shown_share(d.top1_agreement),
                d.positions
            )
        }
        None => {
            let side = report.total.a.as_ref();
            let (snr, rmse) = (side.and_then(|s| s.snr_db), side.and_then(|s| s.relative_rmse));
            match snr {
                None => format!("Quantizing with {a} costs nothing: every value of {} is exact.", tensors(report)),
                Some(_) => format!(
                    "Quantizing with {a} moves the weights of {} by {} of their size: a signal-to-noise ratio of {}.",
                    tensors(report),
                    percent(rmse),
                    decibel(snr)
                ),
            }
        }
    }
}

fn tensors(report: &Report) -> String {
    match report.total.tensors {
        1 => "1 tensor".to_owned(),
        n => format!("{n} tensors"),
    }
}

fn equal(report: &Report, first: Option<&Measure>, same_bits: bool) -> String {
    let t = &report.total;
    if same_bits {
        let (scales, bytes) = (t.scales.total, t.weight_bytes.total);
        return format!(
            "A and B are the same, bit for bit: all {scales} scales and {bytes} weight bytes of {} are equal.",
            tensors(report)
        );
    }
    let Some(m) = first else {
        let (a, b) = (t.only_a, t.only_b);
        return format!(
            "A and B cannot be ranked: no tensor is quantized by both ({a} only by A, {b} only by B). Run them on a model, \
             without --tensors-only."
        );
    };
    let [a, b] = &m.shown;
    let numbers = match a == b {
        true => format!("{} on both sides", m.with_unit(a)),
        false => format!("{a} and {}, no clear difference", m.with_unit(b)),
    };
    let bits = match t.weight_bytes.differing {
        0 => String::new(),
        n => format!(", though {} of the weight bytes differ", percent(share(n, t.weight_bytes.total))),
    };
    format!("Neither side is better: {} is {numbers}{bits}.", m.what)
}

/// Whether both sides made the very same bits of the same tensors.
fn same_bits(report: &Report) -> bool {
    let t = &report.total;
    let elsewhere = t.only_a + t.only_b + t.different_blocks;
    t.tensors > 0 && elsewhere == 0 && t.scales.differing == 0 && t.weight_bytes.differing == 0
}

fn notes(report: &Report, measures: &[Measure], better: Option<Better>) -> Vec<String> {
    let mut out = Vec::new();
    let t = &report.total;
    if report.b.kind != "bf16" && t.scales.total > 0 && !same_bits(report) {
        out.push(format!(
            "{} scales and {} weight bytes differ between A and B ({} of the bytes).",
            ratio(t.scales.differing, t.scales.total),
            ratio(t.weight_bytes.differing, t.weight_bytes.total),
            percent(share(t.weight_bytes.differing, t.weight_bytes.total))
        ));
    }
    let pairs = [
        (report.rollout_corr.as_ref().and_then(|c| c.paired), "tokens of the trainer", "k3 KL"),
        (report.ablation.as_ref().and_then(|a| a.paired), "positions", "KL"),
    ];
    for (paired, places, what) in pairs {
        // Where nothing differs anywhere, the sentence has said it.
        let paired = paired.filter(|p| p.lower_a + p.lower_b > 0);
        out.extend(paired.map(|p| paired_note(&p, places, what)));
    }
    if let Some(ablation) = report.ablation.as_ref().filter(|a| a.noise_floor() > 0.0) {
        let floor = nats(ablation.noise_floor());
        out.push(format!("Noise floor: a difference in KL below {floor} says nothing about the weights."));
    }
    if report.b.kind != "bf16" && t.only_a + t.only_b > 0 {
        out.push(format!(
            "A and B quantize different tensors ({} only A, {} only B); the signal-to-noise ratio is over those that both \
             quantize.",
            t.only_a, t.only_b
        ));
    }
    let against = measures.iter().filter(|m| m.better.is_some() && m.better != better && better.is_some());
    let against: Vec<&str> = against.map(|m| m.what).collect();
    if !against.is_empty() {
        out.push(format!("The other side is better by: {}.", against.join(", ")));
    }
    out
}

fn paired_note(p: &Paired, places: &str, what: &str) -> String {
    let clear = if p.is_clear() { "more than chance" } else { "within chance" };
    format!(
        "Over {} {places}, {what} is lower with A at {} and with B at {}; the mean difference, B minus A, is {} ± {} nats \
         (two standard errors): {clear}.",
        p.places,
        p.lower_a,
        p.lower_b,
        brief(p.mean_difference),
        brief(2.0 * p.standard_error)
    )
}

/// ` (37 % lower)` or ` (0.08 dB more)`; nothing where that is no number.
fn difference(m: &Measure, better: Better) -> String {
    let (Some(a), Some(b)) = (m.a, m.b) else { return String::new() };
    let (winner, loser) = if better == Better::A { (a, b) } else { (b, a) };
    match m.by {
        "snr_db" => format!(" ({:.2} dB more)", winner - loser),
        "top1_agreement" => String::new(),
        _ if loser > 0.0 => format!(" ({} lower)", percent_of(1.0 - winner / loser)),
        _ => String::new(),
    }
}

fn named(label: &str, side: &SideInfo, other: &SideInfo) -> String {
    format!("{label} ({})", short(side, Some(other)))
}

/// A side in a few words: what tells it from the other one.
fn short(side: &SideInfo, other: Option<&SideInfo>) -> String {
    const MOST: usize = 80;
    let name = match side.kind {
        "native" => "the host's own formulas".to_owned(),
        _ => side.name.clone(),
    };
    let own = |s: &&String| other.is_none_or(|o| o.kind != "patch" || !o.settings.contains(s));
    let settings: Vec<&str> = side.settings.iter().filter(own).map(String::as_str).collect();
    let text = match (settings.is_empty(), other.is_some_and(|o| o.name == side.name)) {
        (true, _) => name,
        (false, true) => settings.join(" "),
        (false, false) => format!("{name} {}", settings.join(" ")),
    };
    crate::base::text::clean(&text, MOST)
}

fn lower(a: f64, b: f64) -> Option<Better> {
    match a.partial_cmp(&b)? {
        std::cmp::Ordering::Less => Some(Better::A),
        std::cmp::Ordering::Greater => Some(Better::B),
        std::cmp::Ordering::Equal => None,
    }
}

fn nats(v: f64) -> String {
    format!("{} {NATS}", brief(v))
}

fn shown_share(v: f64) -> String {
    format!("{:.2} %", v * 100.0)
}

/// A share for a sentence: whole percents where they say enough.
fn percent_of(share: f64) -> String {
    let percents = share * 100.0;
    if percents >= 10.0 { format!("{percents:.0} %") } else { format!("{percents:.1} %") }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests;
