//! What a request says of tools: which there are, and whether the model may or must call them.

use axum::http::StatusCode;
use patchhost_runtime::grammar::{Enclosed, Source};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::parser::ToolParser;
use crate::base::text::clean;
use crate::serve::ask::Structure;
use crate::serve::error::{ApiError, ApiResult};
use crate::serve::state::App;

/// Most tools of a request. OpenAI takes 128.
const MOST: usize = 1024;
/// Longest name of a tool.
const NAME: usize = 256;

/// A tool that the model may call.
#[derive(ToSchema)]
#[allow(dead_code, reason = "for the OpenAPI document: templates get tools as they came")]
pub struct Tool {
    /// `function`: other kinds are refused.
    #[schema(rename = "type", pattern = "^function$")]
    kind: String,
    /// What can be called.
    function: ToolFunction,
}

/// A function that can be called.
#[derive(ToSchema)]
#[allow(dead_code, reason = "for the OpenAPI document: templates get tools as they came")]
struct ToolFunction {
    /// Its name.
    #[schema(min_length = 1, max_length = 256)]
    name: String,
    /// What it is for.
    description: Option<String>,
    /// Its arguments, as a JSON schema.
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
}

/// What a request asks for, as it came.
pub struct Asked<'a> {
    /// `tools`.
    pub tools: Option<&'a [Value]>,
    /// `tool_choice`.
    pub choice: Option<&'a Value>,
    /// `parallel_tool_calls`.
    pub parallel: Option<bool>,
    /// The template of the request, where it has one of its own.
    pub template: Option<&'a str>,
}

/// Whether the model may or must call tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// It does not.
    None,
    /// It may.
    Auto,
    /// It must call one.
    Required,
    /// It must call this one.
    Named(String),
}

/// The tools of a request, and how the answer is read.
#[derive(Debug, Clone, Default)]
pub struct Tools {
    rendered: Option<Vec<Value>>,
    parser: Option<ToolParser>,
    sequential: bool,
    /// What the answer must be, where it must be a call.
    structure: Option<Structure>,
    /// One function was named.
    named: bool,
}

impl Tools {
    /// Checks what a request says of tools.
    pub fn of(app: &App, asked: &Asked<'_>) -> ApiResult<Self> {
        // An empty list is what clients send that have none.
        let tools = asked.tools.filter(|tools| !tools.is_empty());
        let names =
            tools.unwrap_or_default().iter().enumerate().map(|(i, t)| name(t, i)).collect::<ApiResult<Vec<_>>>()?;
        if names.len() > MOST {
            let why = format!("there are {} of them, and a request may have {MOST}", names.len());
            return Err(ApiError::bad("`tools`", why, "give fewer").param("tools"));
        }
        let choice = choice(asked.choice, &names)?;
        let Some(tools) = tools else { return Ok(Self::default()) };
        let parser = match choice {
            Choice::None => None,
            Choice::Auto => Some(parser(app, asked.template)?),
            // Held to this form, whatever the model would write by itself.
            Choice::Required | Choice::Named(_) => Some(ToolParser::Hermes),
        };
        let sequential = asked.parallel == Some(false);
        let structure = held(&choice, tools, sequential);
        let hidden = choice == Choice::None && app.options.exclude_tools_when_tool_choice_none;
        let rendered = (!hidden).then(|| tools.to_vec());
        Ok(Self { rendered, parser, sequential, structure, named: matches!(choice, Choice::Named(_)) })
    }

    /// As if a request had tools whose calls have this form.
    #[cfg(test)]
    pub(super) fn listening(parser: ToolParser, parallel: bool) -> Self {
        Self { parser: Some(parser), sequential: !parallel, ..Self::default() }
    }

    /// The tools as the template gets them.
    pub fn rendered(&self) -> Option<Vec<Value>> {
        self.rendered.clone()
    }

    /// The form of calls in the answer; none where it is text.
    pub fn parser(&self) -> Option<ToolParser> {
        self.parser
    }

    /// What the answer must be, where it must be a call.
    pub fn structure(&self) -> Option<&Structure> {
        self.structure.as_ref()
    }

    /// Why an answer with calls ended: where one function was named, OpenAI's answers say `stop`.
    pub fn reason(&self) -> &'static str {
        if self.named { "stop" } else { "tool_calls" }
    }

    /// Whether the answer may have more than one call.
    pub fn parallel(&self) -> bool {
        !self.sequential
    }
}

/// The structure of an answer that must be a call: in the form of Hermes, by the schema of the function's parameters.
fn held(choice: &Choice, tools: &[Value], sequential: bool) -> Option<Structure> {
    let (wanted, several) = match choice {
        Choice::None | Choice::Auto => return None,
        Choice::Required => (None, !sequential),
        Choice::Named(name) => (Some(name), false),
    };
    let functions = tools.iter().map(|tool| &tool["function"]);
    let functions = functions.filter(|function| wanted.is_none_or(|name| function["name"] == name.as_str()));
    let schemas = functions.map(call).collect();
    let (before, after) = ("<tool_call>\n".to_owned(), "\n</tool_call>".to_owned());
    Some(Structure::new("tools", Source::Enclosed(Enclosed { before, schemas, after, several })))
}

/// The schema of a call of this function. What its parameters refer to by `#/$defs/…` moves with them.
fn call(function: &Value) -> Value {
    let mut parameters = function.get("parameters").and_then(Value::as_object).cloned().unwrap_or_default();
    let moved: Vec<(&str, Option<Value>)> =
        ["$defs", "definitions"].map(|name| (name, parameters.shift_remove(name))).into();
    parameters.entry("type").or_insert_with(|| json!("object"));
    let mut call = json!({
        "type": "object",
        "properties": { "name": { "const": function["name"] }, "arguments": parameters },
        "required": ["name", "arguments"],
        "additionalProperties": false,
    });
    for (name, definitions) in moved {
        if let Some(definitions) = definitions {
            call[name] = definitions;
        }
    }
    call
}

/// The form of the calls that the model will write.
fn parser(app: &App, template: Option<&str>) -> ApiResult<ToolParser> {
    let template = template.or_else(|| app.tokenizer.template(true)).unwrap_or_default();
    app.options.tool_parser.or_else(|| ToolParser::of_template(template)).ok_or_else(|| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            "unsupported_parameter",
            "`tools` with `tool_choice` auto",
            "in which form this model calls tools is not known: its chat template teaches none that this server reads",
            format!(
                "start the server with --tool-call-parser ({}), or set `tool_choice` to \"none\"",
                ToolParser::names()
            ),
        )
        .param("tool_choice")
    })
}

/// The name of a tool, which must be a function.
fn name(tool: &Value, at: usize) -> ApiResult<String> {
    let wrong = |field: &str, why: String| {
        let field = format!("tools[{at}]{field}");
        let next = "give {\"type\": \"function\", \"function\": {\"name\", \"description\", \"parameters\"}}";
        Err(ApiError::bad(format!("`{field}`"), why, next).param(field))
    };
    match tool.get("type") {
        Some(kind) if kind == "function" => {}
        Some(kind) => {
            return wrong(".type", format!("it is {}, and only `function` is known", clean(&kind.to_string(), 60)));
        }
        None => return wrong(".type", "it is missing".to_owned()),
    }
    let Some(function) = tool.get("function").filter(|function| function.is_object()) else {
        return wrong(".function", "it is missing, or no object".to_owned());
    };
    let name = match function.get("name").and_then(Value::as_str) {
        Some(name) if (1..=NAME).contains(&name.len()) => name.to_owned(),
        Some(name) => {
            return wrong(".function.name", format!("it has {} bytes, and a name has from 1 to {NAME}", name.len()));
        }
        None => return wrong(".function.name", "it is missing, or no text".to_owned()),
    };
    match function.get("parameters") {
        None | Some(Value::Null | Value::Object(_)) => Ok(name),
        Some(_) => wrong(".function.parameters", "it is no object: parameters are a JSON schema".to_owned()),
    }
}

/// `tool_choice`, which is auto where there are tools and it is absent.
fn choice(given: Option<&Value>, tools: &[String]) -> ApiResult<Choice> {
    let wrong = |why: String| {
        let next = "give \"none\", \"auto\", \"required\", or {\"type\": \"function\", \"function\": {\"name\"}}";
        Err(ApiError::bad("`tool_choice`", why, next).param("tool_choice"))
    };
    let named = match given {
        None | Some(Value::Null) => return Ok(Choice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "none" => return Ok(Choice::None),
            "auto" => return Ok(Choice::Auto),
            "required" if tools.is_empty() => return wrong("it is required, and there are no `tools`".to_owned()),
            "required" => return Ok(Choice::Required),
            other => return wrong(format!("it is `{}`, which is no choice", clean(other, 60))),
        },
        Some(choice) if choice.get("type").is_some_and(|kind| kind == "function") => {
            choice.get("function").and_then(|f| f.get("name")).or_else(|| choice.get("name")).and_then(Value::as_str)
        }
        Some(_) => None,
    };
    match named {
        Some(name) if tools.iter().any(|tool| tool == name) => Ok(Choice::Named(name.to_owned())),
        Some(name) => wrong(format!("it names the function `{}`, which `tools` does not have", clean(name, 60))),
        None => wrong("it is neither a word nor a function".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn choices_are_read_as_openai_writes_them() {
        let tools = ["f".to_owned()];
        let named = json!({ "type": "function", "function": { "name": "f" } });
        for (given, wanted) in [
            (None, Choice::Auto),
            (Some(json!(null)), Choice::Auto),
            (Some(json!("none")), Choice::None),
            (Some(json!("auto")), Choice::Auto),
            (Some(json!("required")), Choice::Required),
            (Some(named), Choice::Named("f".to_owned())),
        ] {
            assert_eq!(choice(given.as_ref(), &tools).unwrap(), wanted);
        }
        let other = json!({ "type": "function", "function": { "name": "g" } });
        for wrong in [json!("any"), json!(7), json!({ "type": "function" }), other] {
            let error = choice(Some(&wrong), &tools).unwrap_err();
            assert!(error.message().contains("`tool_choice`"), "{error}");
        }
        assert!(choice(Some(&json!("required")), &[]).is_err());
    }

    #[test]
    fn tools_that_no_template_could_write_are_refused_by_place() {
        let good = json!({ "type": "function", "function": { "name": "f", "parameters": { "type": "object" } } });
        assert_eq!(name(&good, 0).unwrap(), "f");
        for (wrong, place) in [
            (json!(7), "tools[3].type"),
            (json!({ "type": "custom" }), "tools[3].type"),
            (json!({ "type": "function" }), "tools[3].function"),
            (json!({ "type": "function", "function": {} }), "tools[3].function.name"),
            (json!({ "type": "function", "function": { "name": "" } }), "tools[3].function.name"),
            (
                json!({ "type": "function", "function": { "name": "f", "parameters": [] } }),
                "tools[3].function.parameters",
            ),
        ] {
            let error = name(&wrong, 3).unwrap_err();
            assert!(error.message().contains(&format!("`{place}`")), "{error}");
        }
    }

    #[test]
    fn a_choice_that_binds_the_model_is_a_structure() {
        let tool = |name: &str| {
            json!({ "type": "function", "function": { "name": name, "parameters": {
            "properties": { "at": { "$ref": "#/$defs/p" } }, "$defs": { "p": { "type": "integer" } } } } })
        };
        let tools = [tool("f"), tool("g")];
        let lark = |choice: Choice, sequential: bool| {
            let structure = held(&choice, &tools, sequential).unwrap().structured_outputs();
            structure["grammar"].as_str().unwrap().to_owned()
        };
        let all = lark(Choice::Required, false);
        assert!(all.contains("\"f\"") && all.contains("\"g\"") && all.contains("one)*"), "{all}");
        assert!(!lark(Choice::Required, true).contains("one)*"));
        let one = lark(Choice::Named("g".to_owned()), false);
        assert!(!one.contains("\"f\"") && one.contains("\"g\"") && !one.contains("one)*"), "{one}");
        let call = call(&tools[0]["function"]);
        assert_eq!(call["$defs"]["p"]["type"], "integer");
        assert_eq!(call["properties"]["arguments"]["type"], "object");
        assert!(held(&Choice::Auto, &tools, false).is_none());
    }
}
