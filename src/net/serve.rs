//! One client connection, request after request.

use std::io;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::BytesMut;
use futures_util::FutureExt;
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::http::ServerSession;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::framer::{BodyReader, Head, HeadLimits, HeadReader, Verdict};
use super::guard::{Connection, Guard, Home};
use super::h2::{H2Stream, PRIOR_KNOWLEDGE};
use super::refusal::{Refusal, Refusals};
use super::settings::Settings;
use super::turns::{Turn, Turns};
use super::wire::Wire;
use crate::web::problem::Code;

/// One read of a head.
const HEAD_READ: usize = 8 * 1024;
/// The same while nothing is expected: an idle TLS connection holds this much.
const IDLE_READ: usize = 1024;
/// For writing what is our last word.
const LAST_WORD: Duration = Duration::from_secs(2);
/// A connection that came just before the drain may still have its first request on the way, and one that has begun a
/// head the rest of it.
pub(super) const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// What serves connections.
pub(super) struct Server<A> {
    pub(super) app: Arc<A>,
    pub(super) settings: Arc<ArcSwap<Settings>>,
    pub(super) refusals: Arc<dyn Refusals>,
    /// True once no connection is to be kept alive any more.
    pub(super) draining: watch::Receiver<bool>,
    /// Whether HTTP/2 by prior knowledge is spoken.
    pub(super) h2c: Arc<AtomicBool>,
    /// Who begins when many requests come at once.
    pub(super) turns: Arc<Turns>,
}

/// What came instead of, or as, the next request.
enum Next {
    Request(Box<Head>, BodyReader, BytesMut),
    Refused(Refusal),
    /// HTTP/2 by prior knowledge.
    Http2,
    /// Closed, idle for too long, or no longer wanted.
    Gone,
}

impl<A: HttpServerApp + Send + Sync + 'static> Server<A> {
    /// Serves a connection to its end.
    pub(super) async fn serve(&self, mut connection: Connection) {
        let mut fresh = true;
        let mut draining = self.draining.clone();
        loop {
            let settings = **self.settings.load();
            let mut turn = None;
            let next = self.next(&mut connection, &settings, &mut draining, fresh, &mut turn).await;
            let (head, body, start) = match next {
                Next::Request(head, body, start) => (head, body, start),
                Next::Refused(refusal) => return self.refuse(connection, refusal).await,
                Next::Http2 => return self.serve_http2(connection).await,
                Next::Gone => return connection.wire.close(true).await,
            };
            fresh = false;
            let home = Home::default();
            let guard = Guard::new(connection, head.upgrade, body, start, settings.body_idle, turn, home.clone());
            let served = caught(self.app.process_new_http(session(guard, *head), &self.draining)).await;
            // Dropping what Pingora gives back sends the connection home.
            let wants_more = matches!(served, Ok(Some(_)));
            let panicked = served.is_err();
            drop(served);
            let Some(exchange) = home.take() else { return };

            let reusable = wants_more && exchange.is_reusable();
            let (answered, over) = (exchange.answered(), exchange.is_over());
            let closed_from_outside = exchange.connection.info.control.is_closed();
            let (mut back, unsent) = exchange.into_parts();
            if panicked && !answered {
                return self.refuse(back, Refusal::new(Code::Internal, "Something failed here.")).await;
            }
            if !unsent.is_empty() && !matches!(timeout(LAST_WORD, back.wire.write_all(&unsent)).await, Ok(Ok(()))) {
                return;
            }
            if !reusable {
                return back.wire.close(over || closed_from_outside).await;
            }
            connection = back;
        }
    }

    /// Hands a connection to Pingora's HTTP/2 server, which ends it gracefully when the drain begins.
    pub(super) async fn serve_http2(&self, connection: Connection) {
        let stream = H2Stream::new(connection, &self.settings.load(), self.draining.clone());
        let _ = caught(self.app.process_new(Box::new(stream), &self.draining)).await;
    }

    /// Waits for the next head and judges it. `fresh`: the connection has not carried a request. `turn` is there as soon as
    /// something came.
    async fn next(
        &self,
        connection: &mut Connection,
        settings: &Settings,
        draining: &mut watch::Receiver<bool>,
        fresh: bool,
        turn: &mut Option<Turn>,
    ) -> Next {
        let mut reader = HeadReader::new(HeadLimits::from(settings));
        let control = connection.info.control.clone();
        let within = if fresh || !connection.rx.is_empty() { settings.head_timeout } else { settings.keepalive };
        let mut deadline = Instant::now() + within;
        let mut grace = false;
        loop {
            if fresh
                && self.h2c.load(Ordering::Relaxed)
                && !connection.info.tls
                && connection.rx.starts_with(PRIOR_KNOWLEDGE)
            {
                return Next::Http2;
            }
            match reader.read(&mut connection.rx) {
                Verdict::NeedMore => {}
                Verdict::Refuse(refusal) => return Next::Refused(refusal),
                Verdict::Head(head) => {
                    // What came with the head is judged with it: a body that begins badly never reaches the upstream.
                    let mut body = BodyReader::new(head.body);
                    let mut start = BytesMut::new();
                    let read = body.read(&mut connection.rx, &mut start);
                    if connection.rx.is_empty() {
                        // Not held while the upstream works, nor while the connection idles.
                        connection.rx = BytesMut::new();
                    }
                    return match read {
                        Ok(()) => Next::Request(head, body, start),
                        Err(refusal) => {
                            connection.rx = head.into_bytes();
                            Next::Refused(refusal)
                        }
                    };
                }
            }
            if connection.eof {
                return Next::Gone;
            }
            let idle = connection.rx.is_empty();
            let (wire, rx) = (&mut connection.wire, &mut connection.rx);
            let alarm = connection.alarm.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            alarm.as_mut().reset(deadline);
            let mut came = false;
            let read = self.read(wire, rx, connection.info.tls, turn, &mut came);
            tokio::select! {
                biased;
                read = read => match read {
                    Ok(0) | Err(_) => return Next::Gone,
                    Ok(_) if idle && !fresh && !grace => deadline = Instant::now() + settings.head_timeout,
                    Ok(_) => {}
                },
                () = control.closed() => return Next::Gone,
                () = raised(draining), if !grace => {
                    // What only waits for its turn is served.
                    if idle && !fresh && !came {
                        return Next::Gone;
                    }
                    grace = true;
                    deadline = deadline.min(Instant::now() + DRAIN_GRACE);
                }
                () = alarm => {
                    return if idle {
                        Next::Gone
                    } else {
                        Next::Refused(Refusal::new(Code::RequestTimeout, "The request head came too slowly."))
                    };
                }
            }
        }
    }

    /// Reads once. The first bytes of a request need a turn; without TLS the kernel keeps them until then. `came`: there are
    /// some.
    async fn read(
        &self,
        wire: &mut Wire,
        rx: &mut BytesMut,
        tls: bool,
        turn: &mut Option<Turn>,
        came: &mut bool,
    ) -> io::Result<usize> {
        if tls {
            rx.reserve(if rx.is_empty() { IDLE_READ } else { HEAD_READ });
            let read = wire.read_buf(rx).await?;
            *came = read > 0;
            self.begin(turn).await;
            return Ok(read);
        }
        loop {
            wire.readable().await?;
            *came = true;
            self.begin(turn).await;
            rx.reserve(HEAD_READ);
            if let Some(read) = wire.read_buf(rx).now_or_never() {
                return read;
            }
            if rx.is_empty() {
                // There was nothing after all: it still idles.
                *rx = BytesMut::new();
                *turn = None;
            }
            *came = false;
        }
    }

    async fn begin(&self, turn: &mut Option<Turn>) {
        if turn.is_none() {
            *turn = self.turns.try_begin();
        }
        if turn.is_none() {
            // Boxed, or each idle connection has the room for it.
            *turn = Some(Box::pin(self.turns.begin()).await);
        }
    }

    /// Answers what is no request, and ends the connection so that the answer is read.
    async fn refuse(&self, mut connection: Connection, refusal: Refusal) {
        let peer: IpAddr = connection.info.peer_ip;
        let answer = self.refusals.refuse(&refusal, peer, &connection.rx);
        let written = timeout(LAST_WORD, async {
            connection.wire.write_all(&answer).await?;
            connection.wire.flush().await
        });
        if matches!(written.await, Ok(Ok(()))) {
            connection.wire.close(connection.eof).await;
        }
    }
}

/// What Pingora calls a request. A function of its own: what is borrowed in the serve loop is kept in it for as long as the
/// connection lives.
fn session(guard: Guard, head: Head) -> ServerSession {
    let mut session = ServerSession::new_http1(Box::new(guard));
    // Judged as a whole, so it goes as a whole: Pingora has nothing to read before it parses.
    session.set_pipelined_prefix(head.into_bytes());
    session
}

/// Resolves when the flag is true; never, if nobody can set it any more.
pub(super) async fn raised(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|raised| *raised).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// A panic while serving one request must not take its connection's answer with it. `Err` is a panic.
async fn caught<T>(mut future: Pin<Box<dyn Future<Output = T> + Send + '_>>) -> Result<T, ()> {
    std::future::poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(_) => Poll::Ready(Err(())),
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use async_trait::async_trait;
    use bytes::Bytes;
    use pingora::apps::ReusedHttpStream;
    use pingora::server::ShutdownWatch;
    use tokio::net::UnixStream;

    use super::*;

    struct Nobody;

    #[async_trait]
    impl HttpServerApp for Nobody {
        async fn process_new_http(self: &Arc<Self>, _: ServerSession, _: &ShutdownWatch) -> Option<ReusedHttpStream> {
            None
        }
    }

    impl Refusals for Nobody {
        fn refuse(&self, _: &Refusal, _: IpAddr, _: &[u8]) -> Bytes {
            Bytes::new()
        }
    }

    /// Whose head waits for its turn as the drain begins has the rest of the grace for it, not a timeout anew.
    #[tokio::test(start_paused = true)]
    async fn a_head_that_waits_for_its_turn_does_not_put_off_the_end_of_the_drain() {
        let turns = Turns::new(1);
        let under_way: Vec<_> = std::iter::from_fn(|| turns.try_begin()).collect();
        let (_begin, draining) = watch::channel(true);
        let server = Server {
            app: Arc::new(Nobody),
            settings: Arc::default(),
            refusals: Arc::new(Nobody),
            draining: draining.clone(),
            h2c: Arc::default(),
            turns,
        };
        let (client, wire) = UnixStream::pair().unwrap();
        assert_eq!(client.try_write(b"GET / HTTP/1.1\r\n").unwrap(), 16);
        let mut connection = Connection::uncounted(Wire::Unix(wire));
        poll_fn(|cx| connection.wire.poll_readable(cx)).await.unwrap();

        let (began, mut turn) = (Instant::now(), None);
        let settings = Settings::default();
        let next = server.next(&mut connection, &settings, &mut draining.clone(), false, &mut turn).await;
        assert!(matches!(next, Next::Refused(Refusal { code: Code::RequestTimeout, .. })));
        assert!(turn.is_some(), "it had its turn, and was read");
        assert!(began.elapsed() < settings.head_timeout, "{:?}", began.elapsed());
        drop(under_way);
    }
}
