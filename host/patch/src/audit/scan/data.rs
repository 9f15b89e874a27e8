//! Data segments: what can be read in them, and what is worth a look.

use crate::audit::facts::{DataFacts, Mark, MarkKind};
use crate::base::{Digest, text};

/// Shortest run of printable characters that counts as text.
const RUN: usize = 8;
/// Bytes of a window whose entropy is taken.
const WINDOW: usize = 4096;
/// Strings and marks that are kept of one segment.
const KEPT: usize = 16;

/// First bytes of other kinds of files.
const MAGIC: [(&[u8], &str); 7] = [
    (b"\x7fELF", "an ELF file"),
    (b"\0asm", "a WebAssembly file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b\x08", "gzip data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"#!/bin/", "a script"),
    (b"\xfe\xed\xfa\xcf", "a Mach-O file"),
];

/// Beginnings of keys and tokens, and how long the whole must be.
const SECRETS: [(&str, usize, &str); 11] = [
    ("-----BEGIN PRIVATE KEY", 22, "a private key"),
    ("-----BEGIN RSA PRIVATE KEY", 26, "a private key"),
    ("-----BEGIN OPENSSH PRIVATE KEY", 30, "a private key"),
    ("AKIA", 20, "an AWS key id"),
    ("ghp_", 30, "a GitHub token"),
    ("github_pat_", 30, "a GitHub token"),
    ("glpat-", 20, "a GitLab token"),
    ("xoxb-", 20, "a Slack token"),
    ("sk-ant-", 20, "an API key"),
    ("sk-proj-", 20, "an API key"),
    ("hf_", 34, "a Hugging Face token"),
];

/// Beginnings of paths of the machine that something was built on. `/rustc/` is not: that is what paths are mapped to.
const BUILD_PATHS: [&str; 8] =
    ["/home/", "/Users/", "/root/", "C:\\Users\\", "/.cargo/registry/", "/tmp/", "/build/", "/workspace/"];

/// Looks at one segment. `offset` is where its bytes begin in the file.
pub(super) fn segment(data: &[u8], offset: usize, address: Option<u64>) -> DataFacts {
    let mut facts = DataFacts { offset, size: data.len(), address, ..DataFacts::default() };
    facts.entropy = densest(data);
    for (magic, what) in MAGIC {
        let found = data.windows(magic.len()).position(|window| window == magic);
        if let Some(at) = found {
            mark(&mut facts, MarkKind::Binary, what, offset + at);
        }
    }
    let printable = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
    let mut at = 0;
    while at < data.len() {
        let run = data[at..].iter().take_while(|byte| printable(byte)).count();
        if run >= RUN {
            facts.strings += 1;
            string(&mut facts, &data[at..at + run], offset + at);
        }
        at += run.max(1);
    }
    facts
}

/// A table that Rust programs carry to read and print floats. How it begins only says where to look: what is taken for it
/// is all of it, by its digest.
struct Table {
    begins: [u8; 16],
    bytes: usize,
    digest: &'static str,
}

const KNOWN_TABLES: [Table; 2] = [
    // The 651 powers of five of `core::num::imp::dec2flt::table`.
    Table {
        begins: [0x5a, 0xd6, 0x3b, 0x92, 0xd6, 0x53, 0xf4, 0xee, 0x3f, 0x3b, 0xa1, 0x06, 0x29, 0xaa, 0x3f, 0x11],
        bytes: 651 * 16,
        digest: "dae47e3594bb0b39d42660ef3fe3dc5de5885c0a29ae0e5c21a39e79669efe86",
    },
    // The powers of ten from 1 to 1e308 of `serde_json`.
    Table {
        begins: [0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0, 0, 0, 0, 0, 0, 0x24, 0x40],
        bytes: 309 * 8,
        digest: "c48f7ef4d10d520b70e2ef23e4e31559d69eb31bb6266a0c61b7dab912051ac4",
    },
];

/// Entropy of the whole, or of its densest window, but for tables that are known.
fn densest(data: &[u8]) -> f64 {
    let mut rest = data.to_vec();
    for table in KNOWN_TABLES {
        let begins = rest.windows(table.begins.len()).position(|window| window == table.begins);
        if let Some(at) = begins
            && rest.get(at..at + table.bytes).is_some_and(|found| Digest::of(found).hex() == table.digest)
        {
            rest.drain(at..at + table.bytes);
        }
    }
    rest.chunks(WINDOW).filter(|chunk| chunk.len() >= 256).map(entropy).fold(entropy(&rest), f64::max)
}

fn mark(facts: &mut DataFacts, kind: MarkKind, what: &str, offset: usize) {
    // Per kind: many of one kind must not hide one of another.
    if facts.marks.iter().filter(|mark| mark.kind == kind).count() < KEPT {
        facts.marks.push(Mark { kind, text: text::clean(what, 120), offset });
    }
}

fn string(facts: &mut DataFacts, bytes: &[u8], offset: usize) {
    // Printable ASCII, so this loses nothing.
    let run = String::from_utf8_lossy(bytes);
    if facts.sample.len() < KEPT {
        facts.sample.push(text::clean(&run, 80));
    }
    for scheme in ["http://", "https://", "ftp://", "ws://", "wss://"] {
        for (at, _) in run.match_indices(scheme).take(KEPT) {
            let url: String = run[at..].chars().take_while(|c| !c.is_whitespace() && *c != '"').take(100).collect();
            if url.len() > scheme.len() + 3 {
                mark(facts, MarkKind::Url, &url, offset + at);
            }
        }
    }
    if let Some((at, address)) = ip(&run) {
        mark(facts, MarkKind::Url, address, offset + at);
    }
    for (begins, least, what) in SECRETS {
        let token = |c: char| c.is_ascii_alphanumeric() || "-_+/= ".contains(c);
        let long = |at: usize| run[at..].chars().take(least).filter(|c| token(*c)).count() == least;
        // Only the first that is one: what looks like the beginning of one must not hide it.
        if let Some((at, _)) = run.match_indices(begins).find(|(at, _)| long(*at)) {
            // What it is, and not the thing itself: reports are passed around.
            mark(facts, MarkKind::Secret, what, offset + at);
        }
    }
    let paths = BUILD_PATHS.iter().flat_map(|begins| run.match_indices(begins).take(KEPT)).map(|(at, _)| at);
    if let Some(at) = paths.min() {
        let path: String = run[at..].chars().take_while(|c| !c.is_whitespace()).take(100).collect();
        mark(facts, MarkKind::BuildPath, &path, offset + at);
    }
}

/// The first dotted quad that is an address and not a version: four numbers below 256 with nothing like them around.
fn ip(run: &str) -> Option<(usize, &str)> {
    let in_quad = |c: char| c.is_ascii_digit() || c == '.';
    let mut at = 0;
    while let Some(start) = run[at..].find(|c: char| c.is_ascii_digit()).map(|found| at + found) {
        let end = run[start..].find(|c: char| !in_quad(c)).map_or(run.len(), |length| start + length);
        let quad = run[start..end].trim_end_matches('.');
        let numbers: Vec<&str> = quad.split('.').collect();
        let number = |text: &&str| text.len() <= 3 && text.parse::<u16>().is_ok_and(|n| n < 256);
        let alone = start == 0 || !run[..start].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '-');
        if alone && numbers.len() == 4 && numbers.iter().all(number) && !numbers.iter().all(|n| n.len() == 1) {
            return Some((start, &run[start..start + quad.len()]));
        }
        at = end;
    }
    None
}

/// Shannon entropy in bits per byte.
fn entropy(bytes: &[u8]) -> f64 {
    let mut counts = [0u32; 256];
    bytes.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    let total = bytes.len().max(1) as f64;
    let bits = |count: u32| {
        let share = f64::from(count) / total;
        -share * share.log2()
    };
    counts.into_iter().filter(|count| *count > 0).map(bits).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(data: &[u8]) -> Vec<MarkKind> {
        segment(data, 0, None).marks.iter().map(|mark| mark.kind).collect()
    }

    #[test]
    fn what_is_worth_a_look_is_found() {
        assert_eq!(kinds(b"see https://evil.example/x for more"), [MarkKind::Url]);
        assert_eq!(kinds(b"connect to 10.20.30.40:80"), [MarkKind::Url]);
        assert_eq!(kinds(b"key AKIAIOSFODNN7EXAMPLE, secret"), [MarkKind::Secret]);
        assert_eq!(kinds(b"-----BEGIN PRIVATE KEY-----"), [MarkKind::Secret]);
        assert_eq!(kinds(b"abc\0\0\0asm\x01\0\0\0"), [MarkKind::Binary]);
        assert_eq!(kinds(b"at /home/somebody/.cargo/registry/src/x.rs"), [MarkKind::BuildPath]);
        assert!(kinds(b"/rustc/ac68faa20/library/core/src/fmt.rs version 1.2.3.4 of it").is_empty());
        assert!(kinds(b"-----BEGIN CERTIFICATE-----").is_empty());
        let decoy = b"ghp_short. ghp_0123456789abcdefghijklmnopqrstuvwxyz";
        assert_eq!(kinds(decoy), [MarkKind::Secret]);
        let many = format!("{} ghp_0123456789abcdefghijklmnopqrstuvwxyz", "http://a.b/cdef ".repeat(40));
        assert!(kinds(many.as_bytes()).contains(&MarkKind::Secret), "urls hide no token");
        assert!(kinds(b"model.layers.0.mlp.experts.3 hf_config hf_ sk-1").is_empty());
        let secret = segment(b"ghp_0123456789abcdefghijklmnopqrstuvwxyz", 7, None);
        assert_eq!((secret.marks[0].text.as_str(), secret.marks[0].offset), ("a GitHub token", 7));
    }

    #[test]
    fn entropy_is_of_the_densest_part() {
        let mut data = vec![0u8; 64 << 10];
        assert_eq!(segment(&data, 0, None).entropy, 0.0);
        for (i, byte) in data[8192..12_288].iter_mut().enumerate() {
            *byte = (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0];
        }
        assert!(segment(&data, 0, None).entropy > 7.2);
    }

    #[test]
    fn a_known_table_is_known_by_all_of_its_bytes() {
        let noise: Vec<u8> = (0..4096u32).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        let powers: Vec<u8> =
            (0..309).flat_map(|e| format!("1e{e}").parse::<f64>().unwrap_or_default().to_le_bytes()).collect();
        let entropy = |data: &[u8]| segment(data, 0, None).entropy;
        assert_eq!(entropy(&powers), 0.0, "the table alone");
        assert!(entropy(&[&powers[..], &noise[..]].concat()) > 7.2);
        // Only the beginning of one: the rest is no table.
        assert!(entropy(&[&powers[..16], &noise[..]].concat()) > 7.2);
        for table in KNOWN_TABLES {
            assert!(entropy(&[&table.begins[..], &noise[..]].concat()) > 7.2);
        }
    }
}
