//! The turns of a conversation as OpenAI's API has them.

use patchhost_runtime::tokenizer::Message;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{OneOfBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::base::text::clean;
use crate::serve::error::{ApiError, ApiResult};

/// Longest name of a role.
const ROLE: usize = 64;

/// One turn. Templates may read more fields than these: all are handed to them.
#[derive(Debug, Clone, Default, ToSchema)]
pub struct ChatMessage {
    /// Who speaks: `system`, `developer`, `user`, `assistant`, `tool`, or what else the chat template knows.
    #[schema(min_length = 1, max_length = 64)]
    pub role: String,
    /// What is said; an assistant that calls tools may say nothing.
    pub content: Option<Content>,
    /// Who of several that have the role; of a `tool`, its name.
    pub name: Option<String>,
    /// What an assistant thought before it spoke.
    pub reasoning_content: Option<String>,
    /// The newer name of `reasoning_content`.
    pub reasoning: Option<String>,
    /// The tools that an assistant called.
    #[schema(value_type = Option<Vec<EarlierCall>>)]
    pub tool_calls: Option<Vec<Value>>,
    /// The call that a `tool` answers.
    pub tool_call_id: Option<String>,
    /// All fields, in the order in which they came.
    #[schema(ignore)]
    fields: Map<String, Value>,
    /// Names of fields that OpenAI's messages do not have.
    #[schema(ignore)]
    strange: Vec<String>,
}

/// A call of a tool that the model made before.
#[derive(ToSchema)]
#[allow(dead_code, reason = "for the OpenAPI document: calls are kept as they came")]
struct EarlierCall {
    /// Its id, which the answer names.
    id: Option<String>,
    /// `function`.
    #[schema(rename = "type", pattern = "^function$")]
    kind: Option<String>,
    /// What was called.
    function: EarlierFunction,
}

/// A function with its arguments.
#[derive(ToSchema)]
#[allow(dead_code, reason = "for the OpenAPI document: calls are kept as they came")]
struct EarlierFunction {
    /// Its name.
    name: String,
    /// Its arguments.
    arguments: Option<EarlierArguments>,
}

/// Arguments of a call: a JSON text, as OpenAI has it, or the object itself.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "for the OpenAPI document: calls are kept as they came")]
enum EarlierArguments {
    Text(String),
    Object(Map<String, Value>),
}

/// Not derived: fields are checked, and all of them are kept as they came.
impl<'de> Deserialize<'de> for ChatMessage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = ChatMessage;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a message: an object with a `role`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ChatMessage, A::Error> {
                let (mut message, mut role) = (ChatMessage::default(), None);
                while let Some(name) = map.next_key::<String>()? {
                    let value = match name.as_str() {
                        "role" => Value::from(role.insert(map.next_value::<String>()?).as_str()),
                        "content" => {
                            message.content = map.next_value()?;
                            message.content.as_ref().map_or(Value::Null, Content::json)
                        }
                        "name" => text(&mut map, &mut message.name)?,
                        "reasoning_content" => text(&mut map, &mut message.reasoning_content)?,
                        "reasoning" => text(&mut map, &mut message.reasoning)?,
                        "tool_call_id" => text(&mut map, &mut message.tool_call_id)?,
                        "tool_calls" => {
                            message.tool_calls = map.next_value()?;
                            Value::from(message.tool_calls.clone())
                        }
                        _ => {
                            message.strange.push(name.clone());
                            map.next_value()?
                        }
                    };
                    message.fields.insert(name, value);
                }
                message.role = role.ok_or_else(|| serde::de::Error::missing_field("role"))?;
                Ok(message)
            }
        }

        deserializer.deserialize_map(Reader)
    }
}

/// A field that is a text or null.
fn text<'de, A: MapAccess<'de>>(map: &mut A, place: &mut Option<String>) -> Result<Value, A::Error> {
    *place = map.next_value()?;
    Ok(place.as_deref().map_or(Value::Null, Value::from))
}

/// A text, or parts of one.
#[derive(Debug, Clone)]
pub enum Content {
    /// A text.
    Text(String),
    /// Parts of a text.
    Parts(Vec<ContentPart>),
}

/// Not derived as an untagged enum is: that reads a copy, and unknown fields of the parts would not be found.
impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Content;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string or a list of content parts")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_string()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> Result<Content, A::Error> {
                Deserialize::deserialize(SeqAccessDeserializer::new(parts)).map(Content::Parts)
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

impl PartialSchema for Content {
    fn schema() -> RefOr<Schema> {
        OneOfBuilder::new().item(String::schema()).item(Vec::<ContentPart>::schema()).into()
    }
}

impl ToSchema for Content {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        ContentPart::schemas(schemas);
    }
}

/// A part of a text.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct ContentPart {
    /// `text`: other kinds are refused.
    #[serde(rename = "type")]
    #[schema(pattern = "^text$")]
    pub kind: String,
    /// The text.
    pub text: Option<String>,
}

impl Content {
    /// The content as templates read it: a text, or a list of parts.
    fn json(&self) -> Value {
        match self {
            Self::Text(text) => Value::from(text.as_str()),
            Self::Parts(parts) => {
                let part = |part: &ContentPart| serde_json::json!({ "type": part.kind, "text": part.text });
                Value::from(parts.iter().map(part).collect::<Vec<_>>())
            }
        }
    }

    /// Bytes of its texts.
    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Parts(parts) => parts.iter().filter_map(|part| part.text.as_ref()).map(String::len).sum(),
        }
    }
}

impl ChatMessage {
    /// The turn as chat templates read it. `at` is its place in the conversation: errors name it.
    pub(super) fn message(&self, at: usize) -> ApiResult<Message> {
        let place = |field: &str| format!("messages[{at}].{field}");
        if self.role.is_empty() || self.role.len() > ROLE {
            let why = format!("it has {} bytes, and a role has from 1 to {ROLE}", self.role.len());
            return Err(ApiError::bad(format!("`{}`", place("role")), why, "give `user`, `assistant` or the like")
                .param(place("role")));
        }
        let asks = |value: &&Value| value.as_array().is_none_or(|list| !list.is_empty()) && !value.is_null();
        if self.fields.get("function_call").filter(asks).is_some() {
            return Err(ApiError::new(
                axum::http::StatusCode::BAD_REQUEST,
                "unsupported_parameter",
                format!("`{}`", place("function_call")),
                "it is the form that OpenAI had before tools",
                "send the call in `tool_calls`, and the answer as role `tool`",
            )
            .param(place("function_call")));
        }
        if self.fields.get("audio").filter(asks).is_some() {
            return Err(ApiError::unsupported(&place("audio"), "the model reads text only"));
        }
        let speaks = matches!(self.role.as_str(), "system" | "developer" | "user" | "tool" | "function");
        if self.content.is_none() && speaks {
            let field = place("content");
            return Err(ApiError::bad(format!("`{field}`"), "it is missing", "give a text").param(field));
        }
        if let Some(Content::Parts(parts)) = &self.content {
            parts.iter().enumerate().try_for_each(|(i, part)| part.check(at, i))?;
        }
        let mut calls = self.tool_calls.iter().flatten().enumerate();
        calls.try_for_each(|(i, call)| check_call(call, &place(&format!("tool_calls[{i}]"))))?;
        Ok(Message::from(self.fields.clone()))
    }

    /// Bytes of what is said.
    pub(super) fn bytes(&self) -> usize {
        self.content.as_ref().map_or(0, Content::bytes)
    }

    /// Names of fields that OpenAI's messages do not have: a template may know them.
    pub(super) fn strange(&self) -> &[String] {
        &self.strange
    }
}

/// Refuses a call that no template could write.
fn check_call(call: &Value, place: &str) -> ApiResult<()> {
    let wrong = |field: &str, why: String| {
        let field = format!("{place}{field}");
        let next = "give {\"id\", \"type\": \"function\", \"function\": {\"name\", \"arguments\"}}";
        Err(ApiError::bad(format!("`{field}`"), why, next).param(field))
    };
    if let Some(kind) = call.get("type").filter(|kind| !kind.is_null() && *kind != "function") {
        return wrong(".type", format!("it is {}, and only `function` is known", clean(&kind.to_string(), 60)));
    }
    let Some(function) = call.get("function").filter(|function| function.is_object()) else {
        return wrong(".function", "it is missing, or no object".to_owned());
    };
    if function.get("name").and_then(Value::as_str).is_none() {
        return wrong(".function.name", "it is missing, or no text".to_owned());
    }
    match function.get("arguments") {
        None | Some(Value::Null | Value::String(_) | Value::Object(_)) => Ok(()),
        Some(_) => wrong(".function.arguments", "it is neither a JSON text nor an object".to_owned()),
    }
}

impl ContentPart {
    fn check(&self, message: usize, at: usize) -> ApiResult<()> {
        let field = format!("messages[{message}].content[{at}]");
        if self.kind != "text" {
            return Err(ApiError::unsupported(
                &field,
                format!("its type is `{}`, and the model reads text only", clean(&self.kind, 60)),
            ));
        }
        match &self.text {
            Some(_) => Ok(()),
            None => Err(ApiError::bad(format!("`{field}`"), "its `text` is missing", "give the text").param(field)),
        }
    }
}
