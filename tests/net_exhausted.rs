//! A process without descriptors left waits for some, and serves on. Alone in its file: the limit is the process's.

#![allow(clippy::unwrap_used, reason = "helpers of tests are test code too")]

use std::fs::File;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora::apps::{HttpServerApp, ReusedHttpStream};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sidegate::net::{AcceptService, Connections, Entrance, ListenAddress, Refusal, Refusals, bind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

struct NoContent;

#[async_trait]
impl HttpServerApp for NoContent {
    async fn process_new_http(self: &Arc<Self>, mut s: ServerSession, _: &ShutdownWatch) -> Option<ReusedHttpStream> {
        s.read_request().await.ok()?;
        s.write_response_header(Box::new(ResponseHeader::build(204, None).ok()?)).await.ok()?;
        None
    }
}

impl Refusals for NoContent {
    fn refuse(&self, _refusal: &Refusal, _peer: IpAddr, _received: &[u8]) -> Bytes {
        Bytes::new()
    }
}

#[tokio::test]
async fn dos_20_without_descriptors_clients_wait_and_are_served_later() {
    let listeners = bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
    let Some(ListenAddress::Tcp(address)) = listeners.first().map(|listener| listener.address().clone()) else {
        unreachable!("one was bound");
    };
    let (_drain, draining) = watch::channel(false);
    let entrance = Entrance {
        settings: Arc::default(),
        tls: None,
        proxy_protocol: Arc::default(),
        h2c: Arc::default(),
        refusals: Arc::new(NoContent),
        connections: Connections::new(Arc::new(())),
        draining: draining.clone(),
    };
    let mut service = AcceptService::new(listeners, Arc::new(NoContent), entrance);
    tokio::spawn(async move { service.run(draining).await });

    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: getrlimit(Resource::Nofile).maximum }).unwrap();
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    taken.pop();
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(Duration::from_millis(300), client.read_to_string(&mut answer)).await.unwrap_err();
    drop(taken);
    timeout(Duration::from_secs(10), client.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 204 "));
}
