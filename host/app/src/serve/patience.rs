//! Who waits for whom on a connection, and for how long. A client that is slow with its header, its body or the reading of its
//! answer costs a place and nothing else, and gives it up first where there are no more.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep_until};

/// A body must bring this many bytes, or its end, …
const PIECE: usize = 64 << 10;

/// … within this time, over and over: about 1 KiB in a second.
const PIECE_TIME: Duration = Duration::from_secs(60);

/// A client that has been waited for less long keeps its place whoever else comes.
const SHORTEST: Duration = Duration::from_millis(250);

/// How often a listener without a free place looks again.
const AGAIN: Duration = Duration::from_millis(50);

/// One connection, as the others see it.
pub struct Client {
    /// Milliseconds from the start of the server to the moment from which the client was waited for; 0 while it waits for the
    /// server.
    since: AtomicU64,
    begun: Instant,
    /// It has to go.
    evicted: Notify,
}

impl Client {
    fn waits_from(&self, from: Instant) {
        let ms = u64::try_from(from.duration_since(self.begun).as_millis()).unwrap_or(u64::MAX);
        self.since.store(ms.saturating_add(1), Ordering::Relaxed);
    }

    /// From now on the client is waited for.
    fn waits(&self) {
        self.waits_from(Instant::now());
    }

    /// From now on the client waits: the server has its whole request.
    fn works(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    fn is_working(&self) -> bool {
        self.since.load(Ordering::Relaxed) == 0
    }
}

/// The connections of one listener.
pub struct Clients {
    limit: usize,
    begun: Instant,
    table: Mutex<(u64, HashMap<u64, Arc<Client>>)>,
    /// One has ended.
    left: Notify,
}

/// A connection's place, until it is dropped.
pub struct Place {
    clients: Arc<Clients>,
    key: u64,
    client: Arc<Client>,
}

impl Clients {
    /// Room for so many.
    pub fn new(limit: usize) -> Arc<Self> {
        let (table, left) = (Mutex::default(), Notify::new());
        Arc::new(Self { limit: limit.max(1), begun: Instant::now(), table, left })
    }

    fn table(&self) -> MutexGuard<'_, (u64, HashMap<u64, Arc<Client>>)> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Most connections at once.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether every place is taken.
    pub fn is_full(&self) -> bool {
        self.table().1.len() >= self.limit
    }

    /// A place for one more. Where there is none, the client that has been waited for longest loses its own; while all of them wait
    /// for the server, the new one waits too.
    pub async fn place(self: &Arc<Self>) -> Place {
        loop {
            let left = self.left.notified();
            if !self.is_full() || self.evict() {
                break;
            }
            let _ = tokio::time::timeout(AGAIN, left).await;
        }
        let (since, evicted) = (AtomicU64::default(), Notify::new());
        let client = Arc::new(Client { since, begun: self.begun, evicted });
        client.waits();
        let mut table = self.table();
        table.0 += 1;
        let key = table.0;
        table.1.insert(key, Arc::clone(&client));
        Place { clients: Arc::clone(self), key, client }
    }

    /// Ends the connection whose client has been waited for longest; false where there is none.
    pub fn evict(&self) -> bool {
        let mut table = self.table();
        let now = u64::try_from(self.begun.elapsed().saturating_sub(SHORTEST).as_millis()).unwrap_or(u64::MAX);
        let since = |client: &Client| Some(client.since.load(Ordering::Relaxed)).filter(|ms| (1..=now).contains(ms));
        let longest = table.1.iter().filter_map(|(key, client)| Some((since(client)?, *key))).min();
        let Some(client) = longest.and_then(|(_, key)| table.1.remove(&key)) else { return false };
        client.evicted.notify_one();
        true
    }
}

impl Place {
    /// Ends when the connection has to go.
    pub async fn evicted(&self) {
        self.client.evicted.notified().await;
    }

    /// The connection's stream.
    pub fn stream<T>(&self, inner: T) -> Watched<T> {
        Watched { inner, client: Arc::clone(&self.client), blocked: false }
    }

    /// The body of a request, whose header is complete.
    pub fn request(&self, body: Incoming) -> Body {
        self.client.works();
        if body.is_end_stream() {
            return Body::new(body);
        }
        let (client, begun) = (Arc::clone(&self.client), Instant::now());
        Body::new(Arriving { body, client, begun, bytes: 0, late: Box::pin(sleep_until(begun + PIECE_TIME)) })
    }

    /// The body of its answer.
    pub fn answer(&self, body: Body) -> Body {
        Body::new(Leaving { body, client: Arc::clone(&self.client) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clients.table().1.remove(&self.key);
        self.clients.left.notify_one();
    }
}

/// A body on its way in.
struct Arriving {
    body: Incoming,
    client: Arc<Client>,
    /// When the piece that is arriving began.
    begun: Instant,
    /// Bytes of it.
    bytes: usize,
    late: Pin<Box<Sleep>>,
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            self.client.waits_from(self.begun);
            ready!(self.late.as_mut().poll(cx));
            let why = format!("{} bytes of it came within {} s", self.bytes, PIECE_TIME.as_secs());
            return Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::TimedOut, why).into())));
        };
        self.client.works();
        if let Some(Ok(frame)) = &frame {
            self.bytes += frame.data_ref().map_or(0, Bytes::len);
        }
        if self.bytes >= PIECE {
            (self.bytes, self.begun) = (0, Instant::now());
            let late = self.begun + PIECE_TIME;
            self.late.as_mut().reset(late);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.client.works();
    }
}

/// A body on its way out. Behind it the client's next request is waited for.
struct Leaving {
    body: Body,
    client: Arc<Client>,
}

impl HttpBody for Leaving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.client.waits();
    }
}

/// A stream. While nothing more can be written, the client is waited for.
pub struct Watched<T> {
    inner: T,
    client: Arc<Client>,
    /// By the client, which does not read.
    blocked: bool,
}

impl<T> Watched<T> {
    fn written<R>(&mut self, result: Poll<R>) -> Poll<R> {
        match &result {
            Poll::Pending if self.client.is_working() => {
                self.blocked = true;
                self.client.waits();
            }
            Poll::Ready(_) if self.blocked => {
                self.blocked = false;
                self.client.works();
            }
            _ => {}
        }
        result
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.written(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.written(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
