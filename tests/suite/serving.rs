//! A `patchhost serve` of its own on a free port, for tests that speak to it.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::repo;

const TOKEN: &str = "a token of the tests, long enough";

pub struct Serving {
    child: Child,
    pub url: String,
}

pub fn guest(name: &str) -> Vec<u8> {
    std::fs::read(repo().join("guests").join(format!("{name}.wasm"))).unwrap()
}

impl Serving {
    /// Starts it with an admin token, and waits until it is ready.
    pub fn start(folder: &Path, args: &[&str]) -> Self {
        let token = folder.join("token");
        std::fs::write(&token, TOKEN).unwrap();
        #[cfg(unix)]
        std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_patchhost-under-test"))
            .args(["serve", "--listen", "127.0.0.1:0", "--format", "json", "--admin-token-file"])
            .arg(&token)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut errors = String::new();
            child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
            panic!("it did not start: {errors}");
        }
        let ready: Value = serde_json::from_str(&line).unwrap();
        let url = ready["listen"][0].as_str().unwrap_or_else(|| panic!("{ready}")).to_string();
        let server = Self { child, url };
        for _ in 0..600 {
            if ureq::get(format!("{}/readyz", server.url)).call().is_ok() {
                return server;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("it is never ready");
    }

    pub fn get(&self, path: &str) -> Value {
        ureq::get(format!("{}{path}", self.url)).call().unwrap().body_mut().read_json().unwrap()
    }

    pub fn admin(&self, method: &str, path: &str, body: Vec<u8>) -> Value {
        assert_eq!(method, "POST");
        let request = ureq::post(format!("{}{path}", self.url))
            .header("Authorization", format!("Bearer {TOKEN}"))
            .header("Content-Type", "application/wasm");
        request.send(&body[..]).unwrap().body_mut().read_json().unwrap()
    }

    pub fn admin_json(&self, path: &str, body: Value) -> Value {
        let request = ureq::post(format!("{}{path}", self.url)).header("Authorization", format!("Bearer {TOKEN}"));
        request.send_json(body).unwrap().body_mut().read_json().unwrap()
    }

    /// One rollback on a server that may be gone at any moment; none where it is.
    pub fn rollback_at(url: &str) -> Option<()> {
        let request = ureq::post(format!("{url}/admin/v1/rollback")).header("Authorization", format!("Bearer {TOKEN}"));
        let answer = request.send_json(serde_json::json!({ "when": "now", "reason": "crash" }));
        answer.ok().map(|_| ())
    }

    /// Resident bytes.
    pub fn resident(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    pub fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.child.id())).map_or(0, Iterator::count)
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and a good end.
    pub fn stop(mut self) {
        Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
