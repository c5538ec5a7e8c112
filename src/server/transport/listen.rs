//! Connections: accepted up to a limit, encrypted where a certificate is given, and bounded in
//! everything that a client could drag out.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

use crate::cli::ConnectionLimits;
use crate::server::router::{router, watchers};
use crate::server::state::AppState;

/// Bytes of a request's head, at most.
const MAX_HEAD_BYTES: usize = 32 << 10;
/// Header fields of a request, at most.
const MAX_HEADERS: usize = 64;
/// How long streams have to say that they were cut off.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why the server ended by itself.
#[derive(Debug, thiserror::Error)]
#[error("the engine has stopped")]
pub struct EngineStopped;

/// Serves until `shutdown` resolves. Then no connection is accepted, running requests may end within
/// [`ConnectionLimits::drain`], and the rest end with an error.
///
/// # Errors
/// [`EngineStopped`] if the engine ends by itself; requests in flight have had their error by then.
pub async fn run(
    listener: TcpListener,
    state: AppState,
    shutdown: impl Future<Output = ()>,
) -> Result<(), EngineStopped> {
    let limits = state.limits().clone();
    let connections = GracefulShutdown::new();
    let accept = accept(&listener, router(state.clone()), &limits, || state.tls(), &connections);
    let result = tokio::select! {
        never = accept => match never {},
        () = shutdown => Ok(()),
        () = async {
            state.engine_stopped().await;
            // Requests that arrive meanwhile get 503, with a reason.
            tokio::time::sleep(LAST_WORDS).await;
        } => Err(EngineStopped),
    };
    drop(listener);
    state.drain();
    let drain = if result.is_ok() { limits.drain } else { Duration::ZERO };
    let mut ended = std::pin::pin!(connections.shutdown());
    if timeout(drain, &mut ended).await.is_err() {
        tracing::warn!("cutting the requests that are still running");
        state.stop_engines();
        let _ = timeout(LAST_WORDS, ended).await;
    }
    result
}

/// Answers those who watch the server, for ever.
pub async fn watch(listener: TcpListener, state: AppState) -> Infallible {
    let connections = GracefulShutdown::new();
    accept(&listener, watchers(state.clone()), state.limits(), || None, &connections).await
}

/// Accepts connections for ever, each with the certificate that there is then.
async fn accept(
    listener: &TcpListener,
    router: Router,
    limits: &ConnectionLimits,
    tls: impl Fn() -> Option<TlsAcceptor>,
    connections: &GracefulShutdown,
) -> Infallible {
    let room = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
    loop {
        let permit = Arc::clone(&room).acquire_owned().await;
        let permit = permit.expect("invariant: the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // Out of file descriptors, perhaps: others must end first.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Err(error) = configure(&stream, limits.patience) {
            tracing::debug!(%error, "a connection without its options");
        }
        let connection = Connection {
            router: router.clone(),
            patience: limits.patience,
            watcher: connections.watcher(),
            _permit: permit,
        };
        tokio::spawn(connection.serve(stream, tls()));
    }
}

/// A peer that is gone without a word is noticed within `patience`, whether data is under way or not.
fn configure(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(patience).with_interval(patience / 3))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(patience))?;
    Ok(())
}

struct Connection {
    router: Router,
    patience: Duration,
    watcher: Watcher,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    async fn serve(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        match tls {
            None => self.http(stream).await,
            Some(tls) => match timeout(self.patience, tls.accept(stream)).await {
                Ok(Ok(stream)) => self.http(stream).await,
                Ok(Err(error)) => tracing::debug!(%error, "no TLS connection came about"),
                Err(_) => tracing::debug!("no TLS connection came about in time"),
            },
        }
    }

    async fn http(self, stream: impl AsyncRead + AsyncWrite + Send + 'static) {
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.patience));
        let stream: Pin<Box<_>> = Box::pin(stream);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // Runs from the end of the last answer, so it bounds idle connections too.
            .header_read_timeout(self.patience)
            .max_buf_size(MAX_HEAD_BYTES)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(self.router));
        if let Err(error) = self.watcher.watch(connection).await {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}
