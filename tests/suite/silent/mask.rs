//! A mask must leave something to sample, at every door.

use crate::hostile::wat;
use crate::http_client::Server;
use crate::support::{patchhost, tmp};

/// Masks these ranges.
fn mask(ranges: &[(u32, u32)]) -> Vec<u8> {
    let bytes: String =
        ranges.iter().flat_map(|(a, b)| [a, b]).flat_map(|n| n.to_le_bytes()).map(|b| format!("\\{b:02x}")).collect();
    let fields = format!(
        r#"(data $ranges (i32.const 4096) "{bytes}")
(func $masked (param i32 i32 i32 i32 i32 i32 i32 i32) (param $rows i32) (param $vocabulary i32) (result i32)
  (i32.store (i32.const 600) (i32.const 0))
  (i32.store (i32.const 604) (i32.const 4096))
  (i32.store (i32.const 608) (i32.const {}))
  (i32.const 600))"#,
        ranges.len()
    );
    wat::component("mask-patch", &fields)
}

#[test]
fn a_mask_that_leaves_nothing_is_refused_and_one_that_leaves_one_is_remarked() {
    let tmp = tmp();
    let ids = patchhost::checkpoint::bundled::tokenizer().unwrap().vocabulary() as u32;
    let guest = tmp.path().join("mask.wasm");
    let path = guest.display().to_string();
    let run = |ranges: &[(u32, u32)]| {
        std::fs::write(&guest, mask(ranges)).unwrap();
        patchhost(["run", "--component", &path, "--prompt", "KING", "--max-tokens", "2"])
    };
    // (That rows which are no ids do not count is a test of the runtime.)
    for none in [&[(0, ids)][..], &[(0, 1), (1, ids)]] {
        let text = run(none).refused(3, tmp.path());
        assert!(text.contains("nothing could be sampled"), "{text}");
    }
    let error = Server::try_start(&["--component", &path]).err().unwrap_or_else(|| panic!("it serves"));
    assert!(error.contains("nothing could be sampled"), "{error}");
    let one = run(&[(0, 7), (8, ids)]).good();
    assert!(one.stdout.contains(&format!("leaves one token id of {ids}")), "{}", one.stdout);
    let some = run(&[(0, 7)]).good();
    assert!(!some.stdout.contains("remark: "), "{}", some.stdout);
}
