use super::*;
use crate::sandbox::Sandbox;
use std::os::unix::fs::PermissionsExt;

const WAT: &str = r#"(component
    (core module $m (func (export "f") (result i32) i32.const 42))
    (core instance $i (instantiate $m))
    (func (export "f") (result u32) (canon lift (core func $i "f"))))"#;

fn sandbox(folder: &Path) -> Sandbox {
    let cache = Cache::open(folder).expect("a cache");
    Sandbox::new(1).expect("an engine").with_cache(Some(cache))
}

/// Gets the component and asks it; gives hits and misses so far.
fn ask(sandbox: &Sandbox) -> (u64, u64) {
    let bytes = wat::parse_str(WAT).expect("valid text");
    let digest: [u8; 32] = <Sha256 as sha2::Digest>::digest(&bytes).into();
    let component = sandbox.component(&bytes, &digest, true).expect("compiled");
    let mut store = wasmtime::Store::new(sandbox.engine(), ());
    store.set_fuel(1_000).expect("fuel");
    store.set_epoch_deadline(1_000);
    let linker = wasmtime::component::Linker::new(sandbox.engine());
    let instance = linker.instantiate(&mut store, &component).expect("an instance");
    let f = instance.get_typed_func::<(), (u32,)>(&mut store, "f").expect("f");
    assert_eq!(f.call(&mut store, ()).expect("an answer"), (42,));
    let stats = sandbox.cache().expect("a cache").stats();
    (stats.hits, stats.misses)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    all.filter(|path| path.extension().is_some_and(|e| e == EXTENSION)).collect()
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a mode");
}

#[test]
fn a_hit_answers_as_the_compiled_one_does() {
    let tmp = tempfile::tempdir().expect("a folder");
    let folder = tmp.path().join("new").join("aot");
    let first = sandbox(&folder);
    assert_eq!((ask(&first), ask(&first)), ((0, 1), (1, 1)));
    // Another engine, as another process would have it.
    assert_eq!(ask(&sandbox(&folder)), (1, 0));
    let mode_of = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode_of(&folder), mode_of(&folder.join("key"))), (0o700, 0o600));
    assert_eq!(entries(&folder).iter().map(|path| mode_of(path)).collect::<Vec<_>>(), [0o600]);
}

#[test]
fn any_flipped_bit_is_a_miss() {
    let tmp = tempfile::tempdir().expect("a folder");
    let folder = tmp.path().join("aot");
    ask(&sandbox(&folder));
    let path = entries(&folder).pop().expect("an entry");
    let good = std::fs::read(&path).expect("readable");
    let cache = Cache::open(&folder).expect("a cache");
    let engine = Sandbox::new(1).expect("an engine");
    let bytes = wat::parse_str(WAT).expect("valid text");
    let key = Key::new(engine.engine(), &<Sha256 as sha2::Digest>::digest(&bytes).into());
    assert_eq!(path.file_stem().and_then(|stem| stem.to_str()), Some(key.name().as_str()));
    assert!(cache.authentic(&key, &good).is_some());
    // Every byte of the head, and one in each 64 of the code, without loading any of them.
    let head = MAGIC.len() + TAG_BYTES;
    for at in (0..head).chain((head..good.len()).step_by(64)).chain([good.len() - 1]) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(cache.authentic(&key, &bad).is_none(), "byte {at}");
    }
    for length in [0, 1, MAGIC.len(), head - 1, head, good.len() / 2, good.len() - 1] {
        assert!(cache.authentic(&key, &good[..length]).is_none(), "{length} bytes");
    }
    assert!(cache.authentic(&key, &[&good[..], b"x"].concat()).is_none(), "a longer one");
    // An entry under another key (another component, build, engine or CPU) is not taken for this one.
    let other = Key::new(engine.engine(), &[7; 32]);
    assert!(cache.authentic(&other, &good).is_none());
    // And the whole way: the component is compiled again, answers, and the entry is whole again.
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    std::fs::write(&path, &bad).expect("written");
    assert_eq!(ask(&sandbox(&folder)), (0, 1));
    assert_eq!(ask(&sandbox(&folder)), (1, 0));
}

#[test]
fn another_secret_is_a_miss() {
    let tmp = tempfile::tempdir().expect("a folder");
    let (here, there) = (tmp.path().join("here"), tmp.path().join("there"));
    ask(&sandbox(&here));
    let other = sandbox(&there);
    let entry = entries(&here).pop().expect("an entry");
    std::fs::copy(&entry, there.join(entry.file_name().expect("a name"))).expect("copied");
    assert_eq!(ask(&other), (0, 1));
}

#[test]
fn wrong_modes_and_links_are_misses() {
    let tmp = tempfile::tempdir().expect("a folder");
    let folder = tmp.path().join("aot");
    let one = sandbox(&folder);
    assert_eq!(ask(&one), (0, 1));
    let path = entries(&folder).pop().expect("an entry");
    for wrong in [0o640, 0o604, 0o666] {
        mode(&path, wrong);
        let before = one.cache().expect("a cache").stats().misses;
        assert_eq!(ask(&one).1, before + 1, "{wrong:o}");
    }
    // Written anew by the miss, with the right mode.
    let hits = one.cache().expect("a cache").stats().hits;
    assert_eq!(ask(&one).0, hits + 1);
    let aside = tmp.path().join("aside");
    std::fs::rename(&path, &aside).expect("moved");
    std::os::unix::fs::symlink(&aside, &path).expect("linked");
    let misses = one.cache().expect("a cache").stats().misses;
    assert_eq!(ask(&one).1, misses + 1, "a link");
    mode(&folder, 0o755);
    assert_eq!(ask(&one).1, misses + 2, "the folder is open to others");
    assert!(Cache::open(&folder).is_none());
    mode(&folder, 0o700);
    mode(&folder.join("key"), 0o644);
    assert!(Cache::open(&folder).is_none(), "the secret is no secret");
    mode(&folder.join("key"), 0o600);
    std::fs::write(folder.join("key"), b"short").expect("written");
    assert!(Cache::open(&folder).is_none(), "the secret is cut off");
    let link = tmp.path().join("link");
    std::os::unix::fs::symlink(&folder, &link).expect("linked");
    assert!(Cache::open(&link).is_none(), "a link to a folder");
}

#[test]
fn the_oldest_goes_when_there_is_too_much() {
    let tmp = tempfile::tempdir().expect("a folder");
    let folder = tmp.path().join("aot");
    let old = Cache::open(&folder).map(|_| folder.join(format!("{}.{EXTENSION}", "0".repeat(64)))).expect("a cache");
    std::fs::write(&old, vec![0; 1 << 20]).expect("written");
    let long_ago = SystemTime::now() - std::time::Duration::from_secs(86_400);
    File::options().append(true).open(&old).and_then(|file| file.set_modified(long_ago)).expect("an old file");
    let small = Cache::with_total(&folder, 1 << 20).expect("a cache");
    let sandbox = Sandbox::new(1).expect("an engine").with_cache(Some(small));
    assert_eq!(ask(&sandbox), (0, 1));
    assert!(!old.exists() && entries(&folder).len() == 1);
    assert_eq!(ask(&sandbox), (1, 1));
}

/// Prints what compiling and reading back cost: `cargo test --release … -- cold_and_warm --nocapture`.
#[test]
fn cold_and_warm_give_the_same_component() {
    let bytes: &[u8] = include_bytes!("../../../../../guests/fp8_block.wasm");
    let digest: [u8; 32] = <Sha256 as sha2::Digest>::digest(bytes).into();
    let tmp = tempfile::tempdir().expect("a folder");
    let sandbox = sandbox(&tmp.path().join("aot"));
    let timed = || {
        let started = std::time::Instant::now();
        let component = sandbox.component(bytes, &digest, true).expect("compiled");
        (started.elapsed(), component)
    };
    let (cold, compiled) = timed();
    let mut warm: Vec<_> = (0..9).map(|_| timed().0).collect();
    warm.sort();
    println!(
        "fp8_block: {} bytes of code, cold {cold:?}, warm {:?}",
        compiled.serialize().expect("bytes").len(),
        warm[4]
    );
    assert_eq!(timed().1.serialize().expect("bytes"), compiled.serialize().expect("bytes"));
    assert_eq!(sandbox.cache().expect("a cache").stats(), CacheStats { hits: 10, misses: 1, stored: 1 });
}
