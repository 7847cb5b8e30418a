//! What is known of a client connection, how it is ended from outside, and the list of all of them.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::raw_connect::ProxyDigest;
use tokio::sync::Notify;

/// A client connection, as the gateway may know it.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// Unique in this process.
    pub id: u64,
    /// `None` on a unix socket.
    pub peer: Option<SocketAddr>,
    /// The peer's address, an IPv4-mapped one as IPv4; `127.0.0.1` on a unix socket.
    pub peer_ip: IpAddr,
    /// The connection is TLS.
    pub tls: bool,
    /// The name the client asked for in its TLS handshake.
    pub server_name: Option<String>,
    /// Ends the connection from outside.
    pub control: Arc<Control>,
}

impl ConnectionInfo {
    /// The connection that a request came on, whatever its HTTP version.
    pub fn of(session: &ServerSession) -> Option<&Arc<Self>> {
        session.digest()?.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref()
    }

    /// Pingora passes nothing of ours along with a connection, but for what it takes to be the answer of a proxy
    /// before it.
    pub(super) fn tag(self: &Arc<Self>) -> Option<Arc<ProxyDigest>> {
        let head = ResponseHeader::build(200, Some(0)).ok()?;
        Some(Arc::new(ProxyDigest::new(Box::new(head), Some(Box::new(self.clone())))))
    }

    /// A connection from `peer`.
    pub fn new(peer: Option<SocketAddr>, tls: bool, server_name: Option<String>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            peer,
            peer_ip: peer.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| peer.ip().to_canonical()),
            tls,
            server_name,
            control: Arc::default(),
        }
    }
}

/// The handle by which a connection is ended from outside, however quiet it is.
#[derive(Default)]
pub struct Control {
    closed: AtomicBool,
    wakers: Mutex<[Option<Waker>; 2]>,
    notify: Notify,
}

/// Which half of a connection waits.
#[derive(Clone, Copy, Debug)]
pub(super) enum Half {
    Read = 0,
    Write = 1,
}

impl Control {
    /// Ends the connection: reads and writes fail from now on; a WebSocket is told first (1001, when no message is
    /// half written).
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let wakers = std::mem::take(&mut *self.wakers.lock());
        for waker in wakers.into_iter().flatten() {
            waker.wake();
        }
        self.notify.notify_waiters();
    }

    /// Whether [`Self::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Resolves when [`Self::close`] was called.
    pub async fn closed(&self) {
        let notified = self.notify.notified();
        tokio::pin!(notified);
        // Registered before the flag is read: a close in between is not missed.
        notified.as_mut().enable();
        if !self.is_closed() {
            notified.await;
        }
    }

    /// Has `waker` woken by a close. `true` if it was closed already.
    pub(super) fn watch(&self, half: Half, waker: &Waker) -> bool {
        let mut wakers = self.wakers.lock();
        if let Some(slot) = wakers.get_mut(half as usize) {
            match slot {
                Some(known) if known.will_wake(waker) => {}
                slot => *slot = Some(waker.clone()),
            }
        }
        drop(wakers);
        self.is_closed()
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}

/// What a connection is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An open client connection; counted for its whole life.
    Client,
    /// The same by a unix socket.
    Local,
    /// One that became a tunnel (WebSocket); counted besides.
    Tunnel,
}

/// Is told of connections; for gauges and counters.
pub trait Observer: Send + Sync + 'static {
    /// One more.
    fn opened(&self, _kind: Kind) {}
    /// One less.
    fn closed(&self, _kind: Kind) {}
    /// A TLS handshake that failed or took too long.
    fn handshake_failed(&self) {}
}

/// Nobody wants to know.
impl Observer for () {}

/// All client connections of the process. Cheap to clone.
#[derive(Clone)]
pub struct Connections {
    shared: Arc<Shared>,
}

struct Shared {
    open: Mutex<HashMap<u64, Arc<ConnectionInfo>>>,
    /// Admitted connections, those in their TLS handshake included.
    admitted: Mutex<usize>,
    left: Notify,
    observer: Arc<dyn Observer>,
}

impl Connections {
    /// An empty list.
    pub fn new(observer: Arc<dyn Observer>) -> Self {
        let (open, admitted) = (Mutex::default(), Mutex::default());
        Self { shared: Arc::new(Shared { open, admitted, left: Notify::new(), observer }) }
    }

    /// How many are admitted.
    pub fn count(&self) -> usize {
        *self.shared.admitted.lock()
    }

    /// Ends all of them: tunnels with 1001, requests in flight without an answer. For the end of the drain.
    pub fn close_all(&self) {
        let open: Vec<_> = self.shared.open.lock().values().cloned().collect();
        for info in open {
            info.control.close();
        }
    }

    /// Resolves when none is left.
    pub async fn drained(&self) {
        self.until(|count| count == 0).await;
    }

    /// Resolves when no more than `count` are left. The number is asked for again every second.
    pub async fn down_to(&self, count: impl Fn() -> usize) {
        self.until(|left| left <= count()).await;
    }

    /// Resolves when fewer than `limit` are admitted, without admitting one. The limit is asked again every second: a
    /// reload may change it.
    pub(super) async fn room(&self, limit: impl Fn() -> usize) {
        self.until(|count| count < limit()).await;
    }

    /// Waits for room and takes it.
    pub(super) async fn admit(&self, kind: Kind, limit: impl Fn() -> usize) -> Permit {
        loop {
            self.room(&limit).await;
            let mut admitted = self.shared.admitted.lock();
            if *admitted < limit() {
                *admitted += 1;
                drop(admitted);
                self.shared.observer.opened(kind);
                return Permit { connections: self.clone(), kind };
            }
        }
    }

    async fn until(&self, holds: impl Fn(usize) -> bool) {
        loop {
            let left = self.shared.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            if holds(self.count()) {
                return;
            }
            let _ = tokio::time::timeout(Duration::from_secs(1), left).await;
        }
    }

    /// Lists a connection until the returned value is dropped.
    pub(super) fn list(&self, info: Arc<ConnectionInfo>) -> Listed {
        let id = info.id;
        self.shared.open.lock().insert(id, info);
        Listed { connections: self.clone(), id }
    }

    pub(super) fn observer(&self) -> &dyn Observer {
        &*self.shared.observer
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("count", &self.count()).finish_non_exhaustive()
    }
}

/// The right to serve one connection.
#[derive(Debug)]
pub(super) struct Permit {
    connections: Connections,
    kind: Kind,
}

impl Drop for Permit {
    fn drop(&mut self) {
        *self.connections.shared.admitted.lock() -= 1;
        self.connections.shared.observer.closed(self.kind);
        self.connections.shared.left.notify_waiters();
    }
}

/// A connection's place in the list.
#[derive(Debug)]
pub(super) struct Listed {
    connections: Connections,
    id: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.connections.shared.open.lock().remove(&self.id);
    }
}

/// Counts a tunnel for as long as it lives.
pub(super) struct TunnelCount(Connections);

impl TunnelCount {
    pub(super) fn new(connections: &Connections) -> Self {
        connections.observer().opened(Kind::Tunnel);
        Self(connections.clone())
    }
}

impl Drop for TunnelCount {
    fn drop(&mut self) {
        self.0.observer().closed(Kind::Tunnel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_peer_is_ipv4() {
        let peer = "[::ffff:192.0.2.7]:5".parse().unwrap();
        assert_eq!(ConnectionInfo::new(Some(peer), false, None).peer_ip, "192.0.2.7".parse::<IpAddr>().unwrap());
        assert_eq!(ConnectionInfo::new(None, false, None).peer_ip, "127.0.0.1".parse::<IpAddr>().unwrap());
    }

    #[tokio::test]
    async fn a_close_before_the_wait_is_not_missed() {
        let control = Control::default();
        control.close();
        control.closed().await;
        assert!(control.is_closed());
    }

    #[tokio::test]
    async fn dos_07_who_comes_above_the_limit_waits() {
        let connections = Connections::new(Arc::new(()));
        let first = connections.admit(Kind::Client, || 1).await;
        let mut second = std::pin::pin!(connections.admit(Kind::Client, || 1));
        let waiting = std::future::poll_fn(|cx| std::task::Poll::Ready(second.as_mut().poll(cx).is_pending())).await;
        assert!(waiting);
        drop(first);
        let _second = second.await;
        assert_eq!(connections.count(), 1);
    }

    #[tokio::test]
    async fn drained_waits_for_the_last() {
        let connections = Connections::new(Arc::new(()));
        connections.drained().await;
        let permit = connections.admit(Kind::Client, || 5).await;
        let drained = tokio::spawn({
            let connections = connections.clone();
            async move { connections.drained().await }
        });
        drop(permit);
        drained.await.unwrap();
    }
}
