//! Bodies of requests come into memory here: no more of each than its endpoint takes, no more of all together than a
//! server can hold, and none for longer than it may take to arrive.
//!
//! What a body declares is looked at before it is read, and its first bytes before the rest: most of what cannot be taken
//! is refused without being held.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{StatusCode, header};
use futures_util::StreamExt as _;
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{ApiError, ApiResult};

/// How long a body may stand still, and how long it waits until others leave room for it: who sends byte by byte must not
/// hold a connection for good.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long a small body may take to arrive, and any body besides its share.
const TIME: Duration = Duration::from_secs(120);
/// Bytes that have to arrive in a second, on the average, of a large one.
const PACE: usize = 1 << 20;
/// Bodies up to here are read at once, whatever else is read.
const FREE: usize = 64 << 10;
/// How long a body is read on that nobody wants, and how much of it.
const LINGER: Duration = Duration::from_secs(1);
const LINGERING: usize = 64 << 20;
/// In how many shares room is given.
const SHARES: u32 = 1024;

/// The memory for bodies of one kind. Whoever finds no room waits, its body unread.
#[derive(Debug, Clone)]
pub struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(SHARES as usize)))
    }
}

impl Room {
    /// Room for `bytes` of the `all` that there are.
    async fn reserve(&self, bytes: usize, limit: &Limit<'_>) -> ApiResult<OwnedSemaphorePermit> {
        let (all, patience) = (limit.all, limit.patience);
        let share = (bytes as u128 * u128::from(SHARES)).div_ceil(all.max(1) as u128);
        let share = u32::try_from(share).map_or(SHARES, |share| share.clamp(1, SHARES));
        match tokio::time::timeout(patience, Arc::clone(&self.0).acquire_many_owned(share)).await {
            Ok(Ok(held)) => Ok(held),
            _ => Err(ApiError::unavailable(
                "the request's body",
                format!(
                    "others are being read, and left no room for its {bytes} bytes within {} s",
                    patience.as_secs()
                ),
                "send it again when they are done, or send less at once",
                5,
            )),
        }
    }
}

/// How much is read of a body.
pub struct Limit<'a> {
    /// Most bytes of it.
    pub bytes: usize,
    /// Most bytes of all bodies that share its room.
    pub all: usize,
    /// The room.
    pub room: &'a Room,
    /// How long it may stand still, or wait for room.
    pub patience: Duration,
    /// What to do where it has more.
    pub next: String,
}

/// A body in memory, and its place in the room, which others get when this is dropped.
pub struct Read {
    /// All of it.
    pub bytes: Bytes,
    /// Its place.
    pub held: Option<OwnedSemaphorePermit>,
}

/// The whole body. `look` sees what came so far, as often as something came, until it is content (`true`); its error ends
/// the request.
pub async fn read(body: Body, limit: &Limit<'_>, look: impl FnMut(&[u8]) -> ApiResult<bool>) -> ApiResult<Read> {
    let declared = body.size_hint().exact().map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    if let Some(bytes) = declared.filter(|n| *n > limit.bytes) {
        return Err(too_large(format!("it has {bytes} bytes"), limit));
    }
    let time = TIME + Duration::from_secs((declared.unwrap_or(limit.bytes) / PACE) as u64);
    match tokio::time::timeout(time, all_of(body, declared, limit, look)).await {
        Ok(read) => read,
        Err(_) => Err(slow(time)),
    }
}

async fn all_of(
    body: Body,
    declared: Option<usize>,
    limit: &Limit<'_>,
    mut look: impl FnMut(&[u8]) -> ApiResult<bool>,
) -> ApiResult<Read> {
    let mut held = match declared {
        Some(bytes) if bytes > FREE => Some(limit.room.reserve(bytes, limit).await?),
        _ => None,
    };
    let mut stream = body.into_data_stream();
    // A body that came at once is not copied.
    let mut first: Option<Bytes> = None;
    let mut all = Vec::new();
    // What nobody declared may be junk without end: it gets no large buffer before it is complete.
    let mut parts: Vec<Bytes> = Vec::new();
    let (mut had, mut content) = (0usize, false);
    loop {
        let Ok(next) = tokio::time::timeout(limit.patience, stream.next()).await else {
            return Err(slow(limit.patience));
        };
        let Some(chunk) = next else { break };
        let chunk = chunk.map_err(|_| ApiError::bad("the request's body", "it ended too early", "send it again"))?;
        let has = had.saturating_add(chunk.len());
        if has > limit.bytes {
            return Err(too_large(format!("it has more than {} bytes", limit.bytes), limit));
        }
        if has > FREE && held.is_none() {
            held = Some(limit.room.reserve(declared.unwrap_or(limit.bytes), limit).await?);
        }
        match (&first, all.is_empty()) {
            (None, true) => first = Some(chunk),
            _ if content && declared.is_none() => parts.push(chunk),
            _ => {
                if let Some(first) = first.take() {
                    all.reserve_exact(declared.unwrap_or(has));
                    all.extend_from_slice(&first);
                }
                all.extend_from_slice(&chunk);
            }
        }
        had = has;
        content = content || look(first.as_deref().unwrap_or(&all))?;
    }
    let head = first.unwrap_or_else(|| Bytes::from(all));
    if parts.is_empty() {
        return Ok(Read { bytes: head, held });
    }
    let mut whole = Vec::with_capacity(had);
    whole.extend_from_slice(&head);
    parts.into_iter().for_each(|part| whole.extend_from_slice(&part));
    Ok(Read { bytes: Bytes::from(whole), held })
}

/// A body that its handler does not read to the end is read on for a moment and thrown away: a connection that is closed on
/// bytes that nobody read is reset, and its client does not see the answer.
pub struct Lingering(Option<Body>);

impl Lingering {
    /// Wraps the body of a request, unless its client waits to be asked for it.
    pub fn of(request: Request) -> Request {
        match request.headers().contains_key(header::EXPECT) {
            true => request,
            false => request.map(|body| Body::new(Self(Some(body)))),
        }
    }
}

impl HttpBody for Lingering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.0 = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or(SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let Some(body) = self.0.take().filter(|body| !body.is_end_stream()) else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(LINGER, async move {
                let (mut stream, mut left) = (body.into_data_stream(), LINGERING);
                while let Some(Ok(chunk)) = stream.next().await
                    && left > chunk.len()
                {
                    left -= chunk.len();
                }
            }));
        }
    }
}

/// Refuses a body that begins as a list, a text, a number, `true`, `false` or `null`: serde would take a list for a struct,
/// field by field, and `[]` for one without any, such as a request that aborts everything. Whatever else is no object is no
/// JSON, which its reader says.
fn is_object(first: u8) -> ApiResult<()> {
    let kind = match first {
        b'[' => "a list",
        b'"' => "a text",
        b'-' | b'0'..=b'9' => "a number",
        b't' | b'f' => "true or false",
        b'n' => "null",
        _ => return Ok(()),
    };
    let next = "send one JSON object; see GET /openapi.json for the fields and their types";
    Err(ApiError::bad("the request's body", format!("it is {kind}, not an object"), next))
}

/// For [`read`]: whether the first bytes that are no spaces can begin a JSON object.
pub fn begins_as_json(came: &[u8]) -> ApiResult<bool> {
    let bad = |byte: u8| {
        let why = format!("it is not JSON: it begins with the byte 0x{byte:02x}");
        let next = "send one JSON object";
        Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", "the request's body", why, next))
    };
    match came.trim_ascii_start() {
        [] => Ok(false),
        [b'{', rest @ ..] => match rest.trim_ascii_start() {
            [] => Ok(false),
            [b'"' | b'}', ..] => Ok(true),
            [byte, ..] => bad(*byte),
        },
        [byte, ..] => is_object(*byte).and_then(|()| bad(*byte)),
    }
}

fn too_large(has: String, limit: &Limit<'_>) -> ApiError {
    let why = format!("{has}; this endpoint takes {} at most", limit.bytes);
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "the request's body", why, limit.next.clone())
}

fn slow(time: Duration) -> ApiError {
    let why = format!("it did not arrive within {} s", time.as_secs());
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the request's body", why, "send it faster, or less at once")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn limit(room: &Room) -> Limit<'_> {
        let patience = Duration::from_millis(20);
        Limit { bytes: 1 << 20, all: 1 << 20, room, patience, next: "send less".to_string() }
    }

    fn body(chunks: Vec<Vec<u8>>) -> Body {
        Body::from_stream(futures_util::stream::iter(chunks.into_iter().map(Ok::<_, std::io::Error>)))
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
    }

    #[test]
    fn what_is_declared_too_large_is_not_read() {
        run(async {
            let room = Room::default();
            let error =
                read(Body::from(vec![b'{'; (1 << 20) + 1]), &limit(&room), |_| panic!("read")).await.err().unwrap();
            assert_eq!(error.status(), 413);
            // Without a declared length it ends where the limit is.
            let chunks = vec![vec![b' '; 300_000]; 9];
            let error = read(body(chunks), &limit(&room), |_| Ok(false)).await.err().unwrap();
            assert_eq!(error.status(), 413);
        });
    }

    #[test]
    fn the_first_bytes_decide() {
        run(async {
            let room = Room::default();
            let chunks = vec![b" \n".to_vec(), vec![0; 10], vec![b'{'; 10]];
            let error = read(body(chunks), &limit(&room), begins_as_json).await.err().unwrap();
            assert!(error.message().contains("begins with the byte 0x00"), "{error}");
            let read = read(body(vec![b" {".to_vec(), b"}".to_vec()]), &limit(&room), begins_as_json).await.unwrap();
            assert_eq!((&read.bytes[..], read.held.is_none()), (&b" {}"[..], true));
        });
    }

    #[test]
    fn who_finds_no_room_waits_and_then_is_told() {
        run(async {
            let room = Room::default();
            let large = || Body::from(vec![b'{'; 1 << 20]);
            let first = read(large(), &limit(&room), |_| Ok(true)).await.unwrap();
            let error = read(large(), &limit(&room), |_| Ok(true)).await.err().unwrap();
            assert_eq!(error.status(), 503);
            // A small one needs none.
            read(Body::from("{}"), &limit(&room), |_| Ok(true)).await.unwrap();
            drop(first);
            read(large(), &limit(&room), |_| Ok(true)).await.unwrap();
        });
    }

    #[test]
    fn a_body_that_stands_still_is_given_up() {
        run(async {
            let room = Room::default();
            let still =
                futures_util::stream::iter([Ok::<_, std::io::Error>("{")]).chain(futures_util::stream::pending());
            let error = read(Body::from_stream(still), &limit(&room), |_| Ok(true)).await.err().unwrap();
            assert_eq!(error.status(), 408);
        });
    }
}
