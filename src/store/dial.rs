//! Connections to the servers of the configuration: one, the master behind sentinels, or a cluster.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64_simd::STANDARD;
use futures_util::StreamExt;
use parking_lot::Mutex;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError,
    ServerErrorKind, TlsCertificates, TlsMode, Value,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::link::{Dialer, Fault, Line, Subscription};
use super::settings::{Address, Deployment, Settings, TlsFiles};

/// Bounds one try at one server.
const CONNECT: Duration = Duration::from_secs(2);
/// A silent connection to a channel is asked whether it lives.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How often a command follows a slot of the cluster that has moved.
const REDIRECTS: u32 = 2;

/// See the module.
pub(super) struct Servers {
    settings: Settings,
    /// The last ones that could be used: a file that is being replaced must not cut us off.
    certificates: Mutex<Option<TlsCertificates>>,
}

impl Servers {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, certificates: Mutex::new(None) }
    }

    fn certificates(&self) -> Option<TlsCertificates> {
        let files = &self.settings.tls;
        if *files == TlsFiles::default() {
            return None;
        }
        let mut last = self.certificates.lock();
        match read(files) {
            Some(read) => *last = Some(read),
            None => tracing::error!(target: "sidegate", event = "redis", state = "certificates_unusable"),
        }
        last.clone()
    }

    /// The address with credentials and certificates.
    fn dressed(&self, address: &Address) -> Result<ConnectionInfo, Fault> {
        let info = self.tuned(address)?;
        let mut login = info.redis_settings().clone();
        if let Some(username) = &self.settings.username {
            login = login.set_username(username);
        }
        if let Some(password) = &self.settings.password {
            login = login.set_password(password.expose());
        }
        Ok(info.set_redis_settings(login))
    }

    fn tuned(&self, address: &Address) -> Result<ConnectionInfo, Fault> {
        let mut info = address.0.clone().set_tcp_settings(TcpSettings::default().set_nodelay(true));
        if let (true, Some(certificates)) = (address.is_tls(), self.certificates()) {
            let client = Client::build_with_tls(info, certificates).map_err(|error| fault(&error))?;
            info = client.get_connection_info().clone();
        }
        Ok(info)
    }

    /// The client of the one server that takes writes.
    async fn master(&self) -> Result<Client, Fault> {
        match &self.settings.deployment {
            Deployment::Single(address) => Client::open(self.dressed(address)?).map_err(|error| fault(&error)),
            Deployment::Sentinel { sentinels, master } => self.behind(sentinels, master).await,
            // For subscriptions only: what is published at one node is heard at all.
            Deployment::Cluster(nodes) => {
                let mut last = Fault { reason: "no_node", lost: true };
                for node in nodes {
                    let client = Client::open(self.dressed(node)?).map_err(|error| fault(&error))?;
                    let config = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT));
                    match client.get_multiplexed_async_connection_with_config(&config).await {
                        Ok(_) => return Ok(client),
                        Err(error) => last = fault(&error),
                    }
                }
                Err(last)
            }
        }
    }

    async fn behind(&self, sentinels: &[Address], master: &str) -> Result<Client, Fault> {
        let tls = sentinels.iter().any(Address::is_tls);
        let addresses: Vec<ConnectionAddr> =
            sentinels.iter().map(|sentinel| Ok(self.tuned(sentinel)?.addr().clone())).collect::<Result<_, Fault>>()?;
        let build = || {
            let mut builder = SentinelClientBuilder::new(addresses, master, SentinelServerType::Master)?
                .set_client_to_redis_tcp_settings(TcpSettings::default().set_nodelay(true));
            if let Some(own) = sentinels.first().map(|first| first.0.redis_settings()) {
                if let Some(username) = own.username() {
                    builder = builder.set_client_to_sentinel_username(username);
                }
                if let Some(password) = own.password() {
                    builder = builder.set_client_to_sentinel_password(password);
                }
            }
            if let Some(username) = &self.settings.username {
                builder = builder.set_client_to_redis_username(username);
            }
            if let Some(password) = &self.settings.password {
                builder = builder.set_client_to_redis_password(password.expose());
            }
            if tls {
                builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
                if let Some(certificates) = self.certificates() {
                    builder = builder
                        .set_client_to_redis_certificates(certificates.clone())
                        .set_client_to_sentinel_certificates(certificates);
                }
            }
            builder.build()
        };
        // Anew each time: what a sentinel said before a fail-over is of no use after it.
        let mut client = build().map_err(|error: RedisError| fault(&error))?;
        client.async_get_client().await.map_err(|error| fault(&error))
    }

    async fn cluster(&self, nodes: &[Address]) -> Result<ClusterConnection, Fault> {
        let nodes = nodes.iter().map(|node| self.dressed(node)).collect::<Result<Vec<_>, _>>()?;
        let mut builder = ClusterClientBuilder::new(nodes)
            .tcp_settings(TcpSettings::default().set_nodelay(true))
            .connection_timeout(CONNECT)
            // Each command is bounded by whoever sends it.
            .response_timeout(CONNECT)
            .retries(REDIRECTS)
            .min_retry_wait(5)
            .max_retry_wait(20);
        if let Some(certificates) = self.certificates() {
            builder = builder.certs(certificates);
        }
        let client = builder.build().map_err(|error| fault(&error))?;
        client.get_async_connection().await.map_err(|error| fault(&error))
    }
}

#[async_trait]
impl Dialer for Servers {
    async fn dial(&self) -> Result<Arc<dyn Line>, Fault> {
        if let Deployment::Cluster(nodes) = &self.settings.deployment {
            return Ok(Arc::new(Cluster(self.cluster(nodes).await?)));
        }
        // Each command is bounded by whoever sends it.
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(None);
        let client = self.master().await?;
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        Ok(Arc::new(Server(connection.map_err(|error| fault(&error))?)))
    }

    async fn subscribe(&self, channel: &str) -> Result<Subscription, Fault> {
        let client = self.master().await?;
        let mut connection = client.get_async_pubsub().await.map_err(|error| fault(&error))?;
        connection.subscribe(channel).await.map_err(|error| fault(&error))?;
        let (sink, stream) = connection.split();
        // A server that is gone without a word is found out by asking it: the stream ends.
        let heard = futures_util::stream::unfold((sink, stream), |(mut sink, mut stream)| async move {
            loop {
                match tokio::time::timeout(HEARTBEAT, stream.next()).await {
                    Ok(Some(message)) => return Some((message.get_payload_bytes().to_vec(), (sink, stream))),
                    Ok(None) => return None,
                    Err(_) => match tokio::time::timeout(CONNECT, sink.ping::<Value>()).await {
                        Ok(Ok(_)) => {}
                        _ => return None,
                    },
                }
            }
        });
        Ok(heard.boxed())
    }
}

struct Server(MultiplexedConnection);

#[async_trait]
impl Line for Server {
    async fn send(&self, command: &Cmd) -> Result<Value, Fault> {
        self.0.clone().req_packed_command(command).await.and_then(Value::extract_error).map_err(|error| fault(&error))
    }
}

struct Cluster(ClusterConnection);

#[async_trait]
impl Line for Cluster {
    async fn send(&self, command: &Cmd) -> Result<Value, Fault> {
        self.0.clone().req_packed_command(command).await.and_then(Value::extract_error).map_err(|error| fault(&error))
    }
}

/// A word of ours for what went wrong: what the server says is not logged.
fn fault(error: &RedisError) -> Fault {
    let reason = match error.kind() {
        ErrorKind::Io if error.is_connection_refusal() => "refused",
        ErrorKind::Io if error.is_timeout() => "timeout",
        ErrorKind::Io => "connection",
        ErrorKind::AuthenticationFailed => "authentication",
        ErrorKind::InvalidClientConfig => "tls",
        ErrorKind::MasterNameNotFoundBySentinel => "no_master",
        ErrorKind::Server(ServerErrorKind::NoPerm) => "no_permission",
        ErrorKind::Server(ServerErrorKind::ReadOnly) => "read_only",
        ErrorKind::Server(ServerErrorKind::BusyLoading) => "loading",
        ErrorKind::Server(ServerErrorKind::MasterDown) => "master_down",
        ErrorKind::Server(ServerErrorKind::ClusterDown) | ErrorKind::ClusterConnectionNotFound => "cluster_down",
        _ => match error.code() {
            Some("OOM") => "out_of_memory",
            Some("NOAUTH" | "WRONGPASS") => "authentication",
            Some("MISCONF") => "misconfigured",
            _ => "error",
        },
    };
    let lost = error.is_unrecoverable_error()
        || error.is_connection_dropped()
        || matches!(
            error.kind(),
            ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown)
                | ErrorKind::AuthenticationFailed
        );
    Fault { reason, lost }
}

/// None when a file cannot be used.
fn read(files: &TlsFiles) -> Option<TlsCertificates> {
    let root_cert = match &files.ca_file {
        Some(file) => Some(anchors(file)?),
        None => None,
    };
    let client_tls = match &files.client {
        Some((cert, key)) => {
            Some(ClientTlsConfig { client_cert: std::fs::read(cert).ok()?, client_key: std::fs::read(key).ok()? })
        }
        None => None,
    };
    Some(TlsCertificates { client_tls, root_cert })
}

/// The system's trust anchors and those of the file, as PEM: the client takes the one or the other only.
fn anchors(file: &Path) -> Option<Vec<u8>> {
    let own = CertificateDer::pem_file_iter(file).ok()?.collect::<Result<Vec<_>, _>>().ok()?;
    let mut judge = rustls::RootCertStore::empty();
    if own.is_empty() || own.iter().any(|certificate| judge.add(certificate.clone()).is_err()) {
        return None;
    }
    let system = rustls_native_certs::load_native_certs().certs;
    let system = system.into_iter().filter(|certificate| judge.add(certificate.clone()).is_ok());
    let mut pem = Vec::new();
    for certificate in own.iter().cloned().chain(system.collect::<Vec<_>>()) {
        pem.extend_from_slice(b"-----BEGIN CERTIFICATE-----\n");
        for line in STANDARD.encode_to_string(&certificate).as_bytes().chunks(64) {
            pem.extend_from_slice(line);
            pem.push(b'\n');
        }
        pem.extend_from_slice(b"-----END CERTIFICATE-----\n");
    }
    Some(pem)
}
