//! `patchhost --help` with its verbs in groups, which clap has no word for: clap lists them as always, and headings are
//! put between.

use std::fmt::Write;

use clap::Command;

/// The same command, whose help shows the verbs under the headings of `groups`. A group names the modules of its verbs,
/// in the order in which the command has them.
pub(super) fn grouped(command: Command, groups: &[(&str, &[&str])]) -> Command {
    // clap aligns, wraps and colors the list.
    let list = command.clone().help_template("{subcommands}").render_help();
    let (plain, styled) = (list.to_string(), list.ansi().to_string());
    let style = *command.get_styles().get_header();
    let firsts = groups.iter().filter_map(|(title, verbs)| Some((*title, verbs.first()?.replace('_', "-"))));
    let firsts: Vec<(&str, String)> = firsts.collect();
    let mut verbs = String::new();
    for (plain, styled) in plain.lines().zip(styled.lines()) {
        let name = plain.strip_prefix("  ").and_then(|line| line.split_whitespace().next());
        // A line that goes on with a description is indented deeper.
        let name = name.filter(|_| !plain.starts_with("   "));
        if let Some((title, _)) = firsts.iter().find(|(_, first)| Some(first.as_str()) == name) {
            // Writing to a String cannot fail.
            let _ = writeln!(verbs, "\n{style}{title}:{style:#}");
        }
        let gap = if name == Some("help") { "\n" } else { "" };
        let _ = writeln!(verbs, "{gap}{styled}");
    }
    command.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n{verbs}\n{style}Options:{style:#}\n{{options}}{{after-help}}"
    ))
}
