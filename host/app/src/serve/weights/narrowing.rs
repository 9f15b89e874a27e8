//! Whether a sender wants to send tensors that are less precise than the model is declared: every endpoint of an update takes
//! this in the same way, as `?allow_narrowing=true` or as a header, beside the field of those that take JSON.

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use std::collections::HashMap;

use crate::base::text::clean;
use crate::serve::error::{ApiError, ApiResult};

/// The name in a query and in JSON.
pub const FIELD: &str = "allow_narrowing";
/// The header, for clients that build the URL themselves.
const HEADER: &str = "x-allow-narrowing";

/// What the URL or a header says about narrowing.
#[derive(Debug, Clone, Copy)]
pub struct Narrowing(bool);

impl Narrowing {
    /// Whether it is allowed here, or by a field of the body.
    pub fn allowed(self, field: bool) -> bool {
        self.0 || field
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Narrowing {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> ApiResult<Self> {
        let query = Query::<HashMap<String, String>>::try_from_uri(&parts.uri).ok();
        let of_query = query.as_ref().and_then(|q| q.get(FIELD)).map(String::as_str);
        let of_header = parts.headers.get(HEADER).map(|v| v.to_str().unwrap_or("?"));
        match of_query.or(of_header) {
            None | Some("false" | "False" | "0") => Ok(Self(false)),
            Some("true" | "True" | "1") => Ok(Self(true)),
            Some(other) => {
                let why = format!("it is `{}`, which is neither true nor false", clean(other, 40));
                Err(ApiError::bad("`allow_narrowing`", why, "write ?allow_narrowing=true, or leave it out")
                    .param(FIELD))
            }
        }
    }
}
