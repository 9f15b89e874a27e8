//! What a request says about all tensors of its update: whether they are all there are, and what their names become. Every
//! dialect takes it in the same way: in the query (`?complete=false`, `?rename=FROM=TO`, again for each rename), as a header
//! (`X-Complete`, `X-Rename`), or as a field of what is JSON.

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use patchhost_runtime::error::Refusal;
use patchhost_runtime::refit::Begin;
use patchhost_runtime::rename::{Rename, Renames};
use serde_json::{Map, Value};

use crate::base::text::clean;
use crate::serve::error::{ApiError, ApiResult};

/// The names of the fields, in a query and in JSON.
const COMPLETE: &str = "complete";
const RENAME: &str = "rename";

/// What the URL of every request of an update can say.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "for the OpenAPI document: the query is read by the extractors of each")]
pub struct OfUpdate {
    /// False where only a part of the tensors comes: the rest stays as it is live. Also the header `X-Complete`.
    complete: Option<bool>,
    /// FROM=TO: what the names of the tensors become; again for each. Also the header `X-Rename`.
    rename: Option<String>,
    /// Take tensors that come less precise than the model is declared. Also the header `X-Allow-Narrowing`.
    allow_narrowing: Option<bool>,
    /// Which update is meant, as begin answered it. Also the header `X-Update-Id`.
    update_id: Option<String>,
}

/// What a request says about the tensors of its update.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms {
    /// Whether all tensors come; where they do not, the rest stays as it is.
    pub complete: Option<bool>,
    /// What the sender's names become.
    pub renames: Renames,
}

impl Terms {
    /// What the fields of a JSON object say.
    pub fn of_fields(fields: &Map<String, Value>) -> ApiResult<Self> {
        Self::of(fields.get(COMPLETE), fields.get(RENAME))
    }

    /// What both fields say; `null` says nothing.
    pub fn of(complete: Option<&Value>, rename: Option<&Value>) -> ApiResult<Self> {
        let complete = match complete {
            None | Some(Value::Null) => None,
            Some(Value::Bool(complete)) => Some(*complete),
            Some(Value::String(text)) => Some(truth(text)?),
            Some(other) => return Err(neither(&other.to_string())),
        };
        let renames = rename.filter(|value| !value.is_null()).map(renames).transpose()?.unwrap_or_default();
        Ok(Self { complete, renames })
    }

    /// The same with what is said in another place, which counts where both say whether the update is complete.
    pub fn and(self, other: Self) -> ApiResult<Self> {
        // A client that says the same twice renames once.
        let renames = match self.renames == other.renames {
            true => other.renames,
            false => self.renames.then(&other.renames).map_err(refused)?,
        };
        Ok(Self { complete: other.complete.or(self.complete), renames })
    }

    /// How an update begins that says this.
    pub fn begin(self, begin: Begin) -> Begin {
        Begin { complete: self.complete.or(begin.complete), renames: self.renames, ..begin }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Terms {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> ApiResult<Self> {
        let query = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri).map(|Query(all)| all).unwrap_or_default();
        let header = |name: &str| parts.headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        let said = |field: &str, name: &str| -> Vec<String> {
            let of_query: Vec<String> =
                query.iter().filter(|(f, _)| f == field).map(|(_, value)| value.clone()).collect();
            if of_query.is_empty() { header(name).into_iter().collect() } else { of_query }
        };
        let mut terms = Self::default();
        for text in said(COMPLETE, "x-complete") {
            terms.complete = Some(truth(&text)?);
        }
        for text in said(RENAME, "x-rename") {
            // As JSON where it looks like that: `update_info` in a query is JSON, too.
            let value = serde_json::from_str(&text).ok().filter(Value::is_object).unwrap_or(Value::String(text));
            terms.renames = terms.renames.then(&renames(&value)?).map_err(refused)?;
        }
        Ok(terms)
    }
}

fn truth(text: &str) -> ApiResult<bool> {
    match text {
        "true" | "True" | "1" => Ok(true),
        "false" | "False" | "0" => Ok(false),
        other => Err(neither(other)),
    }
}

fn neither(given: &str) -> ApiError {
    let why = format!("it is `{}`, which is neither true nor false", clean(given, 40));
    ApiError::bad("`complete`", why, "write false where the tensors that do not come shall stay, or leave it out")
        .param(COMPLETE)
}

/// An object of FROM and TO, a text FROM=TO, or a list of such texts.
fn renames(value: &Value) -> ApiResult<Renames> {
    let text = |value: &Value| match value {
        Value::String(text) => Rename::parse(text).map_err(refused),
        _ => Err(unreadable()),
    };
    let all: Vec<Rename> = match value {
        Value::Object(map) => {
            let one = |(from, to): (&String, &Value)| match to {
                Value::String(to) => Rename::new(from, to).map_err(refused),
                _ => Err(unreadable()),
            };
            map.iter().map(one).collect::<ApiResult<_>>()?
        }
        Value::Array(list) => list.iter().map(text).collect::<ApiResult<_>>()?,
        other => vec![text(other)?],
    };
    Renames::new(all).map_err(refused)
}

fn unreadable() -> ApiError {
    let next = "write {\"FROM\": \"TO\"}, for example {\"_orig_mod.\": \"\"}, or ?rename=FROM=TO in the URL";
    ApiError::bad("`rename`", "it is neither an object of texts nor a text FROM=TO", next).param(RENAME)
}

fn refused(refusal: Refusal) -> ApiError {
    ApiError::bad(refusal.what, refusal.why, refusal.next).param(RENAME)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn of(fields: Value) -> ApiResult<Terms> {
        Terms::of_fields(fields.as_object().unwrap())
    }

    async fn of_uri(uri: &str, headers: &[(&str, &str)]) -> ApiResult<Terms> {
        let mut request = axum::http::Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Terms::from_request_parts(&mut request.body(()).unwrap().into_parts().0, &()).await
    }

    #[test]
    fn fields_say_it() {
        assert_eq!(of(json!({})).unwrap(), Terms::default());
        assert_eq!(of(json!({"complete": null, "rename": null})).unwrap(), Terms::default());
        assert_eq!(of(json!({"complete": false})).unwrap().complete, Some(false));
        let renames = of(json!({"rename": {"b.": "c.", "a.": "b."}})).unwrap().renames;
        assert_eq!(renames.apply("a.x").unwrap(), "b.x", "in the order of the fields");
        assert_eq!(of(json!({"rename": ["a.=b.", "b.=c."]})).unwrap().renames.apply("a.x").unwrap(), "c.x");
        for wrong in [
            json!({"complete": 2}),
            json!({"complete": "no"}),
            json!({"rename": 1}),
            json!({"rename": {"a": 1}}),
            json!({"rename": "abc"}),
            json!({"rename": {"": "x"}}),
        ] {
            assert!(of(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn urls_and_headers_say_the_same() {
        let query = of_uri("/x?complete=false&rename=a.=&rename=b.%3Dc.", &[]).await.unwrap();
        assert_eq!(
            (query.complete, query.renames.apply("a.b.x").unwrap().into_owned()),
            (Some(false), "c.x".to_string())
        );
        let json = of_uri("/x?rename=%7B%22a.%22%3A%22%22%7D", &[]).await.unwrap();
        let header = of_uri("/x", &[("X-Complete", "False"), ("X-Rename", "a.=")]).await.unwrap();
        assert_eq!((header.complete, &header.renames), (Some(false), &json.renames));
        assert!(of_uri("/x?complete=perhaps", &[]).await.is_err());
        // Said twice, it is done once; the body has the last word.
        let both = header.clone().and(Terms { complete: Some(true), ..header.clone() }).unwrap();
        assert_eq!((both.complete, both.renames), (Some(true), header.renames));
    }
}
