//! Trial compiles: what would take the compiler down takes down a child, in time, and is told apart.

use patchhost::patch::{Candidate, Reviewing, Sandbox, StageError, Terms, Trial};

use crate::support::{binary, evil};

fn trial() -> Trial {
    Trial::with_program(binary())
}

/// 8 levels of nested components, 10 instances each. The audit refuses it; here it meets the compiler.
fn bomb() -> Vec<u8> {
    let mut text = format!("(core module $m) {}", "(core instance (instantiate $m))".repeat(10));
    for _ in 0..7 {
        text = format!("(component $c {text}) {}", "(instance (instantiate $c))".repeat(10));
    }
    wat::parse_str(format!("(component {text})")).unwrap()
}

#[test]
fn honest_bytes_pass_and_wrong_ones_are_the_compilers_to_refuse() {
    trial().compile(&std::fs::read(evil("spin")).unwrap()).unwrap();
    let wrong = trial().compile(b"\0asm\x0d\0\x01\0\xff").unwrap_err().to_string();
    assert!(!wrong.contains("trial compile"), "the compiler's own words: {wrong}");
}

#[test]
fn a_bomb_ends_in_the_child() {
    let error = trial().compile(&bomb()).unwrap_err().to_string();
    assert!(error.contains("trial compile in a child process took more than"), "{error}");
    assert!(error.contains("compile_memory_bytes") || error.contains("compile_cpu_s"), "{error}");
    let starved = trial().limited(5, 40 << 20).compile(&bomb()).unwrap_err().to_string();
    assert!(starved.contains("40 MiB"), "{starved}");
}

#[test]
fn the_pipeline_makes_one_and_says_so() {
    let sandbox = Sandbox::new(1).unwrap().with_trial(Some(trial().limited(5, 4 << 20)));
    let start = |candidate: Candidate| Reviewing::default().start(candidate, &Terms::default(), &sandbox);
    let error = start(Candidate::from_file(evil("too_few").as_ref()).unwrap()).unwrap_err();
    assert!(matches!(&error, StageError::Compile { why, .. } if why.contains("compile_memory_bytes")), "{error}");
    start(patchhost::patch::resolve("fp8_block").unwrap()).expect("bundled bytes need no trial");
    let gone = Sandbox::new(1).unwrap().with_trial(Some(Trial::with_program("/no/such/program".into())));
    let candidate = Candidate::from_file(evil("too_few").as_ref()).unwrap();
    let refused = Reviewing::default().start(candidate, &Terms::default(), gone);
    assert!(refused.err().unwrap().to_string().contains("cannot start"), "without a trial there is no compile");
}
