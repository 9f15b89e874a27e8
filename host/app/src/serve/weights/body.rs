//! Bodies of the endpoints that take tensors: in any form that is not a pickle, with what the URL and the headers say
//! about them.

use std::collections::HashMap;

use axum::body::{Bytes, HttpBody as _};
use axum::extract::{Query, Request};
use axum::http::{HeaderMap, StatusCode, header};
use patchhost_runtime::checkpoint::stated_size;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::piece::frame_terms;
use super::roots::Roots;
use super::update::RlState;
use super::{
    BucketEntry, BucketMeta, Piece, Terms, UpdateInfo, base64_bytes, bucket, framed, packed, pickle, safetensors,
};
use crate::base::text::clean;
use crate::serve::error::{ApiError, ApiResult};
use crate::serve::intake::{Limit, PATIENCE, Read, begins_as_json, read};
use crate::serve::json::parse;

/// A body that may hold tensors, with what the URL and the headers say about it.
pub struct Payload {
    /// The query of the URL.
    pub query: HashMap<String, String>,
    /// The body, by its content type.
    pub content: Content,
    /// Most bytes that are read of a file which the body names.
    limit: usize,
    /// Its place among the bodies in memory, until its tensors are where they belong.
    held: Option<OwnedSemaphorePermit>,
}

/// The body itself, told apart by its content type.
pub enum Content {
    /// There is no body.
    Empty,
    /// JSON: what it means is the endpoint's.
    Json(Value),
    /// The bytes of a safetensors file.
    Safetensors(Bytes),
    /// Eight bytes of length, JSON of that length, raw bytes.
    Framed(Bytes),
    /// Raw bytes that the URL or a header describes.
    Raw(Vec<UpdateInfo>, Bytes),
}

/// How a body is to be read, as its content type says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Json,
    Bucket,
    Bytes,
}

impl Kind {
    fn of(headers: &HeaderMap) -> ApiResult<Self> {
        let given = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let mime = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match mime.as_str() {
            "application/json" => Ok(Self::Json),
            "application/x-bucket" => Ok(Self::Bucket),
            "application/octet-stream" | "application/x-safetensors" | "application/vnd.safetensors" | "" => {
                Ok(Self::Bytes)
            }
            other => Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "the request's content type",
                format!("it is `{}`", clean(other, 100)),
                "send application/json, application/x-safetensors (or octet-stream), or application/x-bucket",
            )),
        }
    }
}

/// What the bytes are called in messages.
const BODY: &str = "the request's body";
/// So many bytes tell a pickle from a safetensors file.
const HEAD: usize = 16;

impl Payload {
    /// Reads a body that may hold tensors, no more of it than the model can take. Bytes that cannot be what they should be
    /// are refused when the first of them came.
    pub async fn read(request: Request, rl: &RlState) -> ApiResult<Self> {
        let (parts, body) = request.into_parts();
        let query = Query::try_from_uri(&parts.uri).map(|Query(q)| q).map_err(|e| {
            ApiError::bad("the query of the URL", clean(&e.to_string(), 200), "write it as name=value&…")
        })?;
        let kind = Kind::of(&parts.headers)?;
        let tensors = rl.bound();
        // Base64 makes four bytes of three.
        let all = tensors.saturating_add(tensors / 3 + 4);
        let most = if kind == Kind::Json { all } else { tensors };
        let next = match most > rl.max_body {
            true => "send it in several requests, or start the server with a larger --max-weights-body",
            false => "send the tensors of this model only, in several requests: more does not fit it",
        };
        let limit =
            Limit { bytes: most.min(rl.max_body), all, room: &rl.uploads, patience: PATIENCE, next: next.to_string() };
        let declared = body.size_hint().exact();
        let is_file = kind == Kind::Bytes && !is_described(&parts.headers, &query);
        let read = read(body, &limit, |came| match kind {
            Kind::Json => begins_as_json(came),
            Kind::Bytes if is_file => looks_like_a_file(came, declared, limit.bytes),
            Kind::Bytes | Kind::Bucket if came.len() < HEAD => Ok(false),
            Kind::Bytes | Kind::Bucket => Ok(pickle::refuse(BODY, came).map(|()| true)?),
        });
        let Read { bytes, held } = read.await?;
        let content = content(kind, &parts.headers, &query, bytes)?;
        Ok(Self { query, content, limit: limit.bytes, held })
    }

    /// Its place among the bodies in memory: others may come when this is dropped.
    pub fn place(&mut self) -> Option<OwnedSemaphorePermit> {
        self.held.take()
    }
}

/// Whether the first bytes of a body are those of a safetensors file that fits.
fn looks_like_a_file(came: &[u8], declared: Option<u64>, limit: usize) -> ApiResult<bool> {
    if came.len() < HEAD {
        return Ok(false);
    }
    pickle::refuse(BODY, came)?;
    let Some(size) = stated_size(BODY, came)? else { return Ok(false) };
    let next = "send all of what safetensors.torch.save gives, and nothing else";
    match declared {
        Some(declared) if declared != size => {
            let why = format!("its header describes {size} bytes, and it has {declared}");
            Err(ApiError::bad(BODY, why, next))
        }
        _ if size > limit as u64 => {
            let why = format!("its header describes {size} bytes; this endpoint takes {limit} at most");
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", BODY, why, next))
        }
        _ => Ok(true),
    }
}

fn content(kind: Kind, headers: &HeaderMap, query: &HashMap<String, String>, bytes: Bytes) -> ApiResult<Content> {
    if bytes.is_empty() {
        return Ok(Content::Empty);
    }
    match kind {
        Kind::Json => parse(&bytes).map(Content::Json),
        Kind::Bucket => Ok(Content::Framed(bytes)),
        Kind::Bytes => match described(headers, query, bytes.len())? {
            Some(info) => Ok(Content::Raw(info, bytes)),
            None => Ok(Content::Safetensors(bytes)),
        },
    }
}

/// Whether the URL or a header says what raw bytes are.
fn is_described(headers: &HeaderMap, query: &HashMap<String, String>) -> bool {
    ["update_info", "bucket_meta", "name"].iter().any(|field| query.contains_key(*field))
        || ["x-update-info", "x-bucket-meta"].iter().any(|name| headers.contains_key(*name))
}

/// What the URL or a header says about raw bytes: `update_info`, `bucket_meta` (JSON), or `name`, `dtype`, `shape` and
/// `offset` of one tensor.
fn described(headers: &HeaderMap, query: &HashMap<String, String>, len: usize) -> ApiResult<Option<Vec<UpdateInfo>>> {
    let find = |field: &str, name: &str| {
        let header = headers.get(name).and_then(|v| v.to_str().ok());
        query.get(field).map(String::as_str).or(header).map(str::to_string)
    };
    if let Some(text) = find("update_info", "x-update-info") {
        return Ok(Some(UpdateInfo::all(parse(text.as_bytes())?)?));
    }
    if let Some(text) = find("bucket_meta", "x-bucket-meta") {
        let meta: BucketMeta = parse(text.as_bytes())?;
        return Ok(Some(vec![UpdateInfo { bucket_meta: Some(meta), ..UpdateInfo::default() }]));
    }
    let Some(name) = query.get("name") else { return Ok(None) };
    one(name, query, len).map(|meta| Some(vec![UpdateInfo { bucket_meta: Some(meta), ..UpdateInfo::default() }]))
}

/// One tensor, or a part of one, of which the body holds `len` bytes.
fn one(name: &str, query: &HashMap<String, String>, len: usize) -> ApiResult<BucketMeta> {
    let bad = |why: String| {
        let next = "write ?name=NAME&dtype=bfloat16&shape=64,32, and &offset=BYTE for a part of the tensor";
        ApiError::bad("the query of the URL", why, next)
    };
    let field = |field: &str| query.get(field).ok_or_else(|| bad(format!("it names a tensor without `{field}`")));
    let (kind, shape) = (field("dtype")?, field("shape")?);
    let dims = shape.trim_matches(['[', ']', '(', ')']).split(',').map(str::trim).filter(|d| !d.is_empty());
    let dims: Result<Vec<usize>, _> = dims.map(str::parse).collect();
    let dims = dims.map_err(|_| bad(format!("shape `{}` is no list of numbers", clean(shape, 100))))?;
    let start = query.get("offset").map(|o| o.parse()).transpose();
    let start = start.map_err(|_| bad("`offset` is no number of bytes".to_string()))?.unwrap_or_default();
    Ok(BucketMeta::List(vec![BucketEntry {
        name: name.to_string(),
        dtype: kind.clone(),
        shape: dims,
        offset: 0,
        nbytes: Some(len),
        tensor_offset: start,
    }]))
}

impl Payload {
    /// A field of the JSON body, or of the query.
    pub fn text(&self, field: &str) -> Option<String> {
        let json = match &self.content {
            Content::Json(Value::Object(map)) => map.get(field),
            _ => None,
        };
        match json {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Number(n)) => Some(n.to_string()),
            _ => self.query.get(field).cloned(),
        }
    }

    /// A yes or no of the JSON body, or of the query.
    pub fn flag(&self, field: &str, default: bool) -> bool {
        let json = match &self.content {
            Content::Json(Value::Object(map)) => map.get(field).and_then(Value::as_bool),
            _ => None,
        };
        let query = || self.query.get(field).map(|v| !matches!(v.as_str(), "false" | "False" | "0"));
        json.or_else(query).unwrap_or(default)
    }

    /// What the body says about all tensors of its update, beside them or in what describes them.
    pub fn terms(&self) -> ApiResult<Terms> {
        let of_infos = |infos: &[UpdateInfo]| {
            infos.iter().try_fold(Terms::default(), |terms, info| {
                terms.and(Terms::of(info.complete.as_ref(), info.rename.as_ref())?)
            })
        };
        match &self.content {
            Content::Json(Value::Object(fields)) => {
                let inner = match fields.get("update_info") {
                    Some(Value::Array(list)) => list.as_slice(),
                    Some(one) => std::slice::from_ref(one),
                    None => &[],
                };
                let inner = inner.iter().filter_map(Value::as_object);
                inner.map(Terms::of_fields).try_fold(Terms::of_fields(fields)?, |terms, more| terms.and(more?))
            }
            Content::Raw(infos, _) => of_infos(infos),
            Content::Framed(bytes) => frame_terms(bytes),
            Content::Json(_) | Content::Safetensors(_) | Content::Empty => Ok(Terms::default()),
        }
    }

    /// The tensors. Files named in it are looked for in the roots.
    pub fn pieces(self, roots: &Roots) -> ApiResult<Vec<Piece>> {
        match self.content {
            Content::Empty => Err(ApiError::bad(
                BODY,
                "it is empty, and this endpoint takes tensors",
                "send safetensors bytes (Content-Type: application/octet-stream)",
            )),
            Content::Safetensors(bytes) => Ok(safetensors(BODY, bytes)?),
            Content::Framed(bytes) => Ok(framed(BODY, bytes)?),
            Content::Raw(infos, bytes) => {
                let mut infos = infos.into_iter();
                match (infos.next(), infos.next()) {
                    (Some(info), None) => raw(info, &bytes),
                    _ => Err(ApiError::bad(
                        "update_info",
                        "it is a list, and the body is one run of bytes",
                        "describe all tensors in one update_info",
                    )),
                }
            }
            Content::Json(value) => of_json(roots, self.limit, value),
        }
    }
}

/// vLLM's `update_info`, or its fields themselves.
fn of_json(roots: &Roots, limit: usize, value: Value) -> ApiResult<Vec<Piece>> {
    let inner = match value {
        Value::Object(mut map) if map.contains_key("update_info") => map.remove("update_info").unwrap_or_default(),
        other => other,
    };
    let mut pieces = Vec::new();
    for info in UpdateInfo::all(inner)? {
        pieces.extend(of_info(roots, limit, info)?);
    }
    Ok(pieces)
}

fn of_info(roots: &Roots, limit: usize, mut info: UpdateInfo) -> ApiResult<Vec<Piece>> {
    let describes = info.describes();
    match (info.data.take(), info.safetensors.take(), info.path.take()) {
        (Some(data), None, None) if describes => raw(info, &base64_bytes("`data`", &data)?),
        (None, Some(text), None) if !describes => {
            Ok(safetensors("`safetensors`", base64_bytes("`safetensors`", &text)?)?)
        }
        (None, None, Some(path)) if describes => {
            let bytes = Bytes::from(roots.read(&path, limit as u64)?);
            pickle::refuse(&format!("`{}`", clean(&path, 300)), &bytes)?;
            raw(info, &bytes)
        }
        (None, None, Some(path)) => of_path(roots, &path),
        (None, None, None) if describes => Err(ApiError::bad(
            "update_info",
            "it describes tensors, and their bytes are not there: this server has no NCCL or IPC group to receive them from",
            "send the bytes as the body (with update_info in the query or the header X-Update-Info), as base64 in `data`, \
             or in a file as `path`",
        )),
        _ => Err(ApiError::bad(
            "update_info",
            "it must say in exactly one way where the bytes are",
            "give names, dtype_names and shapes with `data` or `path`; or `safetensors`; or `path` alone",
        )),
    }
}

/// All tensors of a file or folder in a root.
fn of_path(roots: &Roots, path: &str) -> ApiResult<Vec<Piece>> {
    let pinned = roots.pin(path)?;
    let file = pinned.checkpoint(None).map_err(|e| {
        let text = pinned.plain(&e.to_string());
        ApiError::bad(format!("path `{}`", pinned.shown()), text, "give a safetensors file or a folder of them")
    })?;
    Ok(Piece::all(&file))
}

fn raw(info: UpdateInfo, bytes: &Bytes) -> ApiResult<Vec<Piece>> {
    pickle::refuse("the bytes", bytes)?;
    Ok(match info.bucket_meta {
        Some(meta) => bucket(meta, bytes)?,
        None => packed(&info, bytes)?,
    })
}
