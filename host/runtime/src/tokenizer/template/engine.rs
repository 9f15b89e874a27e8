//! The engine, with what transformers adds to Jinja and what its templates use of Python.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, State, Value};
use serde_json::{Map, json};

use super::turns::{self, Form, NEEDLE};
use super::{Rendering, date, filters, json as dumps, methods, python, source};

/// Work a chat template may do before it is stopped.
const FUEL: u64 = 1_000_000;

/// The text that the template makes, or why it makes none.
pub(super) fn render(what: &Rendering) -> Result<String, String> {
    let refused = Arc::new(AtomicBool::new(false));
    let env = environment(what, &refused).map_err(|e| e.to_string())?;
    let (calls, empty, parts) = turns::depends(&what.messages);
    let parts = parts && reads_parts(&env, what);
    let forms = [(false, false), (true, false), (false, true), (true, true)];
    let forms = forms.into_iter().filter(|(text, filled)| (calls || !text) && (empty || !filled));
    let mut first = None;
    for (arguments_as_text, empty_content) in forms {
        let done = attempt(&env, what, Form { arguments_as_text, empty_content, parts });
        match done {
            Ok(text) => return Ok(text),
            // What the template itself refuses is refused. Else it may have met what it does not expect: vLLM's forms are
            // tried where transformers' fails.
            Err(why) => {
                let why = first.get_or_insert(why).clone();
                if refused.load(Ordering::Relaxed) {
                    return Err(why);
                }
            }
        }
    }
    Err(first.unwrap_or_default())
}

fn attempt(env: &Environment<'_>, what: &Rendering, form: Form) -> Result<String, String> {
    let mut messages = turns::formed(&what.messages, form);
    let last = match what.continue_final_message {
        true => Some(turns::marked(&mut messages, &what.template)?),
        false => None,
    };
    let text = written(env, what, messages, what.add_generation_prompt).map_err(|e| e.to_string())?;
    match last {
        Some(last) => turns::cut(&text, &last),
        None => Ok(text),
    }
}

fn written(
    env: &Environment<'_>,
    what: &Rendering,
    messages: Vec<Map<String, serde_json::Value>>,
    generate: bool,
) -> Result<String, Error> {
    let mut variables = Map::new();
    variables.insert("tools".to_owned(), serde_json::Value::Null);
    variables.insert("documents".to_owned(), serde_json::Value::Null);
    // What a request adds wins over special tokens, as in transformers, and what the host sets over both.
    variables.extend(what.specials.iter().map(|(name, text)| (name.clone(), json!(text))));
    variables.extend(what.more.clone());
    for (name, list) in [("tools", &what.tools), ("documents", &what.documents)] {
        if let Some(list) = list {
            variables.insert(name.to_owned(), json!(list));
        }
    }
    variables.insert("messages".to_owned(), json!(messages));
    variables.insert("add_generation_prompt".to_owned(), json!(generate));
    env.get_template("chat")?.render(Value::from(Serde(variables)))
}

/// Whether the template goes through contents that are lists of parts: found out with a message whose text can be told.
fn reads_parts(env: &Environment<'_>, what: &Rendering) -> bool {
    let message = json!({ "role": "user", "content": [{ "type": "text", "text": NEEDLE }] });
    let message = message.as_object().cloned().unwrap_or_default();
    let text = written(env, what, vec![message], false).unwrap_or_default();
    text.contains(NEEDLE) && !text.contains("'type'") && !text.contains("\"type\"")
}

fn environment(what: &Rendering, refused: &Arc<AtomicBool>) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    // As transformers renders templates.
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(methods::call);
    env.set_formatter(|out, state, value| {
        out.write_str(&python::text(state, value)?)?;
        Ok(())
    });
    minijinja_contrib::add_to_environment(&mut env);
    let refused = Arc::clone(refused);
    env.add_function("raise_exception", move |state: &State<'_, '_>, why: Value| -> Result<Value, Error> {
        refused.store(true, Ordering::Relaxed);
        Err(wrong(python::text(state, &why)?.into_owned()))
    });
    let now = what.now.clone().unwrap_or_else(date::now);
    env.add_function("strftime_now", move |format: String| date::written(&now, &format).map_err(wrong));
    env.add_filter("tojson", dumps::tojson);
    filters::add(&mut env);
    env.add_template_owned("chat", source::rewritten(&what.template))?;
    Ok(env)
}

fn wrong(why: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}
