//! The listeners and their accept loop, a service of Pingora's `Server`.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net as unix;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::BytesMut;
use ipnet::IpNet;
use pingora::apps::HttpServerApp;
use pingora::protocols::SocketDigest;
use pingora::protocols::l4::socket::SocketAddr as PingoraAddress;
use pingora::protocols::tls::SslDigest;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::connection::{ConnectionInfo, Connections, Kind, Permit};
use super::guard::Connection;
use super::proxy_protocol;
use super::refusal::Refusals;
use super::serve::{Server, raised};
use super::settings::{ListenAddress, Settings};
use super::tls::Tls;
use super::turns::Turns;
use super::wire::Wire;

/// Connections that wait while `connections` are served.
const BACKLOG: i32 = 1024;
/// Owner and group may connect.
const SOCKET_MODE: u32 = 0o660;
/// After an accept that failed for want of descriptors or memory: others must end first, and looking again at once
/// would only burn the processor.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// When a silent peer is asked for a sign of life, and how often again.
const PEER_IDLE: Duration = Duration::from_secs(60);
const PEER_ASK_AGAIN: Duration = Duration::from_secs(15);

/// A socket that listens.
#[derive(Debug)]
pub struct BoundListener {
    address: ListenAddress,
    socket: Listening,
}

#[derive(Debug)]
enum Listening {
    Tcp(std::net::TcpListener),
    Unix(unix::UnixListener, SocketFile),
}

/// The file of a unix socket; it goes with the listener.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl BoundListener {
    /// Where it listens; with the port that was found for port 0.
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }
}

/// Why an address cannot be had, and what helps.
pub fn cannot_listen(address: &impl fmt::Display, error: &io::Error) -> String {
    let help = match error.kind() {
        io::ErrorKind::AddrInUse => "; stop what has it (`ss -ltnp` names it), or choose another",
        io::ErrorKind::AddrNotAvailable => "; this machine does not have it: 0.0.0.0 stands for all that it has",
        io::ErrorKind::PermissionDenied => "; choose a port above 1023, or a folder that this user may write to",
        _ => "",
    };
    format!("cannot listen on {address}: {error}{help}")
}

/// Binds all addresses, or none. Done before Pingora starts, which would try a taken port for half a minute and then
/// live on without it.
///
/// # Errors
///
/// The first address that could not be had, named in the error's text.
pub fn bind(addresses: &[ListenAddress]) -> io::Result<Vec<BoundListener>> {
    let bind_one = |address: &ListenAddress| match address {
        ListenAddress::Tcp(socket) => {
            // `[::]` would take the IPv4 port too, which its neighbour wants.
            let v6_only = addresses
                .iter()
                .any(|other| matches!(other, ListenAddress::Tcp(o) if o.is_ipv4() && o.port() == socket.port()));
            bind_tcp(*socket, v6_only)
        }
        ListenAddress::Unix(path) => bind_unix(path),
    };
    addresses
        .iter()
        .map(|address| bind_one(address).map_err(|error| io::Error::new(error.kind(), cannot_listen(address, &error))))
        .collect()
}

fn bind_tcp(address: SocketAddr, v6_only: bool) -> io::Result<BoundListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(v6_only)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let listener = std::net::TcpListener::from(socket);
    Ok(BoundListener { address: ListenAddress::Tcp(listener.local_addr()?), socket: Listening::Tcp(listener) })
}

fn bind_unix(path: &Path) -> io::Result<BoundListener> {
    if fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) {
        match unix::UnixStream::connect(path) {
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            // Left behind by a process that was killed.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) => return Err(error),
        }
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile(path.to_owned());
    // Before it listens: nobody can connect with the wrong mode.
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(BoundListener { address: ListenAddress::Unix(path.to_owned()), socket: Listening::Unix(socket.into(), file) })
}

/// What the accept loop hands each connection to, and what it goes by.
pub struct AcceptService<A> {
    listeners: Vec<BoundListener>,
    app: Arc<A>,
    entrance: Entrance,
}

/// The parts of the way in that others hold on to.
#[derive(Clone)]
pub struct Entrance {
    /// Read anew for every connection and head.
    pub settings: Arc<ArcSwap<Settings>>,
    /// With it, TCP listeners speak TLS only; unix sockets never do.
    pub tls: Option<Tls>,
    /// Peers whose TCP connections begin with a PROXY header and are somebody else's; empty = the protocol is off.
    pub proxy_protocol: Arc<ArcSwap<Vec<IpNet>>>,
    /// HTTP/2 without TLS, by prior knowledge; with TLS it is negotiated, see [`super::load_server_config`].
    pub h2c: Arc<AtomicBool>,
    /// Words refusals.
    pub refusals: Arc<dyn Refusals>,
    /// Lists and counts the connections.
    pub connections: Connections,
    /// Turns true when no new connection is to be accepted and none kept alive. Pingora's own signal does the same.
    pub draining: watch::Receiver<bool>,
}

impl fmt::Debug for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entrance").field("connections", &self.connections).finish_non_exhaustive()
    }
}

impl<A> fmt::Debug for AcceptService<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcceptService").field("listeners", &self.listeners).finish_non_exhaustive()
    }
}

impl<A: HttpServerApp + Send + Sync + 'static> AcceptService<A> {
    /// Serves `app` on `listeners`.
    pub fn new(listeners: Vec<BoundListener>, app: Arc<A>, entrance: Entrance) -> Self {
        Self { listeners, app, entrance }
    }

    /// Accepts until the drain begins, then waits until the last connection has ended. Needs a tokio runtime.
    pub async fn run(&mut self, mut shutdown: ShutdownWatch) {
        let (drain, draining) = watch::channel(false);
        let entrance = self.entrance.clone();
        let server = Arc::new(Server {
            app: self.app.clone(),
            settings: entrance.settings.clone(),
            refusals: entrance.refusals.clone(),
            draining: draining.clone(),
            h2c: entrance.h2c.clone(),
            turns: Turns::new(Handle::current().metrics().num_workers()),
        });
        let mut accepting = JoinSet::new();
        for listener in std::mem::take(&mut self.listeners) {
            let door = Door { entrance: entrance.clone(), server: server.clone() };
            accepting.spawn(door.accept(listener, draining.clone()));
        }
        let mut ours = entrance.draining.clone();
        tokio::select! {
            () = raised(&mut ours) => {}
            () = raised(&mut shutdown) => {}
        }
        drain.send_replace(true);
        while accepting.join_next().await.is_some() {}
        entrance.connections.drained().await;
        // Not earlier: it makes Pingora drop requests that it has not begun to read.
        self.app.http_cleanup().await;
    }
}

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> Service for AcceptService<A> {
    async fn start_service(&mut self, _fds: Option<ListenFds>, shutdown: ShutdownWatch, _listeners_per_fd: usize) {
        self.run(shutdown).await;
    }

    fn name(&self) -> &str {
        "proxy"
    }
}

/// One listener's accept loop.
struct Door<A> {
    entrance: Entrance,
    server: Arc<Server<A>>,
}

enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(tokio::net::UnixStream),
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, #[expect(dead_code, reason = "removes the file when it goes")] SocketFile),
}

impl Listener {
    fn new(bound: BoundListener) -> io::Result<Self> {
        Ok(match bound.socket {
            Listening::Tcp(listener) => Self::Tcp(TcpListener::from_std(listener)?),
            Listening::Unix(listener, file) => Self::Unix(UnixListener::from_std(listener)?, file),
        })
    }

    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(stream, peer)| Accepted::Tcp(stream, peer)),
            Self::Unix(listener, _) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        }
    }
}

impl<A: HttpServerApp + Send + Sync + 'static> Door<A> {
    async fn accept(self, bound: BoundListener, mut draining: watch::Receiver<bool>) {
        let address = bound.address.clone();
        let listener = match Listener::new(bound) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%address, %error, "cannot accept");
                return;
            }
        };
        let door = Arc::new(self);
        let limit = || door.entrance.settings.load().connections.max(1);
        let mut exhausted = false;
        loop {
            tokio::select! {
                biased;
                () = door.entrance.connections.room(limit) => {}
                () = raised(&mut draining) => return,
            }
            // Accepting comes first: what waits in the backlog when the drain begins is still served.
            let accepted = tokio::select! {
                biased;
                accepted = listener.accept() => accepted,
                () = raised(&mut draining) => return,
            };
            match accepted {
                Ok(stream) => {
                    exhausted = false;
                    let kind = match &stream {
                        Accepted::Tcp(..) => Kind::Client,
                        Accepted::Unix(_) => Kind::Local,
                    };
                    let permit = door.entrance.connections.admit(kind, limit).await;
                    let door = door.clone();
                    tokio::spawn(async move { door.welcome(stream, permit).await });
                }
                // The client was quicker to go than we to accept.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Once for each time that it happens, not ten times a second.
                    if !std::mem::replace(&mut exhausted, true) {
                        tracing::warn!(%address, %error, "cannot accept; trying again");
                    }
                    sleep(EXHAUSTED_PAUSE).await;
                }
            }
        }
    }

    /// From the accept to the end of a connection.
    async fn welcome(&self, stream: Accepted, _permit: Permit) {
        let Some(connection) = self.connect(stream).await else { return };
        let _listed = self.entrance.connections.list(connection.info.clone());
        if connection.speaks_http2() {
            self.server.serve_http2(connection).await;
        } else {
            self.server.serve(connection).await;
        }
    }

    /// Whom a connection belongs to; `None`: its PROXY header is missing, malformed or late.
    async fn owner(&self, stream: &mut TcpStream, peer: SocketAddr) -> Option<SocketAddr> {
        let ip: IpAddr = peer.ip().to_canonical();
        if !self.entrance.proxy_protocol.load().iter().any(|trusted| trusted.contains(&ip)) {
            return Some(peer);
        }
        let within = self.entrance.settings.load().head_timeout;
        let owner = timeout(within, proxy_protocol::read(stream)).await.ok()?.ok()?;
        Some(owner.unwrap_or(peer))
    }

    /// Sets the socket up and shakes hands. `None`: the handshake failed or took too long.
    async fn connect(&self, stream: Accepted) -> Option<Connection> {
        let mut ssl_digest = None;
        let mut server_name = None;
        let (wire, peer) = match stream {
            Accepted::Unix(stream) => (Wire::Unix(stream), None),
            Accepted::Tcp(mut stream, peer) => {
                // Best effort, both: a connection without them is only slower to send or to be found dead.
                let _ = stream.set_nodelay(true);
                let alive = TcpKeepalive::new().with_time(PEER_IDLE).with_interval(PEER_ASK_AGAIN);
                let _ = SockRef::from(&stream).set_tcp_keepalive(&alive);
                let peer = self.owner(&mut stream, peer).await?;
                match &self.entrance.tls {
                    None => (Wire::Tcp(stream), Some(peer)),
                    Some(tls) => {
                        let within = self.entrance.settings.load().head_timeout;
                        let handshake = TlsAcceptor::from(tls.current()).accept(stream);
                        let Ok(Ok(stream)) = timeout(within, handshake).await else {
                            self.entrance.connections.observer().handshake_failed();
                            return None;
                        };
                        let session = stream.get_ref().1;
                        server_name = session.server_name().map(str::to_owned);
                        ssl_digest = Some(Arc::new(ssl_digest_of(session)));
                        (Wire::Tls(Box::new(stream)), Some(peer))
                    }
                }
            }
        };
        let socket_digest = SocketDigest::from_raw_fd(wire.fd());
        // Set here, or Pingora asks the kernel for it at some later time, when it may be gone.
        let _ = socket_digest.peer_addr.set(peer.map(PingoraAddress::Inet));
        let info = Arc::new(ConnectionInfo::new(peer, ssl_digest.is_some(), server_name));
        Some(Connection {
            tag: info.tag(),
            info,
            wire,
            rx: BytesMut::new(),
            eof: false,
            connections: self.entrance.connections.clone(),
            socket_digest: Arc::new(socket_digest),
            ssl_digest,
            alarm: None,
        })
    }
}

fn ssl_digest_of(session: &rustls::ServerConnection) -> SslDigest {
    let cipher = session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or_default();
    let version = session.protocol_version().and_then(|version| version.as_str()).unwrap_or_default();
    SslDigest::new(cipher, version, None, None, Vec::new())
}
