//! A lock that was changed by hand, and a file of revocations that lost some, are noticed.

use super::Desk;

const SET: &str = "--component fp8_block.wasm --set profile=deepseek";

fn locked() -> Desk {
    let desk = Desk::new(&["fp8_block", "gpu_layout"]);
    desk.run("lock fp8_block.wasm --set profile=deepseek --note looked-at-it").good();
    desk.load(SET).good();
    desk
}

#[test]
fn every_part_of_an_entry_is_sealed() {
    for (from, to) in [
        ("note = \"looked-at-it\"", "note = \"approved-by-everybody\""),
        ("who = \"reviewer\"", "who = \"security\""),
        ("warnings = ", "warnings = 1"),
        ("name = \"fp8_block\"", "name = \"fp8_block_2\""),
        ("interface = \"0.1.0\"", "interface = \"0.1.1\""),
    ] {
        let desk = locked();
        desk.edit("patchhost.lock", from, to);
        let refused = desk.load(SET);
        let text = refused.refused(1, desk.folder());
        assert!(text.contains("its `seal` is not that of what stands there"), "{from}: {text}");
        let check = desk.run("lock --check");
        assert!(check.code == 1 && check.stdout.contains("BAD"), "{from}: {}", check.stdout);
        if from.starts_with("name = ") {
            // Under its own name there is no entry now: a grant would begin a new one.
            continue;
        }
        let grant = desk.run("grant fp8_block.wasm --clocks");
        assert_eq!(grant.code, 1, "{from}: {}{}", grant.stdout, grant.stderr);
        desk.accept(&refused);
        desk.load(SET).good();
    }
}

#[test]
fn an_edited_entry_is_not_sealed_by_another_change() {
    let desk = locked();
    desk.edit("patchhost.lock", "looked-at-it", "approved");
    desk.run("lock gpu_layout.wasm").good();
    desk.run("revoke sha256:0000000000000000000000000000000000000000000000000000000000000001 --reason old").good();
    let text = desk.load(SET).refused(1, desk.folder());
    assert!(text.contains("its `seal` is not that of what stands there"), "{text}");
}

#[test]
fn a_seal_cannot_be_taken_out() {
    let desk = locked();
    let text = desk.text("patchhost.lock");
    let without =
        |wanted: &str| text.lines().filter(|l| !l.starts_with(wanted)).map(|l| format!("{l}\n")).collect::<String>();
    desk.write("patchhost.lock", &without("seal = "));
    let refused = desk.load(SET).refused(2, desk.folder());
    assert!(refused.contains("entry `fp8_block` has no `seal`"), "{refused}");
    let start = text.find("[revocations]").unwrap();
    let end = text.find("[[patch]]").unwrap();
    desk.write("patchhost.lock", &format!("{}{}", &text[..start], &text[end..]));
    let refused = desk.load(SET).refused(2, desk.folder());
    assert!(refused.contains("it does not say which revocations it knows"), "{refused}");
}

const REVOKED: [&str; 2] = [
    "sha256:00000000000000000000000000000000000000000000000000000000000000aa",
    "sha256:00000000000000000000000000000000000000000000000000000000000000bb",
];

fn revoked() -> Desk {
    let desk = locked();
    for digest in REVOKED {
        desk.run(&format!("revoke {digest} --reason wrong")).good();
    }
    desk.load(SET).good();
    desk.run("lock --check").good();
    desk
}

#[test]
fn revocations_do_not_go_away_without_a_word() {
    let whole = revoked().text("patchhost.revoked");
    let second = whole.rfind("[[revoked]]").unwrap();
    for (what, file, why) in [
        ("deleted", None, "the lock knows 2, and there are 0"),
        ("shorter", Some(whole[..second].to_owned()), "the lock knows 2, and there are 1"),
        ("another digest", Some(whole.replace("00aa\"", "00ac\"")), "they were changed by hand"),
        ("another reason", Some(whole.replacen("wrong", "fine", 1)), "they were changed by hand"),
    ] {
        let desk = revoked();
        match file {
            None => std::fs::remove_file(desk.path("patchhost.revoked")).unwrap(),
            Some(text) => desk.write("patchhost.revoked", &text),
        }
        let lines = [
            format!("run --prompt x --max-tokens 1 {SET}"),
            "lock gpu_layout.wasm".to_owned(),
            "lock --check".to_owned(),
            "lock --remove fp8_block".to_owned(),
            "grant fp8_block.wasm --clocks".to_owned(),
            format!("serve --listen 127.0.0.1:0 {SET}"),
            format!("revoke {} --reason more", REVOKED[0].replace("aa", "cc")),
        ];
        for line in lines {
            let text = desk.run(&line).refused(1, desk.folder());
            assert!(text.contains("revocations `patchhost.revoked`") && text.contains(why), "{what}: {line}: {text}");
            assert!(text.contains("patchhost lock --accept-revocations"), "{what}: {line}: {text}");
        }
        // Somebody says that it is meant.
        let said = desk.run("lock --accept-revocations").good();
        assert!(said.stdout.contains("now"), "{}", said.stdout);
        desk.load(SET).good();
    }
}

#[test]
fn more_revocations_than_the_lock_knows_are_fine() {
    let desk = revoked();
    // As after a `revoke` that died between the two files.
    let more = "\n[[revoked]]\ndigest = \"sha256:00000000000000000000000000000000000000000000000000000000000000cc\"\nreason = \"x\"\n";
    let text = desk.text("patchhost.revoked");
    desk.write("patchhost.revoked", &format!("{text}{more}"));
    desk.load(SET).good();
    // The next writer takes note of it.
    desk.run("lock gpu_layout.wasm").good();
    desk.write("patchhost.revoked", &text);
    assert!(desk.load(SET).stderr.contains("the lock knows 3, and there are 2"));
}

/// A lock of patchhost 0.1 has no seals: it is read, with a remark, and sealed by whoever writes it next.
#[test]
fn old_locks_are_read_and_sealed() {
    let desk = revoked();
    let old = |text: &str| -> String {
        let start = text.find("[revocations]").unwrap();
        let text = format!("{}{}", &text[..start], &text[text.find("[[patch]]").unwrap()..]);
        let text = text.replacen("version = 2\n", "version = 1\n", 1);
        text.lines().filter(|line| !line.starts_with("seal = ")).map(|line| format!("{line}\n")).collect()
    };
    desk.write("patchhost.lock", &old(&desk.text("patchhost.lock")));
    let ran = desk.load(SET).good();
    assert!(ran.stderr.contains("note: ") && ran.stderr.contains("it has no seals"), "{}", ran.stderr);
    assert!(desk.run("lock --check").good().stderr.contains("it has no seals"));
    desk.run("lock gpu_layout.wasm").good();
    let text = desk.text("patchhost.lock");
    assert!(
        text.contains("version = 2\n") && text.matches("\nseal = ").count() == 2 && text.contains("count = 2"),
        "{text}"
    );
    let ran = desk.load(SET).good();
    assert!(!ran.stderr.contains("seals"), "{}", ran.stderr);
    // What had been changed by hand in the old lock stays refused.
    desk.write("patchhost.lock", &old(&text).replacen("fuel_base = 50000000", "fuel_base = 60000000", 1));
    desk.run("lock --remove gpu_layout").good();
    desk.load(SET).refused(1, desk.folder());
}
