//! Exceptions of the dependency check: each has a reason and a date, and stands in SECURITY.md too.

use crate::support::repo;

#[test]
fn no_advisory_is_ignored_without_a_reason_and_a_date() {
    let text = |name: &str| std::fs::read_to_string(repo().join(name)).unwrap();
    let (deny, security) = (text("deny.toml"), text("SECURITY.md"));
    assert!(deny.contains("unmaintained = \"all\"") && deny.contains("unsound = \"all\""));
    let (_, list) = deny.split_once("ignore = [\n").unwrap();
    let (list, _) = list.split_once("\n]").unwrap();
    for line in list.lines() {
        let (_, id) = line.split_once("id = \"").unwrap_or_else(|| panic!("no id: {line}"));
        let (id, rest) = id.split_once('"').unwrap();
        let (_, reason) = rest.split_once("reason = \"").unwrap_or_else(|| panic!("no reason: {line}"));
        let (why, date) = reason.split_once("look again by ").unwrap_or_else(|| panic!("no date: {line}"));
        let date: String = date.chars().take_while(|c| c.is_ascii_digit() || *c == '-').collect();
        assert!(why.len() > 40 && date.len() == 10 && date.matches('-').count() == 2, "{line}");
        let said = security.lines().any(|l| l.contains(id) && l.contains(&date));
        assert!(said, "SECURITY.md does not list {id} with {date}");
    }
}
