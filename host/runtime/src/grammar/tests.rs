#![allow(clippy::unwrap_used)]
use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::*;
use crate::tokenizer::Tokenizer;

fn grammars() -> Grammars {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-shakespeare-moe");
    Grammars::new(Arc::new(Tokenizer::open(&folder).unwrap()))
}

/// A text that a model of pure chance writes in at most `room` tokens, and whether it came to an end.
fn babble(grammars: &Grammars, source: &Source, room: usize, seed: u64) -> (String, bool) {
    let grammar = grammars.compile(source).unwrap();
    let mut guide = Guide::new(&grammar);
    let mut dice = StdRng::seed_from_u64(seed);
    let tokenizer = Tokenizer::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-shakespeare-moe"));
    let tokenizer = tokenizer.unwrap();
    let (mut ids, mut ended) = (Vec::new(), false);
    while ids.len() < room && !ended {
        let mut row = vec![0.0f32; tokenizer.size()];
        guide.mask(&mut row).unwrap();
        let allowed: Vec<u32> = (0..row.len() as u32).filter(|id| row[*id as usize] == 0.0).collect();
        assert!(!allowed.is_empty());
        let drawn = allowed[dice.random_range(0..allowed.len())];
        let token = guide.instead_of(drawn, room - ids.len()).unwrap().unwrap_or(drawn);
        assert!(allowed.contains(&token), "{token} is not of the grammar");
        guide.take(token).unwrap();
        ended = guide.is_done();
        if !tokenizer.eos().contains(&token) {
            ids.push(token);
        }
    }
    (tokenizer.decode(&ids).unwrap(), ended)
}

fn schema(schema: Value) -> Source {
    Source::Json { schema, whitespace: true }
}

#[test]
fn pure_chance_writes_what_the_schema_wants() {
    let all = grammars();
    let person = schema(json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 20 },
            "age": { "type": "integer", "minimum": 0, "maximum": 150 },
            "mail": { "type": "string", "pattern": "^[a-z]{1,10}@[a-z]+\\.com$" },
            "tags": { "type": "array", "items": { "enum": ["a", "b"] }, "maxItems": 3 },
            "next": { "anyOf": [{ "type": "null" }, { "$ref": "#/$defs/point" }] }
        },
        "required": ["name", "age", "mail", "tags", "next"],
        "additionalProperties": false,
        "$defs": { "point": { "type": "object", "properties": { "x": { "type": "number" } }, "required": ["x"] } }
    }));
    for seed in 0..30 {
        let (text, ended) = babble(&all, &person, 120, seed);
        assert!(ended, "{text}");
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(value["age"].as_u64().is_some_and(|age| age <= 150), "{text}");
        assert!(value["mail"].as_str().unwrap().ends_with(".com"), "{text}");
        assert!(value["tags"].as_array().unwrap().iter().all(|tag| tag == "a" || tag == "b"), "{text}");
        assert!(value["next"].is_null() || value["next"]["x"].is_number(), "{text}");
    }
}

#[test]
fn an_answer_is_whole_before_its_tokens_are_used_up() {
    let all = grammars();
    // A string that chance would go on with for ever.
    for room in [12, 20, 60] {
        for seed in 0..10 {
            let (text, ended) = babble(&all, &Source::json_object(), room, seed);
            assert!(ended && serde_json::from_str::<Value>(&text).is_ok_and(|v| v.is_object()), "{room}: {text}");
        }
    }
    // Where no text of the grammar fits, the limit cuts it.
    let long = Source::Regex("[a-z]{40}".to_owned());
    assert!(!babble(&all, &long, 5, 1).1);
}

#[test]
fn a_number_that_is_never_reached_is_no_way_out() {
    let all = grammars();
    let source = schema(
        json!({ "type": "object", "properties": { "n": { "type": "number", "exclusiveMinimum": 888, "maximum": 997 } },
        "required": ["n"], "additionalProperties": false }),
    );
    for seed in 0..20 {
        let (text, ended) = babble(&all, &source, 30, seed);
        let n = serde_json::from_str::<Value>(&text).ok().and_then(|v| v["n"].as_f64());
        assert!(ended && n.is_some_and(|n| n > 888.0 && n <= 997.0), "{text}");
    }
}

#[test]
fn white_space_ends_and_times_are_written_as_readers_expect() {
    let all = grammars();
    for seed in 0..10 {
        let source =
            schema(json!({ "type": "object", "properties": { "at": { "type": "string", "format": "date-time" } },
            "required": ["at"], "additionalProperties": false }));
        let (text, ended) = babble(&all, &source, 400, seed);
        assert!(ended && !text.contains(&" ".repeat(33)), "{text}");
        let at = serde_json::from_str::<Value>(&text).unwrap()["at"].as_str().unwrap().to_owned();
        assert!(!at.contains(['t', 'z']), "{at}");
    }
}

#[test]
fn expressions_choices_and_grammars_are_followed() {
    let all = grammars();
    let matches = |source: &Source, pattern: &str| {
        let pattern = regex::Regex::new(&format!("^(?:{pattern})$")).unwrap();
        for seed in 0..10 {
            let (text, ended) = babble(&all, source, 60, seed);
            assert!(ended && pattern.is_match(&text), "{pattern}: {text:?}");
        }
    };
    matches(&Source::Regex("^[A-Z]{2}\\d{3}/x$".to_owned()), "[A-Z]{2}\\d{3}/x");
    matches(
        &Source::Choice(vec!["yes".to_owned(), "no (really)".to_owned(), "ye".to_owned()]),
        "yes|no \\(really\\)|ye",
    );
    let sql = "root ::= select_statement\nselect_statement ::= \"SELECT \" column \" from \" table\n\
        column ::= \"col_1 \" | \"col_2 \" # a comment\ntable ::= \"t_\" [0-9]{1,3} | \"x\\\"y\"";
    matches(&Source::Grammar(sql.to_owned()), "SELECT col_[12]  from (t_\\d{1,3}|x\"y)");
    matches(&Source::Grammar("start: \"a\" b+\nb: /[xyz]/".to_owned()), "a[xyz]+");
}

#[test]
fn calls_stand_between_their_marks() {
    let all = grammars();
    let call = |name: &str| {
        json!({ "type": "object", "properties": { "name": { "const": name }, "arguments": { "$ref": "#/$defs/point" } },
            "required": ["name", "arguments"], "additionalProperties": false,
            "$defs": { "point": { "type": "object", "properties": { "x": { "type": "string" } }, "required": ["x"] } } })
    };
    let (before, after) = ("<tool_call>\n".to_owned(), "\n</tool_call>".to_owned());
    let source = Source::Enclosed(Enclosed { before, schemas: vec![call("f"), call("g")], after, several: true });
    for seed in 0..10 {
        let (text, ended) = babble(&all, &source, 90, seed);
        assert!(ended, "{text}");
        for call in text.split("</tool_call>").filter(|call| !call.is_empty()) {
            let json = call.trim_start().strip_prefix("<tool_call>").unwrap();
            let call: Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert!((call["name"] == "f" || call["name"] == "g") && call["arguments"]["x"].is_string(), "{call}");
        }
    }
}

#[test]
fn what_is_no_grammar_is_refused_by_name() {
    let all = grammars();
    for (source, what, why) in [
        (schema(json!({ "type": "objekt" })), "the JSON schema", "objekt"),
        (schema(json!({ "type": "array", "uniqueItems": true })), "the JSON schema", "uniqueItems"),
        (schema(json!([1])), "the JSON schema", "neither"),
        (schema(json!(false)), "the JSON schema", ""),
        (Source::Regex("[a-".to_owned()), "the regular expression", ""),
        (Source::Regex("(?=a)b".to_owned()), "the regular expression", "look"),
        (Source::Choice(Vec::new()), "the list of choices", "0 texts"),
        (Source::Grammar("root ::= missing".to_owned()), "the grammar", "missing"),
        (Source::Grammar("root ::= \"a".to_owned()), "the grammar", "closing"),
        (Source::Grammar("nonsense".to_owned()), "the grammar", ""),
        (Source::Grammar("x".repeat(300 << 10)), "the grammar", "limit"),
    ] {
        let Err(error) = all.compile(&source) else { panic!("{source:?}") };
        let error = error.to_string();
        let parts = ["\n  why: ", "\n  next: "].iter().all(|part| error.contains(part));
        assert!(error.contains(what) && error.contains(why) && parts, "{source:?}: {error}");
        assert!(!error.contains("backtrace") && error.len() < 2000, "{error}");
    }
}

#[test]
fn a_grammar_is_compiled_once() {
    let all = grammars();
    let one = all.compile(&Source::json_object()).unwrap();
    let same = all.compile(&Source::json_object()).unwrap();
    assert!(Arc::ptr_eq(&one, &same));
    let other = all.compile(&Source::Regex("a".to_owned())).unwrap();
    assert!(*one != *other);
}
