use super::train;
use crate::support::tmp;

#[test]
fn what_cannot_be_trained_is_refused_by_name() {
    let tmp = tmp();
    let path = tmp.path().join("m");
    let dir = tmp.path().join("ckpt").display().to_string();
    let base = ["--steps", "1", "--checkpoint-dir", &dir];
    train(&path, &base).good();
    let notes = tmp.path().join("notes.txt");
    std::fs::write(&notes, "a diary\n").unwrap();
    let empty = tmp.path().join("empty.txt").display().to_string();
    std::fs::write(&empty, "\n").unwrap();

    let resumed = |more: &[&str]| train(&path, &[&base[..], &["--resume"], more].concat());
    let cases = [
        (2, train(&path, &["--samples", "1"])),
        (2, train(&path, &["--prompts-per-step", "33"])),
        (2, train(&path, &["--lr", "0"])),
        (2, train(&path, &["--max-tokens", "512"])),
        (2, train(&path, &["--prompts", &empty])),
        (2, train(&path, &["--plot", "run.png"])),
        (2, train(&path, &base)),
        (1, resumed(&["--lr", "0.002"])),
        (1, resumed(&["--task", "question"])),
        (1, resumed(&["--seed", "1"])),
        (1, train(&notes, &["--steps", "2", "--checkpoint-dir", &dir, "--resume"])),
    ];
    let texts: Vec<String> = cases.iter().map(|(code, ran)| ran.refused(*code, tmp.path())).collect();
    insta::assert_snapshot!(texts.join("\n\n"));
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), "a diary\n");
}
