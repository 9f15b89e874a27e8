//! Fields of a request that this server does not know. They are ignored, as vLLM, SGLang and TRL do, and never silently: the
//! answer names them in a header, with the field that was probably meant, and the log once.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use axum::extract::{FromRequestParts, MatchedPath, Request};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use patchhost_runtime::words::nearest;
use serde_ignored::Path;
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayItems, Schema};

/// The header of answers that names the fields of the request that were ignored.
pub const IGNORED: HeaderName = HeaderName::from_static("x-patchhost-ignored-fields");

/// Most fields that a header names.
const NAMED: usize = 16;
/// Most characters of a name in it.
const NAME: usize = 80;
/// Most fields that the log remembers having said.
const LOGGED: usize = 1000;
/// How deep in a body fields are known.
const DEPTH: usize = 10;
/// Shorter names are near to everything: nothing is guessed for them.
const SHORTEST_GUESS: usize = 4;

/// The fields of one request that nothing reads: an extension of the request, filled by whoever reads a part of it.
#[derive(Debug, Clone, Default)]
pub struct Ignored(Arc<Mutex<Fields>>);

#[derive(Debug, Default)]
struct Fields {
    /// Each with what was probably meant.
    named: Vec<(String, Option<String>)>,
    /// How many there are beside these.
    more: usize,
}

impl Ignored {
    /// That of the request with these extensions.
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or_default()
    }

    fn fields(&self) -> MutexGuard<'_, Fields> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a field; `meant` says what was probably meant.
    pub fn note(&self, name: impl FnOnce() -> String, meant: impl FnOnce(&str) -> Option<String>) {
        let mut fields = self.fields();
        if fields.named.len() >= NAMED {
            fields.more += 1;
            return;
        }
        let name = name();
        if !fields.named.iter().any(|(named, _)| *named == name) {
            let meant = meant(&name);
            fields.named.push((name, meant));
        }
    }

    /// As the header says it; none where everything was known.
    fn header(&self) -> Option<HeaderValue> {
        let fields = self.fields();
        let mut all: Vec<String> = fields.named.iter().map(said).collect();
        if fields.more > 0 {
            all.push(format!("and {} more", fields.more));
        }
        // `plain` leaves nothing that a header cannot hold.
        if all.is_empty() { None } else { HeaderValue::from_str(&all.join(", ")).ok() }
    }

    /// Says in the log what it has not said before.
    fn log(&self, route: &str) {
        static SAID: LazyLock<Mutex<BTreeSet<String>>> = LazyLock::new(Mutex::default);
        for field in self.fields().named.iter().map(said) {
            let mut before = SAID.lock().unwrap_or_else(PoisonError::into_inner);
            if before.len() >= LOGGED || !before.insert(format!("{route} {field}")) {
                continue;
            }
            tracing::warn!(
                target: "patchhost::request",
                %route,
                %field,
                "a request has a field that this server does not know; it was ignored (this is said once)"
            );
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Ignored {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.extensions))
    }
}

/// Says in the answer to a request, whatever it is, which of its fields were ignored.
pub async fn say(route: Option<MatchedPath>, mut request: Request, next: Next) -> Response {
    let ignored = Ignored::default();
    request.extensions_mut().insert(ignored.clone());
    let mut response = next.run(request).await;
    if let Some(value) = ignored.header() {
        response.headers_mut().insert(IGNORED, value);
        ignored.log(route.as_ref().map_or("(none)", MatchedPath::as_str));
    }
    response
}

fn said((name, meant): &(String, Option<String>)) -> String {
    match meant {
        Some(meant) => format!("{} (did you mean {}?)", plain(name), plain(meant)),
        None => plain(name),
    }
}

/// A name as a header can hold it, in which commas and parentheses stand between names.
fn plain(name: &str) -> String {
    let odd = |c: char| !c.is_ascii_graphic() || matches!(c, ',' | '(' | ')' | '"' | '\\');
    let mut out: String = name.chars().take(NAME).map(|c| if odd(c) { '?' } else { c }).collect();
    if name.chars().nth(NAME).is_some() {
        out.push_str("...");
    }
    out
}

/// A place in a body: `sampling_params.n`; all entries of a list are one place, `messages[].name`.
pub fn place(path: &Path<'_>) -> String {
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, .. } => format!("{}[]", place(parent)),
        Path::Map { parent, key } => match place(parent) {
            above if above.is_empty() => key.clone(),
            above => format!("{above}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => place(parent),
    }
}

/// All places of a body that mean something, as its part of the OpenAPI document names them.
pub struct Known {
    places: Vec<String>,
    /// The type has the fields of another one, which serde reads as a map: it does not say what it ignores.
    pub flattened: bool,
}

impl Known {
    /// Those of a type.
    pub fn of<T: ToSchema>() -> Self {
        let mut parts = vec![];
        T::schemas(&mut parts);
        let (schema, mut places) = (T::schema(), vec![]);
        walk(&schema, &parts, "", DEPTH, &mut places);
        Self { places, flattened: matches!(schema, RefOr::T(Schema::AllOf(_))) }
    }

    /// Whether this is the place of a field.
    pub fn has(&self, place: &str) -> bool {
        self.places.iter().any(|known| known == place)
    }

    /// The field that an unknown one probably meant: with a like name beside it, else of that name elsewhere, else with a
    /// like name elsewhere.
    pub fn meant(&self, place: &str) -> Option<String> {
        let (above, name) = split(place);
        let guess = name.len() >= SHORTEST_GUESS;
        let beside: Vec<&str> = self.places.iter().map(|p| split(p)).filter(|p| p.0 == above).map(|p| p.1).collect();
        let near = || nearest(name, beside).filter(|_| guess);
        if let Some(near) = near() {
            return Some(if above.is_empty() { near.to_string() } else { format!("{above}.{near}") });
        }
        let elsewhere = |wanted: &str| self.places.iter().find(|p| split(p).1 == wanted).cloned();
        elsewhere(name).or_else(|| {
            let near = nearest(name, self.places.iter().map(|p| split(p).1)).filter(|_| guess);
            near.and_then(elsewhere)
        })
    }
}

/// What a field is in, and its name.
fn split(place: &str) -> (&str, &str) {
    place.rsplit_once('.').unwrap_or(("", place))
}

fn walk(schema: &RefOr<Schema>, parts: &[(String, RefOr<Schema>)], at: &str, depth: usize, places: &mut Vec<String>) {
    let Some(depth) = depth.checked_sub(1) else { return };
    let mut each = |items: &[RefOr<Schema>]| items.iter().for_each(|item| walk(item, parts, at, depth + 1, places));
    match schema {
        RefOr::Ref(to) => {
            let name = to.ref_location.rsplit('/').next().unwrap_or_default();
            if let Some((_, part)) = parts.iter().find(|(part, _)| part == name) {
                walk(part, parts, at, depth, places);
            }
        }
        RefOr::T(Schema::Object(object)) => {
            for (name, property) in &object.properties {
                let place = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                walk(property, parts, &place, depth, places);
                places.push(place);
            }
        }
        RefOr::T(Schema::Array(array)) => {
            if let ArrayItems::RefOrSchema(items) = &array.items {
                walk(items, parts, &format!("{at}[]"), depth, places);
            }
        }
        RefOr::T(Schema::OneOf(all)) => each(&all.items),
        RefOr::T(Schema::AllOf(all)) => each(&all.items),
        RefOr::T(Schema::AnyOf(all)) => each(&all.items),
        RefOr::T(_) => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, dead_code)]
    use serde::Deserialize;

    use super::*;
    use crate::serve::json::parse_watched;

    #[derive(Debug, Deserialize, ToSchema)]
    struct Inner {
        temperature: Option<f32>,
        max_new_tokens: Option<u32>,
    }

    #[derive(Debug, Deserialize, ToSchema)]
    struct Item {
        content: String,
    }

    #[derive(Debug, Deserialize, ToSchema)]
    struct Body {
        text: Option<String>,
        n: Option<u32>,
        sampling_params: Option<Inner>,
        items: Option<Vec<Item>>,
        #[schema(ignore)]
        refused: Option<serde_json::Value>,
    }

    #[derive(Debug, Deserialize, ToSchema)]
    struct Flat {
        name: String,
        #[serde(flatten)]
        #[schema(inline)]
        inner: Inner,
    }

    fn header<T: serde::de::DeserializeOwned + ToSchema>(body: &str) -> Option<String> {
        let ignored = Ignored::default();
        parse_watched::<T>(body.as_bytes(), &ignored).unwrap();
        ignored.header().map(|value| value.to_str().unwrap().to_string())
    }

    #[test]
    fn what_is_known_is_not_said() {
        let all = r#"{"text": "a", "n": 1, "refused": null, "items": [{"content": "x"}],
            "sampling_params": {"temperature": 1, "max_new_tokens": 2}}"#;
        assert_eq!(header::<Body>(all), None);
        assert_eq!(header::<Flat>(r#"{"name": "a", "temperature": 1}"#), None);
    }

    #[test]
    fn unknown_fields_are_named_wherever_they_stand() {
        let said = |body: &str| header::<Body>(body).unwrap();
        assert_eq!(said(r#"{"txet": "a"}"#), "txet (did you mean text?)");
        assert_eq!(said(r#"{"whatever": {"x": 1}}"#), "whatever");
        assert_eq!(said(r#"{"x": null}"#), "x", "nothing is guessed for a name of one letter");
        assert_eq!(
            said(r#"{"sampling_params": {"temprature": 1}}"#),
            "sampling_params.temprature (did you mean sampling_params.temperature?)"
        );
        // At the wrong place, and there misspelled.
        assert_eq!(said(r#"{"temperature": 1}"#), "temperature (did you mean sampling_params.temperature?)");
        assert_eq!(said(r#"{"max_new_token": 1}"#), "max_new_token (did you mean sampling_params.max_new_tokens?)");
        // Once for all entries of a list.
        let items = r#"{"items": [{"content": "a", "nmae": 1}, {"content": "b", "nmae": 2, "other": 3}]}"#;
        assert_eq!(said(items), "items[].nmae, items[].other");
        assert_eq!(
            header::<Flat>(r#"{"name": "a", "temprature": 1, "more": 2}"#).unwrap(),
            "temprature (did you mean temperature?), more"
        );
    }

    #[test]
    fn what_a_header_holds_is_bounded_and_plain() {
        let many: Vec<String> = (0..100).map(|i| format!("\"unknown_{i:03}\": 0")).collect();
        let said = header::<Body>(&format!("{{{}}}", many.join(", "))).unwrap();
        assert!(said.ends_with("and 84 more") && said.matches("unknown").count() == NAMED, "{said}");
        let said = header::<Body>(r#"{"a\r\nset-cookie: b": 1, "größe, (x)": 2}"#).unwrap();
        assert_eq!(said, "a??set-cookie:?b, gr??e???x?");
        let long = header::<Body>(&format!("{{\"{}\": 1}}", "y".repeat(5000))).unwrap();
        assert_eq!(long.len(), NAME + 3);
    }
}
