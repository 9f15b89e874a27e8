//! The metrics against values computed by hand: verl's definitions, written out once more over masked tensors, in f64 by
//! another program. Three sequences; the last one has no counted token.
//!
//! | | trainer | rollout | d |
//! |---|---|---|---|
//! | 1 | -0.5, -1, -2 | -0.75, -1, -1 | 0.25, 0, -1 |
//! | 2 | -0.25, -3 | -0.5, -4.5 | 0.25, 1.5 |
#![allow(clippy::unwrap_used)]

use super::super::rollout_rs::parse;
use super::{Level, Metrics, Settings, Threshold, Token, metrics};

const OFF_POLICY: &[(&str, f64)] = &[
    ("training_ppl", 3.0965631934445477),
    ("training_log_ppl", 0.9305555555555557),
    ("kl", -0.2),
    ("k3_kl", 0.48352386897699795),
    ("rollout_ppl", 5.227811324788534),
    ("rollout_log_ppl", 1.1388888888888888),
    ("log_ppl_diff", -0.2083333333333333),
    ("log_ppl_abs_diff", 0.375),
    ("log_ppl_diff_max", 0.2500000000000001),
    ("log_ppl_diff_min", -0.875),
    ("ppl_ratio", 0.9002958121220833),
    ("chi2_token", 3.9036629495649064),
    ("chi2_seq", 10.44619403961358),
];
const TOKEN: &[(&str, f64)] = &[
    ("rollout_is_mean", 1.187186054909385),
    ("rollout_is_max", 2.0),
    ("rollout_is_min", 0.36787944117144233),
    ("rollout_is_ratio_fraction_high", 0.2),
    ("rollout_is_ratio_fraction_low", 0.2),
    ("rollout_is_std", 0.5264454729181975),
    ("rollout_is_eff_sample_size", 0.8356740696982147),
    ("rollout_is_seq_mean", 0.841993664765644),
    ("rollout_is_seq_std", 0.8218107052165746),
    ("rollout_is_seq_max", 1.6420127083438707),
    ("rollout_is_seq_min", 0.0),
    ("rollout_is_seq_max_deviation", 1.0),
    ("rollout_is_seq_fraction_high", 0.3333333333333333),
    ("rollout_is_seq_fraction_low", 0.3333333333333333),
];
const TOKEN_BAND: &[(&str, f64)] = &[
    ("rollout_is_mean", 1.6099479807427095),
    ("rollout_is_max", 4.4816890703380645),
    ("rollout_is_min", 0.0),
    ("rollout_is_ratio_fraction_high", 0.0),
    ("rollout_is_ratio_fraction_low", 0.2),
    ("rollout_is_std", 1.5115103017247535),
    ("rollout_is_eff_sample_size", 0.5315044735736302),
    ("rollout_is_seq_mean", 1.2147330163584944),
    ("rollout_is_seq_std", 1.4939508573373292),
    ("rollout_is_seq_max", 2.8828572435129027),
    ("rollout_is_seq_min", 0.0),
    ("rollout_is_seq_max_deviation", 1.8828572435129027),
    ("rollout_is_seq_fraction_high", 0.0),
    ("rollout_is_seq_fraction_low", 0.3333333333333333),
    ("rollout_is_oob_ratio", 0.2),
];
const SEQUENCE: &[(&str, f64)] = &[
    ("rollout_is_mean", 1.083419931644609),
    ("rollout_is_max", 5.754602676005731),
    ("rollout_is_min", 0.4723665527410147),
    ("rollout_is_ratio_fraction_high", 0.3333333333333333),
    ("rollout_is_ratio_fraction_low", 0.3333333333333333),
    ("rollout_is_std", 0.7483844919586783),
    ("rollout_is_eff_sample_size", 0.6769788329415042),
    ("rollout_is_seq_mean", 0.8241221842470049),
    ("rollout_is_seq_std", 1.0453702780460776),
    ("rollout_is_seq_max", 2.0),
    ("rollout_is_seq_min", 0.0),
    ("rollout_is_seq_max_deviation", 1.0),
    ("rollout_is_seq_fraction_high", 0.3333333333333333),
    ("rollout_is_seq_fraction_low", 0.6666666666666666),
];
const SEQUENCE_BAND: &[(&str, f64)] = &[
    ("rollout_is_mean", 0.28341993164460877),
    ("rollout_is_max", 5.754602676005731),
    ("rollout_is_min", 0.4723665527410147),
    ("rollout_is_ratio_fraction_high", 0.3333333333333333),
    ("rollout_is_ratio_fraction_low", 0.0),
    ("rollout_is_std", 0.231411405154593),
    ("rollout_is_eff_sample_size", 0.6000000423400008),
    ("rollout_is_seq_mean", 0.1574555175803382),
    ("rollout_is_seq_std", 0.27272095638120036),
    ("rollout_is_seq_max", 0.47236655274101463),
    ("rollout_is_seq_min", 0.0),
    ("rollout_is_seq_max_deviation", 1.0),
    ("rollout_is_seq_fraction_high", 0.3333333333333333),
    ("rollout_is_seq_fraction_low", 0.3333333333333333),
    ("rollout_is_oob_ratio", 0.4),
];
const PROBABILITIES: &[(&str, f64)] = &[
    ("training/rollout_probs_diff_valid", 1.0),
    ("training/rollout_probs_diff_max", 0.23254415793482963),
    ("training/rollout_probs_diff_mean", 0.1155312920189683),
    ("training/rollout_probs_diff_std", 0.09554107029669756),
    ("training/rollout_actor_probs_pearson_corr", 0.8705039021856753),
];
const REJECTION: &[(&str, f64)] = &[
    ("rollout_rs_token_k1_mean", -0.2),
    ("rollout_rs_token_k1_max", 1.0),
    ("rollout_rs_token_k1_min", -1.5),
    ("rollout_rs_token_k1_fraction_high", 0.2),
    ("rollout_rs_token_k1_fraction_low", 0.2),
    ("rollout_rs_token_k1_std", 0.45517162210234563),
    ("rollout_rs_token_k1_seq_mean", -0.3125),
    ("rollout_rs_token_k1_seq_std", 0.795495128834866),
    ("rollout_rs_token_k1_seq_max", 0.25),
    ("rollout_rs_token_k1_seq_min", -0.875),
    ("rollout_rs_token_k1_seq_max_deviation", 0.875),
    ("rollout_rs_token_k1_seq_fraction_high", 0.0),
    ("rollout_rs_token_k1_seq_fraction_low", 0.5),
    ("rollout_rs_token_k1_masked_fraction", 0.4),
    ("rollout_rs_token_k1_seq_masked_fraction", 1.0),
    ("rollout_rs_token_k2_mean", 0.3375),
    ("rollout_rs_token_k2_max", 1.125),
    ("rollout_rs_token_k2_min", 0.0),
    ("rollout_rs_token_k2_fraction_high", 0.4),
    ("rollout_rs_token_k2_fraction_low", 0.0),
    ("rollout_rs_token_k2_std", 0.04042740407199057),
    ("rollout_rs_token_k2_seq_mean", 0.3776041666666667),
    ("rollout_rs_token_k2_seq_std", 0.283579282038355),
    ("rollout_rs_token_k2_seq_max", 0.578125),
    ("rollout_rs_token_k2_seq_min", 0.17708333333333334),
    ("rollout_rs_token_k2_seq_max_deviation", 0.578125),
    ("rollout_rs_token_k2_seq_fraction_high", 1.0),
    ("rollout_rs_token_k2_masked_fraction", 0.4),
    ("rollout_rs_token_k2_seq_masked_fraction", 1.0),
    ("rollout_rs_seq_sum_k1_mean", -0.25),
    ("rollout_rs_seq_sum_k1_max", 0.75),
    ("rollout_rs_seq_sum_k1_min", -1.75),
    ("rollout_rs_seq_sum_k1_fraction_high", 0.0),
    ("rollout_rs_seq_sum_k1_fraction_low", 0.5),
    ("rollout_rs_seq_sum_k1_std", 0.7069948432216099),
    ("rollout_rs_seq_sum_k1_seq_mean", -0.5),
    ("rollout_rs_seq_sum_k1_seq_std", 1.7677669529663689),
    ("rollout_rs_seq_sum_k1_seq_max", 0.75),
    ("rollout_rs_seq_sum_k1_seq_min", -1.75),
    ("rollout_rs_seq_sum_k1_seq_max_deviation", 1.75),
    ("rollout_rs_seq_sum_k1_seq_fraction_high", 0.0),
    ("rollout_rs_seq_sum_k1_seq_fraction_low", 0.5),
    ("rollout_rs_seq_sum_k1_masked_fraction", 0.4),
    ("rollout_rs_seq_sum_k1_seq_masked_fraction", 0.5),
    ("rollout_rs_seq_mean_k3_mean", 0.48352386897699795),
    ("rollout_rs_seq_mean_k3_max", 1.007857243512903),
    ("rollout_rs_seq_mean_k3_min", 0.13396828595306123),
    ("rollout_rs_seq_mean_k3_fraction_high", 0.5),
    ("rollout_rs_seq_mean_k3_fraction_low", 0.0),
    ("rollout_rs_seq_mean_k3_std", 0.03234880125127374),
    ("rollout_rs_seq_mean_k3_seq_mean", 0.5709127647329821),
    ("rollout_rs_seq_mean_k3_seq_std", 0.6179328078946071),
    ("rollout_rs_seq_mean_k3_seq_max", 1.007857243512903),
    ("rollout_rs_seq_mean_k3_seq_min", 0.13396828595306123),
    ("rollout_rs_seq_mean_k3_seq_max_deviation", 1.007857243512903),
    ("rollout_rs_seq_mean_k3_seq_fraction_high", 0.5),
    ("rollout_rs_seq_mean_k3_masked_fraction", 0.4),
    ("rollout_rs_seq_mean_k3_seq_masked_fraction", 0.5),
    ("rollout_rs_seq_max_k2_mean", 0.75),
    ("rollout_rs_seq_max_k2_max", 1.125),
    ("rollout_rs_seq_max_k2_min", 0.5),
    ("rollout_rs_seq_max_k2_fraction_high", 0.5),
    ("rollout_rs_seq_max_k2_fraction_low", 0.0),
    ("rollout_rs_seq_max_k2_std", 0.048989794855662565),
    ("rollout_rs_seq_max_k2_seq_mean", 0.8125),
    ("rollout_rs_seq_max_k2_seq_std", 0.4419417382415922),
    ("rollout_rs_seq_max_k2_seq_max", 1.125),
    ("rollout_rs_seq_max_k2_seq_min", 0.5),
    ("rollout_rs_seq_max_k2_seq_max_deviation", 1.125),
    ("rollout_rs_seq_max_k2_seq_fraction_high", 0.5),
    ("rollout_rs_seq_max_k2_masked_fraction", 0.4),
    ("rollout_rs_seq_max_k2_seq_masked_fraction", 0.5),
    ("rollout_rs_masked_fraction", 0.6),
    ("rollout_rs_seq_masked_fraction", 0.6666666666666666),
];

fn batch() -> Vec<Vec<Token>> {
    let token = |(training, rollout): &(f64, f64)| Token { training: *training, rollout: *rollout };
    let sequences: [&[(f64, f64)]; 3] =
        [&[(-0.5, -0.75), (-1.0, -1.0), (-2.0, -1.0)], &[(-0.25, -0.5), (-3.0, -4.5)], &[]];
    sequences.iter().map(|s| s.iter().map(token).collect()).collect()
}

fn settings(rollout_is: Level, threshold: &str) -> Settings {
    Settings { rollout_is, rollout_is_threshold: threshold.parse().unwrap(), rollout_rs: Vec::new() }
}

#[track_caller]
fn check(got: &Metrics, expected: &[(&str, f64)]) {
    for (name, value) in expected {
        let found = got.get(name).unwrap_or_else(|| panic!("no {name}"));
        assert!((found - value).abs() <= 1e-13 * value.abs().max(1.0), "{name}: {found}, not {value}");
    }
}

#[test]
fn every_metric_is_the_one_computed_by_hand() {
    for (level, threshold, weights) in [
        (Level::Token, "2.0", TOKEN),
        (Level::Token, "0.5_5.0", TOKEN_BAND),
        (Level::Sequence, "2.0", SEQUENCE),
        (Level::Sequence, "0.4_2.0", SEQUENCE_BAND),
    ] {
        let got = metrics(&batch(), &settings(level, threshold)).unwrap();
        let all = [OFF_POLICY, weights, PROBABILITIES].concat();
        check(&got, &all);
        // Nothing besides: every name is one that was computed.
        let names: Vec<&str> = got.0.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names.len(), all.len(), "{names:?}");
    }
}

#[test]
fn every_rejection_metric_is_the_one_computed_by_hand() {
    let rules = parse("token_k1,token_k2, seq_sum_k1,seq_mean_k3,seq_max_k2", "0.5_2.0,0.1,0.5_3.0,0.2,0.6").unwrap();
    let got = metrics(&batch(), &Settings { rollout_rs: rules, ..Settings::default() }).unwrap();
    check(&got, REJECTION);
    assert_eq!(got.0.iter().filter(|(n, _)| n.starts_with("rollout_rs_")).count(), REJECTION.len());
}

#[test]
fn ratios_are_clamped_where_the_definition_says_so_and_nowhere_else() {
    let one = |training, rollout| metrics(&[vec![Token { training, rollout }]], &Settings::default()).unwrap();
    let far = one(-1.0, -26.0);
    check(
        &far,
        &[
            ("kl", -25.0),
            ("k3_kl", 25f64.exp() - 26.0),
            ("chi2_token", 40f64.exp() - 1.0),
            ("chi2_seq", 40f64.exp() - 1.0),
            ("rollout_is_mean", 2.0),
            ("rollout_is_std", 0.0),
            ("ppl_ratio", (-25f64).exp()),
        ],
    );
    let sequence = metrics(&[vec![Token { training: -1.0, rollout: -26.0 }]], &settings(Level::Sequence, "2.0"));
    check(&sequence.unwrap(), &[("rollout_is_max", 20f64.exp()), ("rollout_is_min", 25f64.exp())]);
    // One token has no spread and no correlation.
    assert!(far.get("training/rollout_probs_diff_std").unwrap().is_nan());
    assert!(far.get("training/rollout_actor_probs_pearson_corr").unwrap().is_nan());
}

/// The numbers are those of verl 0.9.1's own `compute_rollout_correction_weights`, run in f64 on this batch.
#[test]
fn shares_of_sequences_are_those_of_raw_weights_as_verl_has_them() {
    let ratios: [&[f64]; 4] = [&[30.0, -30.0, 0.0], &[1.0, 1.0, 1.0], &[-0.1, -0.2, -40.0], &[0.8]];
    let token = |d: &f64| Token { training: d - 1.0, rollout: -1.0 };
    let batch: Vec<Vec<Token>> = ratios.iter().map(|s| s.iter().map(token).collect()).collect();
    for (level, threshold, high, low) in
        [(Level::Token, "2.0", 0.75, 0.0), (Level::Token, "0.5_3.0", 0.25, 0.0), (Level::Sequence, "2.0", 0.5, 0.25)]
    {
        let got = metrics(&batch, &settings(level, threshold)).unwrap();
        check(&got, &[("rollout_is_seq_fraction_high", high), ("rollout_is_seq_fraction_low", low)]);
    }
}

#[test]
fn a_band_that_no_weight_is_in() {
    let got = metrics(&batch(), &settings(Level::Sequence, "0.9_1.1")).unwrap();
    check(&got, &[("rollout_is_oob_ratio", 1.0), ("rollout_is_mean", 0.0)]);
    assert!(got.get("rollout_is_eff_sample_size").unwrap().is_nan());
}

#[test]
fn equal_log_probs_are_no_mismatch() {
    let same: Vec<Vec<Token>> = vec![
        vec![Token { training: -0.5, rollout: -0.5 }, Token { training: -2.0, rollout: -2.0 }],
        vec![Token { training: -1.0, rollout: -1.0 }],
    ];
    let got = metrics(&same, &Settings::default()).unwrap();
    for zero in ["kl", "k3_kl", "log_ppl_abs_diff", "chi2_token", "chi2_seq", "training/rollout_probs_diff_max"] {
        assert_eq!(got.get(zero), Some(0.0), "{zero}");
    }
    for one in ["ppl_ratio", "rollout_is_mean", "rollout_is_seq_min"] {
        assert_eq!(got.get(one), Some(1.0), "{one}");
    }
    check(
        &got,
        &[("rollout_is_eff_sample_size", (1.0f64 + 1e-8).powi(2)), ("training/rollout_actor_probs_pearson_corr", 1.0)],
    );
    assert_eq!(got.get("training_ppl"), got.get("rollout_ppl"));
}

#[test]
fn nothing_counted_is_no_metric() {
    assert_eq!(metrics(&[vec![], vec![]], &Settings::default()), None);
}

#[test]
fn k3_keeps_what_is_small() {
    // d^2 / 2 up to d^3 / 6: the naive form loses all digits here.
    assert!((super::k3(1e-9) / 0.5e-18 - 1.0).abs() < 1e-6);
    assert!((super::k3(-1e-6) / (0.5e-12 - 1e-18 / 6.0) - 1.0).abs() < 1e-9);
}

#[test]
fn thresholds_and_rules_are_read() {
    assert_eq!("2".parse(), Ok(Threshold { lower: None, upper: 2.0 }));
    assert_eq!("0.5_5.0".parse(), Ok(Threshold { lower: Some(0.5), upper: 5.0 }));
    for bad in ["", "0", "-1", "nan", "inf", "5_2", "_", "1_", "a_2", "0_2"] {
        assert!(bad.parse::<Threshold>().is_err(), "{bad}");
    }
    assert_eq!(parse("token_k2,token_k3", "0.1").unwrap().len(), 2);
    assert_eq!(parse("seq_sum_k1", "2").unwrap()[0].lower, Some(0.5f64.ln()));
    for (rules, thresholds) in [
        ("", "1"),
        ("token_k2", ""),
        ("token_k2", "1,2"),
        ("seq_max_k1", "1"),
        ("token_k2", "0.5_2"),
        ("token_k1,token_k1", "2"),
    ] {
        assert!(parse(rules, thresholds).is_err(), "{rules} {thresholds}");
    }
}
