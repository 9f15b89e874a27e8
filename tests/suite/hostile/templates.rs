//! Chat templates that are attacks: on the stack, on the memory, on time. A template costs its child and nothing else, is
//! refused by name, and the next conversation is rendered.

use std::time::Instant;

use patchhost::text::Renders;
use patchhost_runtime::tokenizer::{Message, Renderer, Rendering};
use serde_json::json;

use super::child::HANG;
use crate::http::server::Server;
use crate::support::{binary, copy_folder, repo, tmp};

fn rendering(template: &str) -> Rendering {
    Rendering {
        template: template.to_owned(),
        messages: vec![Message::new("system", "Be brief."), Message::new("user", "Grüße an {{ alle }}\n")],
        specials: [("bos_token".to_owned(), "<s>".to_owned())].into(),
        add_generation_prompt: true,
        more: json!({ "enable_thinking": false, "n": 0.1, "list": [1, null, "x"] }).as_object().unwrap().clone(),
        ..Rendering::default()
    }
}

/// Deep texts of the grammar, each by one of its rules.
fn deep() -> Vec<String> {
    let n = 60_000;
    let expressions = [
        format!("{}1", "-".repeat(n)),
        format!("{}true", "not ".repeat(n)),
        format!("{}1{}", "(".repeat(n), ")".repeat(n)),
        format!("{}1{}", "[".repeat(n), "]".repeat(n)),
        format!("{}1{}", "{'a':".repeat(n), "}".repeat(n)),
        format!("1{}", "+1".repeat(n)),
        format!("'a'{}", "~'a'".repeat(n)),
        format!("1{}", "**1".repeat(n)),
        format!("1{}", " and 1".repeat(n)),
        format!("1{}", "|abs".repeat(n)),
        format!("messages{}", "[0]".repeat(n)),
        format!("messages{}", ".a".repeat(n)),
        format!("namespace{}", "()".repeat(n)),
        format!("1{}", " if 1 else 1".repeat(n)),
        format!("1{}", " is defined".repeat(n)),
    ];
    let mut all: Vec<String> = expressions.iter().map(|e| format!("{{{{ {e} }}}}")).collect();
    all.push(format!("{}x{}", "{% if 1 %}".repeat(20_000), "{% endif %}".repeat(20_000)));
    all.push(format!("{}x{}", "{% for a in [1] %}".repeat(20_000), "{% endfor %}".repeat(20_000)));
    all.push(format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(60_000)));
    all
}

const HUNGRY: &[&str] = &[
    "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
    "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns|tojson }}",
    "{% set ns = namespace() %}{% set ns.a = [{'b': ns}] %}{{ ns.a|tojson }}",
    "{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}{{ a == b }}{{ [a]|string }}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(l=[1]) %}{% for i in range(40) %}{% set ns.l = ns.l + ns.l %}{% endfor %}{{ ns.l|list|length }}",
    "{% set ns = namespace(l=[1]) %}{% for i in range(40) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l|tojson }}",
    "{{ 'x' * 4000000000 }}",
    "{{ ([1] * 4000000000)|list }}",
    "{{ \"{:>1000000000}\".format(1) }}{{ \"{:>1000000000}\".format(1) }}",
    "{{ \"%1000000000d\"|format(1) }}{{ \"%01000000000d\" % 1 }}",
    "{{ [1]|tojson(indent=1000000000) }}",
    "{{ ('a\n' * 100000)|indent(100000) }}",
    "{{ 'a'.ljust(1000000000) }}",
    "{{ ('a' * 1000000)|replace('a', 'b' * 100000) }}",
    "{{ ('a' * 1000000).replace('', 'b' * 100000) }}",
    "{{ (['a' * 1000000] * 10000)|join('') }}",
];

#[test]
fn what_a_template_takes_it_takes_from_its_child() {
    let renders = Renders::new(&binary());
    let honest = rendering("{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}");
    let deep = deep();
    for template in HUNGRY.iter().copied().chain(deep.iter().map(String::as_str)) {
        let shown: String = template.chars().take(60).collect();
        let start = Instant::now();
        let ended = renders.render(&rendering(template));
        // A guard against a hang.
        assert!(start.elapsed() < HANG, "{shown}: {:?}", start.elapsed());
        match ended {
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("the chat template\n  why: ") && text.contains("\n  next: "), "{shown}: {text}");
                assert!(text.len() < 4096 && !text.contains("panicked"), "{shown}: {text}");
            }
            // Some chains are only long: what they come to is short.
            Ok(text) => assert!(text.len() < 1 << 20 && deep.iter().any(|d| d == template), "{shown}: {}", text.len()),
        }
        assert_eq!(renders.render(&honest).unwrap(), "<s>[system] Be brief.[user] Grüße an {{ alle }}\n", "{shown}");
    }
}

#[test]
fn a_child_writes_what_this_process_writes() {
    let renders = Renders::new(&binary());
    let ordinary = [
        "{{ bos_token }}{% for m in messages %}{% if loop.first and m.role == 'system' %}{{ m.content }}\n{% else %}\
         <|{{ m.role }}|>{{ m.content | trim }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}",
        "{{ messages|tojson }}{{ n }}{{ list|tojson(indent=2) }}{{ enable_thinking }}",
        "{% set ns = namespace(i=0) %}{% for m in messages %}{% set ns.i = ns.i + 1 %}{% endfor %}{{ ns.i }}",
        "{{ strftime_now('%d') }}{% for m in messages|reverse %}{{ m.content.split(' ')[-1].upper() }}{% endfor %}",
        "{{ raise_exception('only users') }}",
        "{{ nothing.at.all }}",
        "{% for %}",
    ];
    for template in ordinary {
        let here = rendering(template).render();
        let there = renders.render(&rendering(template));
        match (here, there) {
            (Ok(here), Ok(there)) => assert_eq!(here, there, "{template}"),
            (Err(here), Err(there)) => assert!(there.to_string().contains(&here.replace('\n', "\\n")[..20]), "{there}"),
            (here, there) => panic!("{template}: {here:?}, {there:?}"),
        }
    }
}

#[test]
fn many_at_once_share_the_children() {
    let renders = Renders::new(&binary());
    std::thread::scope(|scope| {
        for thread in 0..12 {
            let renders = &renders;
            scope.spawn(move || {
                for round in 0..10 {
                    let bad = (thread + round) % 5 == 0;
                    let template = if bad { HUNGRY[0].to_owned() } else { format!("{{{{ n }}}} {thread} {round}") };
                    let text = renders.render(&rendering(&template));
                    assert_eq!(text.is_err(), bad, "{text:?}");
                    assert!(bad || text.unwrap() == format!("0.1 {thread} {round}"));
                }
            });
        }
    });
}

/// The same through the server: 400, without the memory, and the next request is answered.
#[test]
fn a_server_outlives_its_template() {
    let tmp = tmp();
    let model = copy_folder(&repo().join("models/tiny-shakespeare-moe"), &tmp.path().join("m"));
    let chat = json!({ "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 2 });
    for template in [HUNGRY[1], HUNGRY[5], &format!("{{{{ {}1 }}}}", "-".repeat(50_000))] {
        std::fs::write(model.join("chat_template.jinja"), template).unwrap();
        let server = Server::start(&[model.to_str().unwrap()]);
        let before = server.peak_kib();
        for _ in 0..2 {
            let answer = server.post("/v1/chat/completions", &chat);
            assert_eq!(answer.status, 400, "{}", answer.text);
            assert!(answer.text.contains("the chat template"), "{}", answer.text);
        }
        let answer = server.post("/v1/completions", &json!({ "prompt": "KING", "max_tokens": 2 }));
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert!(server.peak_kib() < before + (64 << 10), "{before} KiB, then {}", server.peak_kib());
    }
}

#[test]
fn variables_of_a_request_are_bounded() {
    let server = Server::start(&[]);
    let ask = |kwargs: serde_json::Value| {
        let message = json!([{ "role": "user", "content": "hi" }]);
        server.post("/tokenize", &json!({ "messages": message, "chat_template_kwargs": kwargs }))
    };
    assert_eq!(ask(json!({ "enable_thinking": false, "tools": [{ "a": 1 }] })).status, 200);
    let deep = (0..60).fold(json!(1), |inner, _| json!([inner]));
    for bad in [json!({ "x": "y".repeat(300 << 10) }), json!({ "x": deep })] {
        let answer = ask(bad);
        assert_eq!(answer.status, 400, "{}", answer.text);
        assert!(answer.text.contains("chat_template_kwargs") && answer.text.contains("limit"), "{}", answer.text);
    }
}

#[test]
fn a_template_that_is_no_text_is_refused_by_name() {
    use patchhost_runtime::tokenizer::{Tokenizer, TokenizerFiles};
    let folder = repo().join("models/tiny-shakespeare-moe");
    let good = TokenizerFiles::read(&folder).unwrap();
    let with = |template: serde_json::Value| {
        let mut config: serde_json::Value = serde_json::from_str(good.config.as_ref().unwrap()).unwrap();
        config["chat_template"] = template;
        Tokenizer::new(&TokenizerFiles { config: Some(config.to_string()), ..good.clone() })
    };
    for bad in [
        json!(7),
        json!(true),
        json!({ "default": "x" }),
        json!(["x"]),
        json!([{ "name": "default" }]),
        json!([{ "name": "default", "template": 7 }]),
        json!([{ "name": null, "template": "x" }]),
    ] {
        let error = with(bad.clone()).err().unwrap_or_else(|| panic!("{bad} is taken")).to_string();
        assert!(error.contains("`chat_template` of tokenizer_config.json\n  why: "), "{bad}: {error}");
    }
    let list = json!([{ "name": "tool_use", "template": "t" }, { "name": "default", "template": "d" }]);
    for (good, text) in [(list, "d"), (json!([{ "name": "rag", "template": "r" }]), "r"), (json!("plain"), "plain")] {
        assert_eq!(with(good).unwrap().render(&[]).unwrap(), text);
    }
    for none in [json!(null), json!([])] {
        assert!(!with(none).unwrap().has_template());
    }
}
