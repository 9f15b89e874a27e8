//! Connections: how many, how long a header may take, and how they end.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tower::ServiceExt as _;

use super::auth::PeerUid;
use super::listen::{Listener, Stream};
use super::patience::{Clients, Place};
use super::state::App;

/// How long the header of a request may take, and how long an idle connection is kept: who opens connections and says
/// nothing must not hold them for good.
const HEADER: Duration = Duration::from_secs(30);

/// Most bytes of a header, and of what is read at once.
const BUFFER: usize = 64 << 10;

/// Accepts until the server drains, then ends each connection after the answer that it is writing. Ends when the last
/// connection has ended.
pub async fn accept(listener: Listener, router: Router, app: Arc<App>) {
    let clients = Clients::new(app.options.max_connections);
    let crowded = AtomicBool::new(false);
    // Nothing is ever sent: the receiver sees the end when every connection has dropped its sender.
    let (alive, mut ended) = mpsc::channel::<()>(1);
    let mut draining = pin!(app.draining());
    loop {
        let next = async {
            let stream = listener.accept().await?;
            if clients.is_full() && !crowded.swap(true, Ordering::Relaxed) {
                tracing::warn!("all {} connections of {listener} are taken (--max-connections)", clients.limit());
            }
            Ok::<(Stream, Place), std::io::Error>((stream, clients.place().await))
        };
        let accepted = tokio::select! {
            () = &mut draining => break,
            accepted = next => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                let connection = Connection { router: router.clone(), app: Arc::clone(&app), place };
                let alive = alive.clone();
                tokio::spawn(async move {
                    match stream {
                        Stream::Tcp(io) => connection.serve(io, None).await,
                        Stream::Unix(io) => {
                            let peer = io.peer_cred().ok().map(|peer| PeerUid(peer.uid()));
                            connection.serve(io, peer).await;
                        }
                    }
                    drop(alive);
                });
            }
            Err(e) => {
                tracing::warn!("a connection was not accepted: {e}");
                // Out of file descriptors, most likely: they come back when connections end.
                clients.evict();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop((listener, alive));
    // An error: all senders are gone.
    let _ = ended.recv().await;
}

struct Connection {
    router: Router,
    app: Arc<App>,
    place: Place,
}

impl Connection {
    async fn serve(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Option<PeerUid>) {
        let Self { router, app, place } = self;
        let place = &place;
        let service = service_fn(|request: Request<Incoming>| {
            let mut request = request.map(|body| place.request(body));
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            let answer = router.clone().oneshot(request);
            let app = &app;
            async move {
                let answer = answer.await?;
                app.answered.notify_one();
                Ok::<_, Infallible>(answer.map(|body| place.answer(body)))
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(place.stream(io)), service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = place.evicted() => {
                tracing::debug!("a connection was ended for another one: its client was waited for longest");
                return;
            }
            () = app.draining() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(e) = ended {
            tracing::debug!("a connection ended early: {e}");
        }
    }
}
