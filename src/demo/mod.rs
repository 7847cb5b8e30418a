//! `sidegate demo`: gateway, provider, API and SPA in one process. Never for production.
//!
//! The gateway is the real one, with a configuration like any other; provider and application listen on ports of
//! their own, as they would elsewhere.

mod app;
mod provider;

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use self::provider::{CLIENT_ID, DemoProvider, USERS};
use crate::clock::Clock;
use crate::config::Surroundings;
use crate::crypto::keyring::Key;
use crate::crypto::random;

/// What the demo runs on. The servers stop when this is dropped.
#[derive(Debug)]
pub struct Demo {
    /// The configuration of its gateway.
    pub config: Surroundings,
    /// What to tell the user.
    pub banner: String,
    _runtime: tokio::runtime::Runtime,
}

/// Starts provider and application, and writes the gateway's configuration.
///
/// # Errors
/// When no port is to be had on loopback.
pub fn start(port: u16) -> io::Result<Demo> {
    let loopback = |port| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let (provider_socket, app_socket) = (loopback(0)?, loopback(0)?);
    let app = format!("http://localhost:{port}");
    let issuer = format!("http://localhost:{}", provider_socket.local_addr()?.port());
    let upstream = format!("http://{}", app_socket.local_addr()?);
    let secret = random::base64url::<24>();
    let provider = DemoProvider::new(issuer.clone(), app.clone(), secret.clone(), Clock::System)
        .ok_or_else(|| io::Error::other("no randomness for the demo provider's key"))?;

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    {
        let provider = Arc::clone(&provider);
        runtime.spawn(listen(provider_socket, move |request| Arc::clone(&provider).serve(request)));
    }
    runtime.spawn(listen(app_socket, move |request| app::serve(Arc::clone(&provider), request)));

    let config = format!(
        r#"# The configuration of this demo's gateway; a real one differs in the addresses.
[server]
listen = "127.0.0.1:{port}"
public_url = "{app}"
shutdown_delay = "0s"
shutdown_drain = "2s"

[admin]
listen = "off"

[provider]
issuer = "{issuer}"
client_id = "{CLIENT_ID}"
client_secret = "{secret}"
scopes = ["openid", "profile", "email", "offline_access"]
id_token_alg = "ES256"

[session]
keys = ["{key}"]

[refresh]
before_expiry = "0s" # so that the page can show a token that has just expired

[log]
format = "text"
level = "warn"
access = false

[[route]]
path = "/api/"
upstream = "{upstream}"
access = "session"

[[route]]
path = "/"
upstream = "{upstream}"
access = "public"
"#,
        key = Key::generate().to_base64url()
    );
    let users: Vec<String> = USERS.iter().map(|(_, name, email)| format!("{name} <{email}>")).collect();
    let banner = format!(
        "sidegate demo\n\n  Open      {app}\n  Users     {} (no password: choose one at the demo provider)\n  Provider  {issuer}\n\n\
         Access tokens live 20 seconds, so a refresh is soon to be seen. Ctrl-C stops. Never for production.\n",
        users.join(", ")
    );
    let config = Surroundings { text: Some(("the demo's configuration", config)), ..Surroundings::default() };
    Ok(Demo { config, banner, _runtime: runtime })
}

async fn listen<F, S>(socket: TcpListener, serve: S)
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let Ok(listener) = socket.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(socket)) else {
        return;
    };
    while let Ok((stream, _)) = listener.accept().await {
        let serve = serve.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let answer = serve(request);
                async move { Ok::<_, std::convert::Infallible>(answer.await) }
            });
            // A browser that goes away is no news.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}
