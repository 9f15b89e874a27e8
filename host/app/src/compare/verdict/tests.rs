use super::super::ablation::Candidate;
use super::super::bits::{CodeDiff, ScaleDiff, Signal};
use super::super::class::Class;
use super::super::logprobs::Distance;
use super::super::report::RolloutCorr;
use super::super::rollout_corr::{Metrics, Settings};
use super::super::tensors::{SideRow, State, TensorRow};
use super::super::{html, text};
use super::{Ablation, Better, Paired, Report, SideInfo, Verdict};

fn side(kind: &'static str, setting: &str) -> SideInfo {
    SideInfo {
        kind,
        name: "fp8_block".to_owned(),
        version: Some("0.1.0".to_owned()),
        sha256: None,
        generation: None,
        settings: vec!["block=128x128".to_owned(), setting.to_owned()],
    }
}

/// A row whose sides have these signal-to-noise ratios, and of whose 1000 weight bytes so many differ.
fn row(name: &str, db: [Option<f64>; 2], differing: u64) -> TensorRow {
    let side = |db: Option<f64>| db.map(|db| SideRow::of(Signal { squares: 1.0, errors: 10f64.powf(-db / 10.0) }));
    let [a, b] = db.map(side);
    let state = match (&a, &b) {
        (Some(_), Some(_)) => State::Both,
        (Some(_), None) => State::OnlyA,
        _ => State::OnlyB,
    };
    TensorRow {
        name: name.to_owned(),
        class: Class::Experts,
        shape: vec![10, 100],
        elements: 1000,
        state,
        scales: (state == State::Both).then_some(ScaleDiff { differing: 0, total: 8, max_ulp: 0 }),
        weight_bytes: (state == State::Both).then_some(CodeDiff { differing, total: 1000, max_steps: 1 }),
        max_abs_difference: 0.0,
        a,
        b,
    }
}

fn report(kind_b: &'static str, rows: Vec<TensorRow>) -> Report {
    let sides = [side("patch", "profile=verl-torch"), side(kind_b, "profile=vllm-group")];
    Report::new(("a/model".to_owned(), Some("TestForCausalLM".to_owned())), "dynamic-128", sides, 0, rows)
}

/// What a side's forward passes gave at these positions.
fn candidate(each: Vec<f64>, noise: f64) -> Candidate {
    let distance = |kl: f64| Distance {
        positions: each.len(),
        kl_vocab: kl,
        kl_vocab_max: kl,
        top1_agreement: 0.98,
        tokens: each.len(),
        kl: Some(0.0),
        k3_kl: Some(kl),
    };
    let all = distance(each.iter().sum::<f64>() / each.len() as f64);
    let noise_floor = Some(distance(noise));
    Candidate {
        classes: Vec::new(),
        layers: Vec::new(),
        all,
        sum_of_classes: 0.0,
        sum_of_layers: None,
        noise_floor,
        each,
    }
}

/// KLs whose mean is `mean` and that vary from place to place in the same way.
fn kls(mean: f64) -> Vec<f64> {
    (0..200).map(|i| mean * (0.5 + f64::from(i * 37 % 101) / 100.0)).collect()
}

fn with(mut report: Report, a: Candidate, b: Option<Candidate>) -> Report {
    report.ablation = Some(Ablation::new(3, a, b, None));
    report
}

#[test]
fn the_side_whose_predictions_are_closer_is_better_and_the_sentence_has_both_numbers() {
    let rows = vec![row("w", [Some(31.0), Some(30.0)], 5)];
    let report = with(report("patch", rows), candidate(kls(0.002), 1e-6), Some(candidate(kls(0.001), 1e-6)));
    let verdict = Verdict::of(&report);
    assert_eq!((verdict.better, verdict.by), (Some(Better::B), Some("kl_vocab")));
    assert!(
        verdict.text.starts_with("B (profile=vllm-group) is better: its predictions are closer"),
        "{}",
        verdict.text
    );
    for part in ["0.00100", "0.00200", "50 % lower"] {
        assert!(verdict.text.contains(part), "{part}: {}", verdict.text);
    }
    // The weights say the opposite, and that is not kept back.
    assert!(verdict.notes.iter().any(|n| n == "The other side is better by: signal-to-noise ratio of the weights."));
    assert!(verdict.notes.iter().any(|n| n.contains("5/1000 weight bytes differ")), "{:?}", verdict.notes);

    // It stands first in the text, and in the page before any chart and any table.
    assert!(text(&report, None).starts_with(&verdict.text));
    let page = html(&report, false);
    let at = page.find("<h1>B (profile=vllm-group) is better").unwrap_or(usize::MAX);
    assert!(at < page.find("<figure").unwrap_or(0) && at < page.find("<table").unwrap_or(0));
}

#[test]
fn what_is_within_chance_or_below_the_noise_does_not_decide() {
    let rows = || vec![row("w", [Some(31.0), Some(31.5)], 5)];
    // The same mean but for one wild place.
    let mut wild = kls(0.001);
    wild[3] += 0.01;
    let chance = with(report("patch", rows()), candidate(kls(0.001), 1e-9), Some(candidate(wild, 1e-9)));
    let noise = with(report("patch", rows()), candidate(kls(0.001), 1e-4), Some(candidate(kls(0.00099), 1e-4)));
    for report in [chance, noise] {
        let verdict = Verdict::of(&report);
        assert_eq!((verdict.better, verdict.by), (Some(Better::B), Some("snr_db")), "{}", verdict.text);
        assert!(verdict.text.contains("31.50 dB against A's 31.00 dB (0.50 dB more)"), "{}", verdict.text);
        assert!(verdict.text.contains("; by mean KL from the unquantized model there is no clear"), "{}", verdict.text);
    }
    // Without forward passes the weights decide alone.
    let verdict = Verdict::of(&report("patch", rows()));
    assert_eq!((verdict.better, verdict.by), (Some(Better::B), Some("snr_db")));
    assert!(!verdict.text.contains("no clear"), "{}", verdict.text);
}

#[test]
fn the_trainer_weighs_more_than_the_unquantized_model() {
    let rows = vec![row("w", [Some(31.0), Some(31.0)], 5)];
    let mut report = with(report("patch", rows), candidate(kls(0.002), 1e-6), Some(candidate(kls(0.001), 1e-6)));
    let metrics = |k3: f64| Metrics(vec![("k3_kl".to_owned(), k3)]);
    report.rollout_corr = Some(RolloutCorr {
        settings: Settings::default(),
        sequences: 2,
        tokens: 200,
        a: metrics(0.003),
        b: metrics(0.004),
        paired: Paired::of(&kls(0.003), &kls(0.004)),
    });
    let verdict = Verdict::of(&report);
    assert_eq!((verdict.better, verdict.by), (Some(Better::A), Some("rollout_corr/k3_kl")));
    assert!(verdict.text.contains("closer to the trainer, with a k3 KL of 0.00300"), "{}", verdict.text);
    assert!(verdict.notes.iter().any(|n| n.contains("other side is better by: mean KL from")), "{:?}", verdict.notes);
}

#[test]
fn the_same_bits_are_called_the_same() {
    let verdict = Verdict::of(&report("patch", vec![row("w", [Some(31.0), Some(31.0)], 0)]));
    assert_eq!((verdict.better, verdict.by), (None, Some("bits")));
    assert_eq!(
        verdict.text,
        "A and B are the same, bit for bit: all 8 scales and 1000 weight bytes of 1 tensor are equal."
    );
    let verdict = Verdict::of(&report("patch", vec![row("w", [Some(31.0), Some(31.001)], 2)]));
    assert_eq!(verdict.better, None);
    assert!(
        verdict.text.contains("31.00 dB on both sides, though 0.200 % of the weight bytes differ"),
        "{}",
        verdict.text
    );
}

#[test]
fn the_unquantized_weights_are_what_a_costs() {
    let rows = || vec![row("w", [Some(30.0), None], 0)];
    let verdict = Verdict::of(&report("bf16", rows()));
    assert!(verdict.text.contains("moves the weights of 1 tensor by 3.162 % of their size"), "{}", verdict.text);
    let verdict = Verdict::of(&with(report("bf16", rows()), candidate(kls(0.002), 1e-6), None));
    assert_eq!((verdict.better, verdict.by), (Some(Better::B), Some("kl_vocab")));
    assert!(
        verdict.text.contains("costs a mean KL of 0.00200") && verdict.text.contains("98.00 % of 200 positions"),
        "{}",
        verdict.text
    );
}

#[test]
fn what_cannot_be_ranked_is_not_ranked() {
    let verdict = Verdict::of(&report("patch", Vec::new()));
    assert!(verdict.better.is_none() && verdict.text.contains("nothing to compare"), "{}", verdict.text);
    assert!(html(&report("patch", Vec::new()), true).contains("nothing to compare"));
    let apart = vec![row("v", [Some(30.0), None], 0), row("w", [None, Some(40.0)], 0)];
    let verdict = Verdict::of(&report("patch", apart));
    assert!(verdict.better.is_none() && verdict.text.contains("cannot be ranked"), "{}", verdict.text);
}

#[test]
fn other_tensors_do_not_count_as_better_weights() {
    // B leaves the hard tensor alone; on the one that both quantize, A is better.
    let rows = vec![row("v", [Some(10.0), None], 0), row("w", [Some(31.0), Some(30.0)], 5)];
    let verdict = Verdict::of(&report("patch", rows));
    assert_eq!(verdict.better, Some(Better::A), "{}", verdict.text);
    assert!(verdict.notes.iter().any(|n| n.contains("1 only A, 0 only B")), "{:?}", verdict.notes);
}

#[test]
fn names_from_files_are_never_markup_and_alike_experts_share_a_line() {
    let mut rows: Vec<TensorRow> = (0..4)
        .flat_map(|layer| {
            (0..16).map(move |expert| {
                let name = format!("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight");
                row(&name, [Some(30.0 + f64::from(expert) * 0.01), Some(31.0)], u64::from(expert % 5 == 0))
            })
        })
        .collect();
    rows.push(row("<script>alert(1)</script>", [Some(31.0), Some(31.0)], 1));
    let mut report = report("patch", rows);
    report.model = "<img src=x onerror=y>".to_owned();
    report.a.settings = vec!["keep=<b>".to_owned()];
    for all in [false, true] {
        let page = html(&report, all).replace("<wbr>", "");
        assert!(!page.contains("<script") && !page.contains("<img") && !page.contains("<b>"), "markup");
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
        assert!(page.contains("model.layers.{0..3}.mlp.experts.{0..15}.up_proj.weight"));
        assert!(page.contains("model.layers.2.mlp.experts.{0..15}.up_proj.weight"));
        assert_eq!(page.contains("<th scope=\"row\">model.layers.2.mlp.experts.7.up_proj.weight</th>"), all);
    }
    // The sums of a line are those of its tensors: 4 of 16 experts differ in one byte each, in 4 layers.
    assert!(html(&report, false).contains("<td>16/64000</td>"));
}
