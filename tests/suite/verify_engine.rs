//! `patchhost verify-engine`: plans, runs against a right server and a wrong one, and certificates.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::http_client::Server;
use crate::support::{patchhost, tmp};

fn plan(family: &str, cases: usize, folder: &Path) -> Value {
    let (cases, out) = (cases.to_string(), folder.to_str().unwrap());
    patchhost(["verify-engine", "plan", "--family", family, "--seed", "7", "--cases", &cases, "--out", out]).good();
    serde_json::from_str(&std::fs::read_to_string(folder.join("plan.json")).unwrap()).unwrap()
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    all
}

#[test]
fn a_seed_gives_one_plan() {
    let folder = tmp();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let first = plan("qwen3_moe", 80, &one);
    plan("qwen3_moe", 80, &two);
    let bytes = |folder: &Path| files(folder).into_values().collect::<Vec<_>>();
    assert_eq!(bytes(&one), bytes(&two));
    // A longer plan begins like a shorter one.
    let longer = plan("qwen3_moe", 200, &folder.path().join("longer"));
    assert_eq!(longer["cases"].as_array().unwrap()[..80], first["cases"].as_array().unwrap()[..]);
    let error = patchhost(["verify-engine", "plan", "--family", "qwen3", "--out", one.to_str().unwrap()]);
    assert!(error.refused(2, folder.path()).contains("it is not empty"));
}

#[test]
fn a_plan_has_every_kind_of_fault_of_every_kind_of_tensor() {
    let folder = tmp();
    for family in ["qwen3", "qwen3-tied", "llama", "llama-tied", "qwen3_moe", "qwen3_moe-tied", "mixtral"] {
        let plan = plan(family, 240, &folder.path().join(family));
        let cases = plan["cases"].as_array().unwrap();
        let hit = |case: &Value| (case["kind"].as_str().unwrap().to_owned(), case["class"].as_str().map(str::to_owned));
        let hits: BTreeSet<_> = cases.iter().map(hit).collect();
        let tensors = plan["checkpoints"][0]["tensors"].as_object().unwrap();
        let classes: BTreeSet<&str> = tensors.values().map(|t| t["class"].as_str().unwrap()).collect();
        assert_eq!(classes.contains("lm-head"), !family.ends_with("-tied"), "{family}");
        for kind in ["lost", "doubled", "truncated", "misshapen", "renamed", "non-finite", "interleaved"] {
            for class in &classes {
                assert!(hits.contains(&(kind.to_owned(), Some((*class).to_owned()))), "{family}: no {kind} {class}");
            }
        }
        let kinds: BTreeSet<&str> = hits.iter().map(|(kind, _)| kind.as_str()).collect();
        for kind in ["full", "twice", "stale-head", "out-of-order", "killed"] {
            assert!(kinds.contains(kind), "{family}: no {kind}");
        }
        let accepted = cases.iter().filter(|case| case["expect"] == "accept").count();
        assert!((cases.len() / 4..cases.len() / 2).contains(&accepted), "{family}: {accepted}");
        // What names a tensor names one of the checkpoint.
        for case in cases.iter().filter(|case| case["tensor"].is_string()) {
            assert!(tensors.contains_key(case["tensor"].as_str().unwrap()), "{case}");
        }
    }
}

/// A server on the first checkpoint of a plan.
fn serving(family: &str, folder: &Path) -> (Server, PathBuf) {
    plan(family, 1, folder);
    let base = folder.join("base");
    (Server::start(&[base.to_str().unwrap()]), base)
}

#[test]
fn patchhost_itself_gets_a_certificate_that_nobody_can_change() {
    let folder = tmp();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    patchhost(["keygen", "--out", &path("ci.key"), "--name", "ci"]).good();
    patchhost(["keygen", "--out", &path("other.key")]).good();
    let (server, base) = serving("qwen3_moe", &folder.path().join("plan"));
    let (base, cert) = (base.to_str().unwrap().to_owned(), path("cert.json"));
    let args =
        ["verify-engine", &server.url, "--model", &base, "--cases", "40", "--key", &path("ci.key"), "--out", &cert];
    let ran = patchhost(args).good();
    assert!(ran.stdout.contains("40 of 40 cases right"), "{}", ran.stdout);
    let bytes = std::fs::read(&cert).unwrap();
    let said: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!((&said["engine"]["name"], &said["verdict"]), (&json!("patchhost"), &json!("pass")));
    assert_eq!(said["totals"], json!({ "cases": 40, "right": 40, "wrong": 0 }));

    let good = patchhost(["verify", &cert]).good();
    assert!(good.stdout.contains("40 of 40 cases right") && good.stdout.contains("--signer"), "{}", good.stdout);
    let named = patchhost(["verify", &cert, "--signer", &path("ci.key.pub")]).good();
    assert!(named.stdout.contains("signed: ci, ed25519:"), "{}", named.stdout);
    patchhost(["verify", &cert, "--signer", &path("other.key.pub")]).refused(1, folder.path());

    // One byte anywhere: at the ends, and at places in between.
    let last = bytes.len() - 1;
    for at in [0, 1, 2, last].into_iter().chain((0..40).map(|n| n * 7919 % bytes.len())) {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        std::fs::write(path("changed.json"), changed).unwrap();
        patchhost(["verify", &path("changed.json")]).refused(1, folder.path());
    }
    for changed in [[&bytes[..], b" "].concat(), bytes[..last].to_vec()] {
        std::fs::write(path("changed.json"), changed).unwrap();
        patchhost(["verify", &path("changed.json")]).refused(1, folder.path());
    }

    // Another kit's results: what does not fit together is refused, the rest is sealed.
    let mut results = said;
    results.as_object_mut().unwrap().retain(|name, _| name != "seal" && name != "signatures");
    let seal = |change: &dyn Fn(&mut Value)| {
        let mut results = results.clone();
        change(&mut results);
        std::fs::write(path("results.json"), results.to_string()).unwrap();
        patchhost(["verify-engine", "seal", &path("results.json"), "-o", &path("sealed.json")])
    };
    seal(&|_| {}).good();
    let unsigned = patchhost(["verify", &path("sealed.json")]).good();
    assert!(unsigned.stdout.contains("not signed: anybody could have made it"), "{}", unsigned.stdout);
    patchhost(["verify", &path("sealed.json"), "--signer", &path("ci.key.pub")]).refused(1, folder.path());
    let text = seal(&|results| results["cases"][3]["right"] = json!(false)).refused(1, folder.path());
    assert!(text.contains("its totals are 40 cases, 40 right, 0 wrong; its cases are 40, 39 of them right"), "{text}");
    seal(&|results| results["verdict"] = json!("fail")).refused(1, folder.path());
    seal(&|results| results["cases"] = json!([])).refused(1, folder.path());
    seal(&|results| results["date"] = json!("yesterday")).refused(1, folder.path());
}

/// What a server that speaks like vLLM does with updates.
#[derive(Clone, Copy, PartialEq)]
enum Updates {
    /// It accepts each and throws it away.
    ThrownAway,
    /// A weight transfer engine of the name `patchhost` takes them.
    Transferred,
}

/// Speaks like vLLM in front of a real server: prompts are handed on to it.
fn like_vllm(server: &Server, root: &str, updates: Updates) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (behind, root) = (server.url.clone(), root.to_owned());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Whoever hangs up is not waited for.
            let _ = answer(stream, &behind, &root, updates);
        }
    });
    url
}

fn answer(stream: TcpStream, behind: &str, root: &str, updates: Updates) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) =
            line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        {
            length = value.trim().parse().unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let path = first.split(' ').nth(1).unwrap_or_default();
    let (status, answer) = match path.split('?').next().unwrap_or_default() {
        "/version" => (200, json!({ "version": "0.32.0" }).to_string()),
        "/v1/models" => (200, json!({ "data": [{ "id": "m", "root": root }] }).to_string()),
        "/collective_rpc" | "/reset_prefix_cache" => (200, json!({ "results": [null] }).to_string()),
        "/v1/completions" => {
            let mut asked: Value = serde_json::from_slice(&body)?;
            asked.as_object_mut().unwrap().remove("model");
            let mut got = ureq::post(format!("{behind}/v1/completions")).send_json(asked).unwrap();
            (200, got.body_mut().read_to_string().unwrap())
        }
        "/server_info" if updates == Updates::Transferred => {
            let model = json!({ "dtype": "torch.bfloat16", "quantization": null });
            let config = json!({ "weight_transfer_config": { "backend": "patchhost" }, "model_config": model });
            (200, json!({ "vllm_config": config }).to_string())
        }
        path if updates == Updates::Transferred => {
            let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
            let url = format!("{behind}{path}");
            let mut got = match first.starts_with("GET") {
                true => agent.get(url).call().unwrap(),
                false => agent.post(url).header("Content-Type", "application/json").send(&body).unwrap(),
            };
            let good = got.status().is_success();
            if !good && path == "/update_weights" {
                // As the plug-in has it: a part that is refused ends the update.
                agent.post(format!("{behind}/abort_weight_update")).send_empty().unwrap();
            }
            // vLLM answers 500 where a worker raised.
            let status = if good { 200 } else { 500 };
            (status, got.body_mut().with_config().limit(256 << 20).read_to_string().unwrap())
        }
        _ => (404, "{}".to_owned()),
    };
    let head = format!("HTTP/1.1 {status} OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", answer.len());
    reader.get_mut().write_all(format!("{head}{answer}").as_bytes())
}

#[test]
fn an_engine_that_accepts_everything_is_found_out() {
    let folder = tmp();
    let (server, base) = serving("llama", &folder.path().join("plan"));
    let url = like_vllm(&server, base.to_str().unwrap(), Updates::ThrownAway);
    let ran = patchhost(["verify-engine", &url, "--cases", "20", "--format", "json"]);
    assert_eq!(ran.code, 1, "{}\n{}", ran.stdout, ran.stderr);
    let said = ran.json();
    assert_eq!((&said["engine"]["name"], &said["verdict"]), (&json!("vllm"), &json!("fail")));
    for case in said["cases"].as_array().unwrap() {
        // It holds what it began with, whatever it says.
        let right = case["expected"] == "accept" && ["full", "twice"].contains(&case["kind"].as_str().unwrap());
        let of_base = case["id"].as_str().unwrap() <= "0002";
        assert_eq!(case["right"].as_bool().unwrap(), right && of_base, "{case}");
        assert_eq!((&case["answered"], &case["held"]), (&json!("accepted"), &json!("base")), "{case}");
    }
    assert!(ran.stderr.contains("it accepted a faulty update"), "{}", ran.stderr);
}

#[test]
fn weights_come_through_a_weight_transfer_engine_of_vllm() {
    let folder = tmp();
    let (server, base) = serving("qwen3-tied", &folder.path().join("plan"));
    let url = like_vllm(&server, base.to_str().unwrap(), Updates::Transferred);
    // So many that senders die, too.
    let ran = patchhost(["verify-engine", &url, "--cases", "100", "--format", "json"]).good();
    let said = ran.json();
    assert_eq!(said["engine"]["backend"], "weight transfer engine `patchhost`");
    assert_eq!(said["layers"]["held"], "torch.bfloat16, quantization none");
    assert!(said["cases"].as_array().unwrap().iter().any(|case| case["answered"] == "left-open"), "{said}");
}

#[test]
fn weights_come_from_folders_in_the_words_of_sglang() {
    let folder = tmp();
    let plan_folder = folder.path().join("plan");
    plan("mixtral", 1, &plan_folder);
    let (base, root) = (plan_folder.join("base"), std::env::temp_dir());
    let server = Server::start(&[base.to_str().unwrap(), "--root", root.to_str().unwrap()]);
    let args = ["verify-engine", &server.url, "--api", "sglang", "--model", base.to_str().unwrap(), "--cases", "100"];
    let said = patchhost(args.into_iter().chain(["--format", "json"])).good().json();
    assert_eq!((&said["engine"]["name"], &said["totals"]["right"]), (&json!("sglang"), &json!(100)));
}

#[test]
fn the_kit_starts_an_engine_itself() {
    let folder = tmp();
    let launch = format!("{} serve {{model}} --listen 127.0.0.1:{{port}}", crate::support::binary().display());
    let cert = folder.path().join("cert.json");
    let args = ["verify-engine", "--family", "qwen3-tied", "--launch", &launch, "--cases", "20"];
    let ran = patchhost(args.into_iter().chain(["--out", cert.to_str().unwrap()])).good();
    assert!(ran.stdout.contains("20 of 20 cases right"), "{}", ran.stdout);
    let ran = patchhost(["verify-engine", "--family", "qwen3", "--launch", "exit 3; {model} {port}"]);
    assert!(ran.refused(4, folder.path()).contains("it ended with"));
    let ran = patchhost(["verify-engine", "--family", "qwen3", "--launch", "serve {model}"]);
    assert!(ran.refused(2, folder.path()).contains("it has no {port}"));
}

#[test]
fn a_server_that_is_not_there_and_words_that_are_none() {
    let folder = tmp();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    patchhost(["verify-engine", &format!("http://{free}")]).refused(4, folder.path());
    patchhost(["verify-engine", "https://localhost:1"]).refused(2, folder.path());
    patchhost(["verify-engine", "tensorrt"]).refused(2, folder.path());
    patchhost(["verify-engine"]).refused(2, folder.path());
    patchhost(["verify-engine", "--launch", "{model} {port}"]).refused(2, folder.path());
    patchhost(["verify", folder.path().join("none.json").to_str().unwrap()]).refused(2, folder.path());
}

#[test]
fn the_kit_in_python_is_handed_its_arguments() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tmp();
    let python = folder.path().join("python");
    let handed = |script: &str| {
        std::fs::write(&python, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = std::process::Command::new(crate::support::binary());
        let args = ["verify-engine", "vllm", "--family", "qwen3", "--help", "--format", "json"];
        let out = command.args(args).env("PATCHHOST_PYTHON", &python).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
    };
    let (code, stdout, _) = handed("[ \"$1\" = -c ] && exit 0; echo \"$*\"; exit 1");
    assert_eq!((code, stdout.as_str()), (1, "-m patchhost.verify vllm --family qwen3 --help --format json\n"));
    let (code, stdout, stderr) = handed("exit 1");
    assert!(code == 2 && stderr.contains("has no module patchhost.verify"), "{stdout}{stderr}");
}
