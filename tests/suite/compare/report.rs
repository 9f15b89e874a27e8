//! What people see: the text, and the HTML file.

use safetensors::tensor::Dtype;

use super::compare;
use crate::support::{Tensor, bf16_bytes, normal, patchhost, tmp, write};

#[test]
fn the_html_report_needs_nothing_else_and_has_the_numbers() {
    let tmp = tmp();
    let html = tmp.path().join("report.html");
    let args =
        ["fp8_block", "fp8_block", "--set-b", "profile=vllm-group", "--per-layer", "--html", html.to_str().unwrap()];
    let json = compare(&args);
    let page = std::fs::read_to_string(&html).unwrap();
    for address in
        ["http:", "https:", "//", "<script", "src=", "href=", "url(", "@import", "<link", "<iframe", "<object"]
    {
        assert!(!page.contains(address), "{address}");
    }
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    assert!(page.contains("prefers-color-scheme: dark"));
    // Every element that is opened is closed.
    for tag in ["svg", "table", "tr", "td", "th", "div", "h2", "p", "text", "ul", "li", "code", "thead", "tbody"] {
        let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    // KL by class and by layer, SNR, differing bytes.
    assert_eq!(page.matches("<svg").count(), 4);
    let t = &json["total"];
    for group in ["scales", "weight_bytes"] {
        let text = format!("<td>{}/{}</td>", t[group]["differing"], t[group]["total"]);
        assert!(page.contains(&text), "{text}");
    }
    // Every tensor, though the text shows only some.
    for row in json["tensors"].as_array().unwrap() {
        assert!(page.contains(&format!("<td>{}</td>", row["name"].as_str().unwrap())));
    }
    let all = format!("{:.2} %</td>", json["ablation"]["a"]["all"]["top1_agreement"].as_f64().unwrap() * 100.0);
    assert!(page.contains(&all), "{all}");
    // The longest bar of the first chart is that of the greatest KL, with its number beside it.
    let kl = |v: &serde_json::Value| v["kl_vocab"].as_f64().unwrap();
    let a = &json["ablation"]["a"];
    let b = &json["ablation"]["b"];
    let every = [a, b].into_iter().flat_map(|s| s["classes"].as_array().unwrap().iter().chain([&s["all"]]));
    let most = every.map(kl).fold(0.0, f64::max);
    let chart = &page[page.find("<svg").unwrap()..page.find("</svg>").unwrap()];
    let longest = chart.split("<rect ").find(|bar| bar.contains("width=\"420.0\"")).unwrap();
    let shown: f64 = longest
        .split_once("<title>")
        .unwrap()
        .1
        .split_once("</title>")
        .unwrap()
        .0
        .rsplit(": ")
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!((shown / most - 1.0).abs() < 1e-3, "{shown} {most}");
    // The same input, the same page.
    let again = tmp.path().join("again.html");
    compare(&[&args[..6], &[again.to_str().unwrap()]].concat());
    assert_eq!(page, std::fs::read_to_string(&again).unwrap());
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
    let page = std::fs::read_to_string(&html).unwrap();
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
