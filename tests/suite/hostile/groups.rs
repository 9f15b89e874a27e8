//! The text guests, group by group.

use super::cases::{Case, audit, case, harmless, inside, through_the_command_line};

/// Memory and tables: at the start, in calls, alone and together.
const MEMORY: &[Case] = &[
    case("memory_bomb_start", "instantiate", &["memory_bytes"]).mib(64),
    harmless("memory_all_of_it").mib(64),
    case("memory_and_tables", "scales", &["memory_bytes"]).mib(64),
    harmless("table_bomb_start"),
    case("table_bomb_call", "scales", &["table_elements"]),
    audit("memory_too_large", &["PH302"]),
    audit("table_too_large", &["PH302"]),
];

/// Time: fuel, and work that costs hardly any.
const TIME: &[Case] = &[
    case("bulk_describe", "describe", &["fuel"]).mib(64),
    case("bulk_configure", "configure", &["fuel"]).mib(64),
    case("bulk_decide", "decide", &["fuel"]).mib(64),
    case("bulk_scales", "scales", &["fuel"]).mib(64),
    case("bulk_post", "scales", &["fuel"]).mib(64),
    harmless("drip"),
    case("start_spins", "instantiate", &["fuel"]),
    case("start_traps", "instantiate", &["unreachable"]),
    case("start_recurses", "instantiate", &["stack"]),
    case("start_table", "instantiate", &[]),
];

/// Answers that are none: addresses, lengths, cases, texts.
const VALUES: &[Case] = &[
    case("list_outside", "scales", &["out of bounds"]),
    case("list_ends_outside", "scales", &["out of bounds"]),
    case("list_wraps", "scales", &["out of bounds"]),
    case("list_longest", "scales", &["out of bounds"]),
    case("list_odd", "scales", &["align"]),
    case("list_overlaps", "nothing", &["block ["]),
    case("answer_odd", "scales", &["align"]),
    case("answer_outside", "scales", &["out of bounds"]),
    case("answer_at_the_end", "scales", &["out of bounds"]),
    case("tag_unknown", "scales", &["discriminant"]),
    case("error_not_utf8", "scales", &["utf-8"]),
    case("error_outside", "scales", &["out of bounds"]),
    case("error_longest", "scales", &["larger than"]),
    case("error_escapes", "scales", &["\\u{1b}[2J"]).code(1),
    case("decision_tag", "decide", &["discriminant"]),
    case("format_unknown", "decide", &["discriminant"]),
    case("needs_unknown", "decide", &["discriminant"]),
    case("contract_unknown", "decide", &["discriminant"]),
    case("needs_rows_it_cannot_read", "decide", &["rows"]),
    case("rounding_unknown", "activation", &["discriminant"]).code(0),
    case("describe_aliases", "describe", &["larger than"]),
    case("passes_alias", "passes", &["larger than"]),
];

/// `cabi_realloc` and post-return: code of the guest that runs while the host reads and writes.
const ABI: &[Case] = &[
    case("realloc_null", "decide", &["1 decisions for 2"]).code(0),
    case("realloc_odd", "configure", &["align"]),
    case("realloc_outside", "configure", &["realloc"]),
    case("realloc_at_the_end", "decide", &["realloc"]),
    case("realloc_traps", "configure", &["unreachable"]),
    case("realloc_spins", "configure", &["fuel"]),
    case("realloc_copies", "configure", &["fuel"]).mib(64),
    case("realloc_grows", "configure", &["memory_bytes"]).mib(64),
    case("realloc_recurses", "configure", &["stack"]),
    case("post_traps", "scales", &["unreachable"]),
    case("post_spins", "scales", &["fuel"]),
    case("post_grows", "scales", &["memory_bytes"]).mib(64),
    case("rows_in_describe", "describe", &["outside of `panel-scales`"]),
    case("rows_in_configure", "configure", &["outside of `panel-scales`"]),
    case("rows_in_activation", "activation", &["outside of `panel-scales`"]).code(0),
    case("rows_in_decide", "decide", &["outside of `panel-scales`"]),
    case("rows_in_realloc", "configure", &["cannot leave"]),
    case("rows_in_post", "scales", &["cannot leave"]),
    case("rows_beyond", "panel-scales", &["of a panel of"]),
    case("rows_too_many", "panel-scales", &["max-rows"]),
    case("rows_for_ever", "panel-scales", &["panel_reads"]),
    case("rows_of_nothing", "panel-scales", &["panel_reads"]),
    case("rows_into_nowhere", "panel-scales", &["out of bounds"]),
    case("rows_as_scales", "nothing", &["block ["]),
    case("handle_bomb", "describe", &["handle limit exceeded"]),
    case("stale_handle", "describe", &["unknown handle"]),
    case("destructor", "describe", &["stack"]),
    audit("resources", &["PH201"]),
];

/// Texts: every one that the host may print.
const TEXTS: &[Case] = &[
    harmless("describe_escapes"),
    case("name_escapes", "describe", &["its name is `\\u{1b}[2J"]),
    case("version_escapes", "describe", &["its version is `\\u{1b}[2J"]),
    case("range_escapes", "describe", &["has versions `\\u{1b}[2J"]),
    case("engine_escapes", "nothing", &["\\u{1b}[2Jroot"]).code(2),
    case("describe_not_utf8", "describe", &["utf-8"]),
    case("configure_flood", "configure", &["larger than"]),
    case("configure_escapes", "configure", &["\\u{1b}\\u{1b}"]).code(2),
    case("keep_escapes", "nothing", &[]).code(0),
    harmless("rule_escapes"),
    case("function_names", "scales", &["unreachable"]),
    harmless("spoof"),
];

/// Numbers that are wrong where it matters, and right where one looks.
const NUMBERS: &[Case] = &[
    case("time_bomb", "nothing", &["448"]),
    case("last_block", "nothing", &["448"]),
    case("remembers", "nothing", &["448"]),
    harmless("ulp_3"),
    case("ulp_20", "nothing", &["448"]),
    case("ulp_down_20", "nothing", &["448"]),
    case("denormal", "nothing", &["block ["]),
    case("largest", "nothing", &["block ["]),
    case("minus_zero", "nothing", &["block ["]),
    case("nan_payload", "nothing", &["block ["]),
];

/// All of them.
pub const ALL: [&[Case]; 6] = [MEMORY, TIME, VALUES, ABI, TEXTS, NUMBERS];

/// Tried with a large model in `clock.rs`, with values and names of their own in `numbers.rs`, and with any bytes in
/// `generated/fuzz.rs`.
const ELSEWHERE: [&str; 4] = ["chase", "magic_value", "mirror", "one_layer"];

#[test]
fn every_text_guest_is_tried() {
    let mut tried: Vec<String> = ALL.iter().flat_map(|group| group.iter()).map(|case| case.name.to_string()).collect();
    tried.extend(ELSEWHERE.map(str::to_string));
    tried.sort();
    assert_eq!(tried, super::wat::names());
}

macro_rules! group {
    ($name:ident, $cases:ident) => {
        mod $name {
            #[test]
            fn inside() {
                super::inside(super::$cases);
            }

            #[test]
            fn through_the_command_line() {
                super::through_the_command_line(super::$cases);
            }
        }
    };
}

group!(memory, MEMORY);
group!(time, TIME);
group!(values, VALUES);
group!(abi, ABI);
group!(texts, TEXTS);
group!(numbers, NUMBERS);
