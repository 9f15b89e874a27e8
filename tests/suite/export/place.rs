//! The folder: nothing is overwritten, refused arguments and kills leave nothing behind.

use super::*;

#[test]
fn nothing_is_overwritten_that_should_stay() {
    let tmp = tmp();
    let at = |name: &str| tmp.path().join(name);
    let model = copy_model("llama", tmp.path());
    let before = files(&model);
    std::fs::create_dir(at("empty")).unwrap();
    export(Some(&model), &at("empty"), "transformers", &["--allow-unquantized"]).good();
    std::fs::write(at("file"), "x").unwrap();
    std::fs::create_dir(at("photos")).unwrap();
    std::fs::write(at("photos/cat.jpg"), "cat").unwrap();
    std::fs::create_dir_all(at("repo/.git")).unwrap();
    std::fs::write(at("repo/config.json"), "{}").unwrap();
    let link = at("link");
    std::os::unix::fs::symlink(&model, &link).unwrap();
    std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
    let mut text = String::new();
    for (label, out, extra) in [
        ("is MODEL", model.clone(), "--force"),
        ("is MODEL by a link", link, "--force"),
        ("inside MODEL", model.join("out"), "--force"),
        ("around MODEL", tmp.path().to_path_buf(), "--force"),
        ("a file", at("file"), "--force"),
        ("not empty", at("empty"), "--threads=1"),
        ("not a model", at("photos"), "--force"),
        ("with a folder", at("repo"), "--force"),
        ("parent missing", at("a/b"), "--force"),
        ("a dangling link", at("dangling"), "--force"),
        ("the root", PathBuf::from("/"), "--force"),
    ] {
        let refused = export(Some(&model), &out, "transformers", &[extra]).refused(2, tmp.path());
        text += &format!("# {label}\n{refused}\n\n");
    }
    insta::assert_snapshot!(text);
    assert_eq!(files(&model), before);
    assert_eq!(std::fs::read_to_string(at("photos/cat.jpg")).unwrap(), "cat");
    assert!(names(tmp.path()).iter().all(|n| !n.starts_with('.')), "{:?}", names(tmp.path()));
}

#[test]
fn force_replaces_a_model_by_another_as_a_whole() {
    let tmp = tmp();
    let out = tmp.path().join("out");
    export(None, &out, "vllm@0.11", &["--max-shard-size", "1MB"]).good();
    export(Some(&data("oracle").join("llama")), &out, "sglang", &["--force", "--allow-unquantized"]).good();
    assert_eq!(names(&out), ["config.json", "generation_config.json", "model.safetensors"]);
    assert_eq!(names(tmp.path()), ["out"]);
}

#[test]
fn bad_arguments_are_refused_before_anything_is_written() {
    let tmp = tmp();
    let out = tmp.path().join("out");
    let mut text = String::new();
    for (reader, extra) in [
        ("vllm@0.2", &[][..]),
        ("tgi", &[]),
        ("vllm@", &[]),
        ("vllm", &["--check-tp", "1,zero"]),
        ("vllm", &["--check-tp", "2,2"]),
        ("vllm", &["--check-tp", ""]),
        ("vllm", &["--max-shard-size", "1", "--set", "keep=*", "--allow-unquantized"]),
    ] {
        let ran = export(None, &out, reader, extra);
        if ran.code == 0 {
            // One byte a file is silly, but 134 files are within the limit.
            assert!(out.join("model-00134-of-00134.safetensors").is_file(), "{:?}", names(&out));
            std::fs::remove_dir_all(&out).unwrap();
            continue;
        }
        text += &format!("# --for {reader} {}\n{}\n\n", extra.join(" "), ran.refused(2, tmp.path()));
    }
    let none = patchhost(["export", out.to_str().unwrap(), "--for", "vllm"]);
    text += &format!("# no patch\n{}\n", none.refused(2, tmp.path()));
    insta::assert_snapshot!(text);
    assert!(names(tmp.path()).is_empty());
}

#[test]
fn a_bad_weight_leaves_nothing_behind() {
    let tmp = tmp();
    let model = random_llama(tmp.path(), 128, 1);
    edit_tensors(&model, |tensors| {
        let t = tensors.iter_mut().find(|t| t.0 == "model.layers.0.mlp.up_proj.weight").unwrap();
        t.3[200..202].copy_from_slice(&[0xc0, 0x7f]);
    });
    let refused = export(Some(&model), &tmp.path().join("out"), "deepseek", &[]).refused(1, tmp.path());
    assert!(refused.contains("model.layers.0.mlp.up_proj.weight") && refused.contains("[0, 100]"), "{refused}");
    let ran = export(Some(&model), &tmp.path().join("out"), "deepseek", &["--set", "edges=seed-torch"]);
    assert!(ran.refused(1, tmp.path()).contains("NaN"));
    assert_eq!(names(tmp.path()), ["random"]);
}

#[test]
fn killed_in_the_middle_it_leaves_no_model_and_the_next_run_cleans_up() {
    let tmp = tmp();
    let model = random_llama(tmp.path(), 512, 12);
    let out = tmp.path().join("out");
    let run = |extra: &[&str]| export(Some(&model), &out, "vllm@0.11", extra);
    let hidden = || names(tmp.path()).into_iter().find(|n| n.starts_with(".out.patchhost-"));
    // Small files, each waited for: the kill finds some written and some not.
    let shard = ["--max-shard-size", "300KB"];
    let mut killed = false;
    for _ in 0..10 {
        let args = [
            "export",
            model.to_str().unwrap(),
            out.to_str().unwrap(),
            "--component",
            "fp8_block",
            "--for",
            "vllm@0.11",
        ];
        let mut child = Command::new(env!("CARGO_BIN_EXE_patchhost-under-test"))
            .args(args.iter().chain(&shard))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let half = || hidden().is_some_and(|h| std::fs::read_dir(tmp.path().join(h)).is_ok_and(|d| d.count() > 5));
        while !half() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if hidden().is_some() && !out.exists() {
            killed = true;
            break;
        }
        let _ = std::fs::remove_dir_all(&out);
    }
    assert!(killed, "the export was always faster than the kill");
    assert!(!out.exists());
    let leftover = tmp.path().join(hidden().unwrap());
    assert!(!leftover.join("config.json").exists(), "a half-written model must not look like one");

    let ran = run(&shard).good();
    assert!(ran.stderr.contains("removed what 1 interrupted export left behind"), "{}", ran.stderr);
    assert_eq!(names(tmp.path()), ["out", "random"]);
    let again = tmp.path().join("again");
    export(Some(&model), &again, "vllm@0.11", &shard).good();
    assert!(files(&out) == files(&again));
}

#[test]
fn an_export_is_not_exported_again() {
    let tmp = tmp();
    let (once, twice) = (tmp.path().join("once"), tmp.path().join("twice"));
    export(None, &once, "deepseek", &[]).good();
    let again = export(Some(&once), &twice, "deepseek", &[]);
    assert!(matches!(again.code, 1 | 2) && again.stderr.contains("quantized"), "{}", again.stderr);
    assert_eq!(names(tmp.path()), ["once"]);
}

/// As the cache of the Hugging Face hub lays out a model: a snapshot of links to blobs beside it.
fn snapshot(from: &Path, cache: &Path) -> PathBuf {
    let (blobs, snapshot) = (cache.join("models--a--b/blobs"), cache.join("models--a--b/snapshots/0123"));
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    for name in names(from) {
        std::fs::copy(from.join(&name), blobs.join(&name)).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{name}"), snapshot.join(&name)).unwrap();
    }
    snapshot
}

#[test]
fn a_link_that_leaves_the_model_is_not_copied_and_a_snapshot_of_the_hub_is_read() {
    let tmp = tmp();
    let bundled = repo().join("models/tiny-shakespeare-moe");
    let model = snapshot(&bundled, tmp.path());
    let out = tmp.path().join("out");
    export(Some(&model), &out, "transformers", &["--allow-unquantized"]).good();
    assert_eq!(
        std::fs::read(out.join("tokenizer.json")).unwrap(),
        std::fs::read(bundled.join("tokenizer.json")).unwrap()
    );
    assert!(std::fs::symlink_metadata(out.join("tokenizer.json")).unwrap().is_file());

    let secret = tmp.path().join("secret");
    std::fs::write(&secret, "of somebody else").unwrap();
    for name in ["LICENSE", "generation_config.json"] {
        let at = model.join(name);
        let kept = std::fs::read_link(&at).ok();
        let _ = std::fs::remove_file(&at);
        if name == "generation_config.json" {
            std::fs::write(&secret, "{}").unwrap();
        }
        std::os::unix::fs::symlink("../../../secret", &at).unwrap();
        let again = tmp.path().join("again");
        let said = export(Some(&model), &again, "transformers", &["--allow-unquantized"]).refused(2, tmp.path());
        let place = format!("refused: `[tmp]/models--a--b/snapshots/0123/{name}`\n  why: it is a link that leaves");
        assert!(said.contains(&place) && said.contains("to `[tmp]/secret`"), "{said}");
        assert!(said.contains("\n  next: put a copy of the file in the place of the link"), "{said}");
        assert!(!again.exists());
        std::fs::remove_file(&at).unwrap();
        kept.into_iter().for_each(|to| std::os::unix::fs::symlink(to, &at).unwrap());
    }
    assert_eq!(names(tmp.path()), ["models--a--b", "out", "secret"]);
}
