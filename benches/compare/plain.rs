//! Pingora with nothing on top: what sidegate is measured against.

use std::net::SocketAddr;
use std::process::ExitCode;

use async_trait::async_trait;
use http::{HeaderValue, header};
use pingora::http::RequestHeader;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server};
use pingora::upstreams::peer::HttpPeer;

/// An address, and at most one field exchanged for another.
struct Plain {
    upstream: SocketAddr,
    bearer: Option<HeaderValue>,
}

#[async_trait]
impl ProxyHttp for Plain {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.upstream, false, String::new())))
    }

    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        request: &mut RequestHeader,
        _: &mut (),
    ) -> pingora::Result<()> {
        if let Some(bearer) = &self.bearer {
            request.remove_header(&header::COOKIE);
            request.insert_header(header::AUTHORIZATION, bearer.clone())?;
        }
        Ok(())
    }
}

/// Is that proxy: `bearer` is the length of what replaces the cookie; 0 leaves all as it is.
pub(crate) fn serve(listen: &str, upstream: &str, bearer: &str) -> ExitCode {
    let upstream = upstream.parse().expect("an address");
    let bearer = match bearer.parse().expect("a number") {
        0 => None,
        length => HeaderValue::try_from("b".repeat(length)).ok(),
    };
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: 512, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Plain { upstream, bearer });
    service.add_tcp(listen);
    server.add_service(service);
    server.run(RunArgs::default());
    ExitCode::SUCCESS
}
