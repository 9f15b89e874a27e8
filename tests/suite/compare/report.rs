//! What people see: the text, and the HTML file.

use safetensors::tensor::Dtype;

use super::compare;
use crate::support::{Tensor, bf16_bytes, normal, patchhost, tmp, write};

#[test]
fn the_html_report_needs_nothing_else_and_has_the_numbers() {
    let tmp = tmp();
    let html = tmp.path().join("report.html");
    let args = [
        "fp8_block",
        "fp8_block",
        "--set-b",
        "profile=vllm-group",
        "--per-layer",
        "--all",
        "--html",
        html.to_str().unwrap(),
    ];
    let json = compare(&args);
    let page = std::fs::read_to_string(&html).unwrap();
    for address in
        ["http:", "https:", "//", "<script", "src=", "href=", "url(", "@import", "<link", "<iframe", "<object"]
    {
        assert!(!page.contains(address), "{address}");
    }
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("width=device-width"));
    // Every element that is opened is closed.
    let tags = "svg table tr td th div h1 h2 p span i ul li code thead tbody figure figcaption details summary caption";
    for tag in tags.split(' ') {
        let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    // The verdict comes first; then KL by class and by layer, SNR, differing bytes.
    let verdict = json["verdict"]["text"].as_str().unwrap();
    let heading = verdict.replace('\'', "&#39;");
    assert!(page.find(&format!("<h1>{heading}</h1>")).unwrap() < page.find("<figure").unwrap(), "{verdict}");
    assert_eq!(page.matches("<figure").count(), 4);
    let t = &json["total"];
    for group in ["scales", "weight_bytes"] {
        let text = format!("<td>{}/{}</td>", t[group]["differing"], t[group]["total"]);
        assert!(page.contains(&text), "{text}");
    }
    // Every tensor, since all were asked for.
    let names = page.replace("<wbr>", "");
    for row in json["tensors"].as_array().unwrap() {
        assert!(names.contains(&format!("<th scope=\"row\">{}</th>", row["name"].as_str().unwrap())));
    }
    let all = format!("{:.2} %</td>", json["ablation"]["a"]["all"]["top1_agreement"].as_f64().unwrap() * 100.0);
    assert!(page.contains(&all), "{all}");
    bars_have_the_lengths_of_their_numbers(&page, &json);
    // The same input, the same page.
    let again = tmp.path().join("again.html");
    compare(&[&args[..7], &[again.to_str().unwrap()]].concat());
    assert_eq!(page, std::fs::read_to_string(&again).unwrap());
}

/// The first chart: KL by class, of both sides.
fn bars_have_the_lengths_of_their_numbers(page: &str, json: &serde_json::Value) {
    let kl = |v: &serde_json::Value| v["kl_vocab"].as_f64().unwrap();
    let sides = [&json["ablation"]["a"], &json["ablation"]["b"]];
    let expected: Vec<f64> =
        sides.iter().flat_map(|s| s["classes"].as_array().unwrap().iter().chain([&s["all"]])).map(kl).collect();
    let chart = &page[page.find("<figure").unwrap()..page.find("</figure>").unwrap()];
    let between = |text: &str, from: &str, to: &str| -> f64 {
        text.split_once(from).unwrap().1.split_once(to).unwrap().0.trim_end_matches(" nats").parse().unwrap()
    };
    let bars: Vec<(f64, f64)> = chart
        .split("<i class=\"bar")
        .skip(1)
        .map(|bar| (between(bar, "width:", "%"), between(bar, "<span class=\"value\">", "</span>")))
        .collect();
    assert_eq!(bars.len(), expected.len());
    // The axis ends at a round value, not before the longest bar.
    let end: f64 = {
        let ticks = chart.split_once("class=\"ticks\">").unwrap().1;
        ticks.split_once("left:100.00%\">").unwrap().1.split_once('<').unwrap().0.parse().unwrap()
    };
    let most = expected.iter().copied().fold(0.0, f64::max);
    assert!(end >= most * 0.999 && end < most * 2.5, "{end} {most}");
    for (width, value) in bars {
        assert!((width / 100.0 - value / end).abs() < 2e-3 + 5e-3 * value / end, "{width} {value} {end}");
        assert!(expected.iter().any(|kl| (kl - value).abs() <= 6e-3 * kl), "{value} {expected:?}");
    }
}

#[test]
fn the_verdict_is_the_first_line_and_what_the_numbers_say() {
    // One component on both sides: the same bits.
    let same = ["compare", "fp8_block", "fp8_block", "--tensors-only"];
    let text = patchhost(same).good().stdout;
    assert!(text.starts_with("A and B are the same, bit for bit: all "), "{text}");
    let json = compare(&same[1..]);
    assert_eq!((&json["verdict"]["better"], &json["verdict"]["by"]), (&serde_json::Value::Null, &"bits".into()));

    // The patch that minimizes the squared error has the better weights, by its own measure.
    let json = compare(&["fp8_block", "fp8_block_mse", "--tensors-only"]);
    let snr = |side: &str| json["total"][side]["snr_db"].as_f64().unwrap();
    assert!(snr("b") > snr("a"));
    assert_eq!((&json["verdict"]["better"], &json["verdict"]["by"]), (&"b".into(), &"snr_db".into()));
    let said = json["verdict"]["text"].as_str().unwrap();
    assert!(said.starts_with("B (fp8_block_mse") && said.contains(&format!("{:.2} dB", snr("b"))), "{said}");

    // Against the unquantized weights it says what quantizing costs.
    let text = patchhost(["compare", "fp8_block", "--against", "bf16", "--tensors-only"]).good().stdout;
    assert!(text.starts_with("Quantizing with fp8_block"), "{text}");
    // The host's own formulas do the same as the patch.
    let text = patchhost(["compare", "fp8_block", "--against", "native", "--tensors-only"]).good().stdout;
    assert!(text.starts_with("A and B are the same, bit for bit"), "{text}");
}

#[test]
fn alike_experts_share_a_line_of_the_page_unless_all_are_asked_for() {
    let tmp = tmp();
    let page = |more: &[&str]| {
        let html = tmp.path().join("report.html");
        let base = ["fp8_block", "fp8_block_mse", "--tensors-only", "--html", html.to_str().unwrap()];
        let json = compare(&[&base[..], more].concat());
        (std::fs::read_to_string(&html).unwrap().replace("<wbr>", ""), json)
    };
    let (folded, json) = page(&[]);
    let expert = json["tensors"].as_array().unwrap().iter().find(|t| t["class"] == "experts").unwrap();
    let expert = format!("<th scope=\"row\">{}</th>", expert["name"].as_str().unwrap());
    assert!(folded.contains(".mlp.experts.{0..") && !folded.contains(&expert), "{expert}");
    let (all, _) = page(&["--all"]);
    assert!(all.contains(".mlp.experts.{0..") && all.contains(&expert), "{expert}");
}

#[test]
fn names_are_escaped_in_the_page() {
    let tmp = tmp();
    let path = tmp.path().join("w.safetensors");
    let name = "<script>alert('x')</script>&\"";
    write(&path, &[(name.into(), Dtype::BF16, vec![64, 64], bf16_bytes(&normal(64 * 64, 1)))]);
    let html = tmp.path().join("report.html");
    let args = ["fp8_block", "--against", "bf16", path.to_str().unwrap(), "--html", html.to_str().unwrap()];
    compare(&args);
    let page = std::fs::read_to_string(&html).unwrap().replace("<wbr>", "");
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&quot;"));
}

#[test]
fn the_text_shows_the_worst_twenty_unless_asked_for_all() {
    let tmp = tmp();
    let path = tmp.path().join("w.safetensors");
    let tensors: Vec<Tensor> = (0..25)
        .map(|i| {
            let values = normal(130 * 130, i + 1);
            (format!("layer.{i:02}.weight"), Dtype::BF16, vec![130, 130], bf16_bytes(&values))
        })
        .collect();
    write(&path, &tensors);
    let base = ["compare", "fp8_block", "fp8_block", path.to_str().unwrap(), "--set-b", "profile=vllm-group"];
    let text = patchhost(base).good().stdout;
    let shown = |text: &str| text.lines().filter(|l| l.contains("layer.") && l.contains("130x130")).count();
    assert!(shown(&text) == 20 && text.contains("and 5 more (--all)"), "{text}");
    let all = patchhost(base.iter().chain(&["--all"])).good().stdout;
    assert!(shown(&all) == 25 && !all.contains("more (--all)"));
    // Worst first.
    let json = compare(&[&base[1..]].concat());
    let shares: Vec<u64> =
        json["tensors"].as_array().unwrap().iter().map(|t| t["weight_bytes"]["differing"].as_u64().unwrap()).collect();
    assert!(shares.is_sorted_by(|a, b| a >= b) && shares[0] > shares[24], "{shares:?}");
}

#[test]
fn help_says_how_arguments_and_files_are_read() {
    let help = patchhost(["compare", "--help"]).good().stdout;
    for words in ["ends in .wasm", "response_mask", "old_log_probs", "--against native", "--set-a"] {
        assert!(help.contains(words), "{words}\n{help}");
    }
}

#[test]
fn digests_belong_to_sides_in_order() {
    let json = compare(&["fp8_block", "fp8_block_mse", "--tensors-only"]);
    let digest = |side: &str| json[side]["sha256"].as_str().unwrap().to_string();
    let (a, b) = (digest("a"), digest("b"));
    assert_ne!(a, b);
    let base = ["compare", "fp8_block", "fp8_block_mse", "--tensors-only"];
    patchhost(base.iter().chain(&["--sha256", &a, "--sha256", &b])).good();
    let wrong = patchhost(base.iter().chain(&["--sha256", &b])).refused(1, std::path::Path::new("/nowhere"));
    assert!(wrong.contains("fp8_block"), "{wrong}");
}
