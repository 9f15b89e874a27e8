//! WASI by grant: nothing without one, nothing behind `inert`, and of the host's files a granted folder and nothing else.
//! The guest tries what its settings say, and tells what came of it as its answer to `configure`.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use patchhost::audit::AuditOptions;
use patchhost::base::{Dir, DirMode, Wasi};
use patchhost::patch::{Candidate, Grants, Limits, Patch, Sandbox, StageError, Verification};

use crate::support::{evil, tmp};

static SANDBOX: LazyLock<Sandbox> = LazyLock::new(|| Sandbox::new(2).unwrap());

fn start(grants: Grants, limits: Limits, settings: &[(&str, &str)]) -> Result<Arc<Patch>, StageError> {
    let candidate = Candidate::from_file(evil("any_wasi").as_ref()).unwrap();
    let options = AuditOptions { grants, ..AuditOptions::default() };
    let settings: Vec<_> = settings.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let audited = candidate.verify(&Verification::Unpinned)?.audit_with(&options)?;
    audited.compile(&SANDBOX)?.ready(&settings, limits)
}

/// What the guest says of what it tried.
#[track_caller]
fn said(grants: &Grants, settings: &[(&str, &str)]) -> String {
    match start(grants.clone(), Limits::default(), settings) {
        Err(StageError::Start { why, .. }) => why,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it said nothing"),
    }
}

fn folder(host: &Path, mode: DirMode) -> Grants {
    let dirs = vec![Dir { host: host.to_path_buf(), guest: "/d".into(), mode }];
    Grants { wasi: Some(Wasi { dirs, ..Wasi::default() }) }
}

#[test]
fn without_a_grant_it_is_refused_before_it_is_compiled() {
    let error = start(Grants::default(), Limits::default(), &[]).unwrap_err();
    let StageError::Audit { report, .. } = &error else { panic!("{error}") };
    for id in ["PH102", "PH104", "PH105"] {
        assert!(report.findings.iter().any(|finding| finding.id == id), "{id}: {error}");
    }
}

#[test]
fn inert_is_enough_to_run_and_shows_nothing_of_the_host() {
    let patch = start(Grants::inert(), Limits::default(), &[]).unwrap();
    let quant = patch.block_quant().unwrap();
    let b = patchhost_runtime::hooks::Blocks {
        tensor: "w",
        rows: 128,
        cols: 256,
        block_rows: 128,
        block_cols: 128,
        first_block: 0,
    };
    assert_eq!(quant.scales(&b, &[448.0, 896.0]).unwrap(), [1.0, 2.0]);
    let inert = Grants::inert();
    assert!(said(&inert, &[("dirs", "")]).contains("dirs: "), "{}", said(&inert, &[("dirs", "")]));
    assert!(said(&inert, &[("read", "/etc/passwd")]).contains("no folder"));
    assert!(said(&inert, &[("env", "PATH")]).contains("env: unset of 0"));
    assert!(said(&inert, &[("args", "")]).ends_with("args: "));
    assert!(said(&inert, &[("clock", "")]).contains("clock: 0 0"));
    let random = || said(&inert, &[("random", "")]);
    assert_eq!(random(), random(), "the same on every rank");
}

#[test]
fn what_is_granted_by_name_is_there() {
    let wasi = |wasi: Wasi| Grants { wasi: Some(wasi) };
    let env = wasi(Wasi { env: vec!["CARGO_PKG_NAME".into()], ..Wasi::default() });
    assert!(said(&env, &[("env", "CARGO_PKG_NAME")]).contains("env: patchhost-tests of 1"));
    assert!(said(&env, &[("env", "PATH")]).contains("env: unset of 1"));
    let clocks = wasi(Wasi { clocks: true, ..Wasi::default() });
    assert!(!said(&clocks, &[("clock", "")]).contains("clock: 0 "));
    let random = wasi(Wasi { random: true, ..Wasi::default() });
    assert_ne!(said(&random, &[("random", "")]), said(&random, &[("random", "")]));
}

#[test]
fn grants_are_a_part_of_the_identity() {
    let generation = |grants| start(grants, Limits::default(), &[]).unwrap().generation();
    let tmp = tmp();
    let all = [Grants::inert(), folder(tmp.path(), DirMode::Ro), folder(tmp.path(), DirMode::Rw)].map(generation);
    assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2]);
}

/// A granted folder with a file, and beside it what must stay unseen: a secret file, and links to it.
fn house(root: &Path) -> Grants {
    std::fs::create_dir_all(root.join("granted/sub")).unwrap();
    std::fs::create_dir(root.join("outside")).unwrap();
    std::fs::write(root.join("granted/file"), "hello").unwrap();
    std::fs::write(root.join("granted/sub/file"), "below").unwrap();
    std::fs::write(root.join("outside/secret"), "SECRET").unwrap();
    let link = |to: &Path, at: &str| std::os::unix::fs::symlink(to, root.join("granted").join(at)).unwrap();
    link(&root.join("outside/secret"), "absolute_link");
    link(Path::new("../outside/secret"), "relative_link");
    link(&root.join("outside"), "folder_link");
    link(Path::new("file"), "good_link");
    folder(&root.join("granted"), DirMode::Ro)
}

#[test]
fn a_granted_folder_and_nothing_else() {
    let tmp = tmp();
    let grants = house(tmp.path());
    assert!(said(&grants, &[("dirs", "")]).contains("dirs: /d"));
    assert!(said(&grants, &[("read", "/d/file")]).contains("read: hello"));
    assert!(said(&grants, &[("read", "/d/sub/file")]).contains("read: below"));
    assert!(said(&grants, &[("read", "/d/good_link")]).contains("read: hello"));
    let secret = tmp.path().join("outside/secret").display().to_string();
    let ways = [
        "/d/../outside/secret",
        "../outside/secret",
        "/d/sub/../../outside/secret",
        "/d/absolute_link",
        "/d/relative_link",
        "/d/folder_link/secret",
        "/d//../outside/secret",
        "/d/./.././outside/secret",
        "/etc/hostname",
        "/d/\0",
        "/d//etc/hostname",
        "/d/proc/self/root/etc/hostname",
        secret.as_str(),
    ];
    for way in ways {
        let said = said(&grants, &[("read", way)]);
        assert!(said.contains("read: failed: ErrorCode"), "{way}: {said}");
    }
    for way in ["/d/..", "/d/folder_link", "..", "/"] {
        let said = said(&grants, &[("list", way)]);
        assert!(said.contains("list: failed: ErrorCode"), "{way}: {said}");
    }
}

#[test]
fn read_only_is_read_only() {
    let tmp = tmp();
    let grants = house(tmp.path());
    for (what, value) in [
        ("write", "/d/new"),
        ("write", "/d/file"),
        ("mkdir", "/d/new"),
        ("unlink", "/d/file"),
        ("symlink", "file /d/l"),
    ] {
        let said = said(&grants, &[(what, value)]);
        assert!(said.contains(&format!("{what}: failed: ErrorCode")), "{said}");
    }
    assert_eq!(std::fs::read_to_string(tmp.path().join("granted/file")).unwrap(), "hello");
    let rw = folder(&tmp.path().join("granted"), DirMode::Rw);
    assert!(said(&rw, &[("write", "/d/new")]).contains("write: 18 bytes"));
    assert_eq!(std::fs::read_to_string(tmp.path().join("granted/new")).unwrap(), "written by a guest");
    for way in ["/d/../outside/new", "/d/folder_link/new", "/d/absolute_link"] {
        assert!(said(&rw, &[("write", way)]).contains("write: failed"), "{way}");
    }
    // A link that leads out can neither be made nor be followed.
    let outside = format!("{} /d/way_out", tmp.path().join("outside").display());
    assert!(said(&rw, &[("symlink", &outside), ("read", "/d/way_out/secret")]).contains("read: failed"));
    assert_eq!(std::fs::read_to_string(tmp.path().join("outside/secret")).unwrap(), "SECRET");
    assert_eq!(std::fs::read_dir(tmp.path().join("outside")).unwrap().count(), 1);
}

/// Somebody exchanges a folder and a link that leads out, over and over, while the guest reads through it.
#[test]
fn a_race_of_links_does_not_lead_out() {
    let tmp = tmp();
    let grants = house(tmp.path());
    let granted = tmp.path().join("granted");
    std::fs::create_dir(granted.join("real")).unwrap();
    std::fs::write(granted.join("real/secret"), "inside").unwrap();
    std::os::unix::fs::symlink(tmp.path().join("outside"), granted.join("fake")).unwrap();
    let stop = AtomicBool::new(false);
    let (mut inside, mut failed) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for name in ["real", "fake"] {
                    std::fs::rename(granted.join(name), granted.join("x")).unwrap();
                    std::fs::rename(granted.join("x"), granted.join(name)).unwrap();
                }
            }
        });
        let reads = [("read", "/d/x/secret"); 60];
        for _ in 0..40 {
            let said = said(&grants, &reads);
            assert!(!said.contains("SECRET"), "{said}");
            inside += said.matches("read: inside").count();
            failed += said.matches("read: failed").count();
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{inside} reads inside, {failed} refused");
    assert!(failed > 0, "the race was never met");
}

#[test]
fn waiting_collecting_and_leaving_have_an_end() {
    let short = Limits { wall_decide_ms: 300, ..Limits::default() };
    let sleep = start(Grants::inert(), short, &[("sleep", "3600000000000")]).unwrap_err().to_string();
    assert!(sleep.contains("waited in `wasi:io/poll`") && sleep.contains("300 ms"), "{sleep}");
    let handles = start(Grants::inert(), Limits::default(), &[("handles", "")]).unwrap_err().to_string();
    assert!(handles.contains("resource table"), "{handles}");
    let exit = said(&Grants::inert(), &[("exit", "")]);
    assert!(exit.contains("wasi:cli/exit"), "{exit}");
    start(Grants::inert(), Limits::default(), &[("print", "1000"), ("quiet", "1")]).unwrap();
}

#[test]
fn a_folder_that_is_not_there_is_an_error_with_a_name() {
    let error = start(folder(Path::new("/no/such/folder"), DirMode::Ro), Limits::default(), &[]).unwrap_err();
    assert!(error.to_string().contains("/no/such/folder"), "{error}");
}
