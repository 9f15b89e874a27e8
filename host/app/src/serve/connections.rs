//! Connections: how many, how long a header may take, and how they end.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tower::util::MapRequest;

use super::auth::PeerUid;
use super::listen::{Listener, Stream};
use super::state::App;

/// How long the header of a request may take, and how long an idle connection is kept: who opens connections and says
/// nothing must not hold them for good.
const HEADER: Duration = Duration::from_secs(30);

/// Connections at once; more of them wait in the kernel's queue.
const CONNECTIONS: usize = 1024;

/// Accepts until the server drains, then ends each connection after the answer that it is writing. Ends when the last
/// connection has ended.
pub async fn accept(listener: Listener, router: Router, app: Arc<App>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    // Nothing is ever sent: the receiver sees the end when every connection has dropped its sender.
    let (alive, mut ended) = mpsc::channel::<()>(1);
    let mut draining = pin!(app.draining());
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await.ok();
            (slot, listener.accept().await)
        };
        let (slot, stream) = tokio::select! {
            () = &mut draining => break,
            accepted = next => accepted,
        };
        match stream {
            Ok(stream) => {
                let connection = Connection { router: router.clone(), app: Arc::clone(&app), _slot: slot };
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
    _slot: Option<OwnedSemaphorePermit>,
}

impl Connection {
    async fn serve(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Option<PeerUid>) {
        let marked = MapRequest::new(self.router, move |mut request: Request<Incoming>| {
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            request
        });
        let service = TowerToHyperService::new(marked);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER)
            .serve_connection(TokioIo::new(io), service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = self.app.draining() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(e) = ended {
            tracing::debug!("a connection ended early: {e}");
        }
    }
}
