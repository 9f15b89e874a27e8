//! Paths that are no plain files: pipes that nobody writes into, devices without an end, files of 20 GiB without a byte.
//! Each is refused at once, by name, wherever the program reads a file.

use std::path::Path;
use std::process::Command;

use super::child::{Ended, run};
use crate::support::{copy_folder, data, repo, tmp};

/// What stands in the place of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Odd {
    Pipe,
    Device,
    Sparse,
    Folder,
    Socket,
}

const ALL: [Odd; 5] = [Odd::Pipe, Odd::Device, Odd::Sparse, Odd::Folder, Odd::Socket];

impl Odd {
    /// Puts it there, devices by a link.
    fn put(self, path: &Path) {
        let _ = std::fs::remove_file(path);
        match self {
            Self::Pipe => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
            Self::Device => std::os::unix::fs::symlink("/dev/zero", path).unwrap(),
            Self::Sparse => std::fs::File::create(path).unwrap().set_len(20 << 30).unwrap(),
            Self::Folder => std::fs::create_dir(path).unwrap(),
            Self::Socket => drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        }
    }

    fn remove(self, path: &Path) {
        match self {
            Self::Folder => std::fs::remove_dir(path).unwrap(),
            _ => std::fs::remove_file(path).unwrap(),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Pipe => "a pipe",
            Self::Device => "a device",
            Self::Sparse => "21474836480 bytes",
            Self::Folder => "a folder",
            Self::Socket => "a socket",
        }
    }
}

/// `run`, which panics if it must end a program that waits, with what was refused.
#[track_caller]
fn refused(what: &str, args: &[&str], name: &str, words: &str) -> Ended {
    let ended = run(what, args.iter().copied());
    assert!((1..=2).contains(&ended.ran.code), "{what}: exit {}: {}", ended.ran.code, ended.ran.stdout);
    let said = ended.ran.refused(ended.ran.code, Path::new("/nowhere"));
    assert!(said.contains(name) && said.contains(words), "{what}: no `{name}` or `{words}` in {said}");
    assert!(ended.peak_kib < 256 << 10, "{what}: {} KiB", ended.peak_kib);
    ended
}

#[test]
fn files_of_a_model() {
    let tmp = tmp();
    let model = copy_folder(&repo().join("models/tiny-shakespeare-moe"), &tmp.path().join("m"));
    let folder = model.to_str().unwrap();
    let run_it = ["run", folder, "--max-tokens", "2", "--no-kl", "--prompt", "KING"];
    for name in
        ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
    {
        let path = model.join(name);
        let bytes = std::fs::read(&path).ok();
        for odd in ALL {
            odd.put(&path);
            refused(&format!("{name}: {odd:?}"), &run_it, name, odd.word());
            odd.remove(&path);
        }
        std::os::unix::fs::symlink("/no/such/file", &path).unwrap();
        refused(&format!("{name}: a link to nowhere"), &run_it, name, "No such file");
        std::fs::remove_file(&path).unwrap();
        // Links to files are good: the cache of the Hugging Face hub is made of them.
        if let Some(bytes) = bytes {
            let blob = tmp.path().join(format!("{name}.blob"));
            std::fs::write(&blob, bytes).unwrap();
            std::os::unix::fs::symlink(&blob, &path).unwrap();
        }
    }
    run("links", run_it).ran.good();
    for odd in [Odd::Pipe, Odd::Device, Odd::Socket] {
        let weights = model.join("model.safetensors");
        let index = model.join("model.safetensors.index.json");
        for path in [&weights, &index] {
            let kept = std::fs::read(path).ok();
            odd.put(path);
            let name = path.file_name().unwrap().to_str().unwrap();
            refused(&format!("{name}: {odd:?}"), &run_it, name, odd.word());
            odd.remove(path);
            kept.into_iter().for_each(|bytes| std::fs::write(path, bytes).unwrap());
        }
    }
}

#[test]
fn files_of_an_adapter() {
    let tmp = tmp();
    let model = copy_folder(&data("oracle").join("llama"), &tmp.path().join("llama"));
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(repo().join("models/tiny-shakespeare-moe").join(name), model.join(name)).unwrap();
    }
    let adapter = copy_folder(&data("lora").join("llama"), &tmp.path().join("adapter"));
    let args = ["run", model.to_str().unwrap(), "--max-tokens", "1", "--no-kl", "--lora", adapter.to_str().unwrap()];
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let path = adapter.join(name);
        let bytes = std::fs::read(&path).unwrap();
        for odd in ALL {
            odd.put(&path);
            let word = if name.ends_with(".safetensors") && odd == Odd::Sparse { "why" } else { odd.word() };
            let word = if name.ends_with(".safetensors") && odd == Odd::Folder { "why" } else { word };
            refused(&format!("{name}: {odd:?}"), &args, name, word);
            odd.remove(&path);
        }
        std::fs::write(&path, bytes).unwrap();
    }
}

#[test]
fn files_that_arguments_name() {
    let tmp = tmp();
    let odd_file = tmp.path().join("odd");
    let odd_name = odd_file.to_str().unwrap();
    let other = tmp.path().join("other");
    let other = other.to_str().unwrap();
    for odd in ALL {
        odd.put(&odd_file);
        for args in [
            vec!["run", "--max-tokens", "1", "--no-kl", "--prompts", odd_name],
            vec!["run", "--max-tokens", "1", "--no-kl", "--component", odd_name],
            vec!["run", "--max-tokens", "1", "--no-kl", "--policy", odd_name],
            vec!["run", "--max-tokens", "1", "--no-kl", "--lock", odd_name],
            vec!["train", "--steps", "1", "--prompts", odd_name],
            vec!["compare", "fp8_block", "--against", "bf16", "--prompts", odd_name],
            vec!["logits", "--ids", odd_name, "--out", other],
            vec!["quantize", odd_name, other, "--component", "fp8_block"],
            vec!["refit", "--from", other, "--manifest", odd_name],
            vec!["audit", odd_name],
            vec!["audit", "fp8_block", "--diff", odd_name],
            vec!["replay", odd_name],
            vec!["lock", odd_name, "--lock", other],
            vec!["sign", odd_name, "--key", odd_name],
            vec!["verify", odd_name],
            vec!["log", "show", odd_name],
            vec!["log", "verify", odd_name],
            vec!["status", "--server", "http://127.0.0.1:9", "--admin-token-file", odd_name],
            vec!["serve", "--listen", "127.0.0.1:0", "--chat-template", odd_name],
            vec!["serve", "--listen", "127.0.0.1:0", "--admin-token-file", odd_name],
            vec!["serve", "--listen", "127.0.0.1:0", "--ledger", odd_name],
        ] {
            // A ledger has no bound, and what is no line of one is passed over.
            if odd == Odd::Sparse && args.iter().any(|arg| ["log", "--ledger"].contains(arg)) {
                continue;
            }
            let what = format!("{odd:?}: {args:?}");
            let ended = run(&what, args.iter().copied());
            assert!((1..=4).contains(&ended.ran.code), "{what}: exit {}: {}", ended.ran.code, ended.ran.stdout);
            assert!(!ended.ran.stderr.contains("panicked"), "{what}: {}", ended.ran.stderr);
            assert!(ended.peak_kib < 256 << 10, "{what}: {} KiB", ended.peak_kib);
            // Of the arguments themselves clap says so, in its own words.
            let unknown = ended.ran.stderr.contains("Usage:");
            assert!(!unknown, "{what}: the arguments are wrong: {}", ended.ran.stderr);
            ended.ran.refused(ended.ran.code, tmp.path());
        }
        odd.remove(&odd_file);
    }
}

/// What cannot be printed is said with exit code 4, by every verb that prints.
#[test]
fn a_full_disk_under_the_output() {
    let tmp = tmp();
    let ledger = tmp.path().join("ledger.jsonl");
    let ledger = ledger.to_str().unwrap();
    {
        use patchhost::patch::{Actor, Ledger, LedgerOptions};
        let (written, _) = Ledger::open(Path::new(ledger), LedgerOptions::default()).unwrap();
        written.append("test.event", &Actor::new("test"), serde_json::Map::new()).unwrap();
    }
    let ids = crate::support::ids_file(tmp.path(), &[1, 2, 3]);
    let out = tmp.path().join("out.safetensors");
    let (ids, out) = (ids.to_str().unwrap(), out.to_str().unwrap());
    for args in [
        vec!["run", "--max-tokens", "1", "--no-kl"],
        vec!["audit", "fp8_block"],
        vec!["audit", "--explain", "PH201"],
        vec!["explain"],
        vec!["compare", "fp8_block", "--against", "bf16", "--tensors-only"],
        vec!["log", "show", ledger],
        vec!["patches"],
        vec!["log", "verify", ledger],
        vec!["logits", "--ids", ids, "--out", out],
        vec!["help"],
        vec!["--help"],
        vec!["run", "--help"],
        vec!["--version"],
    ] {
        for json in [false, true] {
            let mut command = Command::new(crate::support::binary());
            command.args(&args).env("PATCHHOST_CACHE", "off");
            if json && !args.iter().any(|a| a.contains("help") || a.contains("version")) {
                command.args(["--format", "json"]);
            }
            let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
            let ended = command.stdout(full).output().unwrap();
            let said = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(ended.status.code(), Some(4), "{args:?}: {said}");
            assert!(!said.contains("panicked"), "{args:?}: {said}");
            assert!(said.contains("standard output") && said.contains("\n  why: "), "{args:?}: {said}");
        }
    }
}

/// Files below their bound that become much more than they are.
#[test]
fn files_of_many_small_values() {
    let tmp = tmp();
    let model = copy_folder(&repo().join("models/tiny-shakespeare-moe"), &tmp.path().join("m"));
    let run_it = ["run", model.to_str().unwrap(), "--max-tokens", "2", "--no-kl", "--prompt", "KING"];
    let objects = |bytes: usize| format!("[{}{{}}]", "{\"\":0},".repeat(bytes / 7));
    let index = format!("{{\"weight_map\":{{{}\"z\":\"f\"}}}}", "\"a\":\"f\",".repeat(4 << 20));
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    let config = config.replacen('{', &format!("{{\"text_config\":{{\"x\":{}}},", objects(1_000_000)), 1);
    let header = format!("{{\"__metadata__\":{{{}\"z\":\"\"}}}}", "\"a\":\"\",".repeat(6 << 20));
    let header = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    for (name, bytes) in [
        ("config.json", config.into_bytes()),
        ("tokenizer_config.json", format!("{{\"x\":{}}}", objects(2_000_000)).into_bytes()),
        ("generation_config.json", format!("{{\"x\":{}}}", objects(1_000_000)).into_bytes()),
        ("model.safetensors.index.json", index.into_bytes()),
        ("model.safetensors", header),
    ] {
        let path = model.join(name);
        let kept = std::fs::read(&path).ok();
        std::fs::write(&path, &bytes).unwrap();
        let ended = run(name, run_it);
        let most = (256 << 10) + (bytes.len() as u64 >> 10);
        assert!(ended.peak_kib < most, "{name}: {} KiB, at most {most} are allowed", ended.peak_kib);
        assert!((0..=2).contains(&ended.ran.code), "{name}: {}", ended.ran.stderr);
        if ended.ran.code != 0 {
            assert!(ended.ran.refused(ended.ran.code, tmp.path()).contains(name), "{name}: {}", ended.ran.stderr);
        }
        match kept {
            Some(kept) => std::fs::write(&path, kept).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
    }
}
