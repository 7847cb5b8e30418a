//! Which route takes a request, where it goes, and what a route refuses.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: what is not there must stop the test"
)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Method;
use serde_json::Value;
use sidegate::config::{self, Surroundings};
use sidegate::gateway::explain::explain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;

use support::exact::{Rig, SCRIPT, TYPED, route, routes};
use support::inside::Inside;
use support::provider::ProviderDouble;
use support::upstream::{Script, Upstream};
use support::wire::Answer;

/// Who answered: the base path of the upstream that the route names.
fn taken_by(rig: &Rig) -> String {
    let target = rig.upstream.last().target;
    target.split('/').nth(1).unwrap_or_default().to_owned()
}

/// ROUTE-05, ROUTE-06, BFF-27: the longest path wins, prefixes end at a segment, the query takes no part.
#[tokio::test]
async fn route_06_the_longest_path_wins() {
    let rig = Rig::start(|config, up| {
        let text = [
            route("/", &format!("{up}/web"), "access = 'public'"),
            route("/api/", &format!("{up}/api"), "access = 'session'"),
            route("/api/v2/", &format!("{up}/v2"), "access = 'session'"),
            route("/api/v2/admin", &format!("{up}/admin"), "access = 'session'\nmethods = ['GET', 'DELETE']"),
            route("/both", &format!("{up}/exact"), "access = 'public'"),
            route("/both/", &format!("{up}/prefix"), "access = 'public'"),
        ];
        routes(config, &text.concat());
    })
    .await;
    for (target, owner) in [
        ("/", "web"),
        ("/index.html", "web"),
        ("/apix", "web"),
        ("/API/x", "web"),
        ("/api/", "api"),
        ("/api", "api"),
        ("/api/x", "api"),
        ("/api/v2", "v2"),
        ("/api/v2/", "v2"),
        ("/api/v2/x", "v2"),
        ("/api/v2x", "api"),
        ("/api/v2/admin", "admin"),
        ("/api/v2/admin?x=/index.html", "admin"),
        ("/api/v2/admin/", "v2"),
        ("/api/v2/admin/x", "v2"),
        ("/api/v2/adminx", "v2"),
        ("/%61pi/x", "api"),
        ("/index.html?/api/x", "web"),
        ("/both", "exact"),
        ("/both/", "prefix"),
        ("/both/x", "prefix"),
    ] {
        assert_eq!(rig.get(target, &[]).await.status, 200, "{target}");
        assert_eq!(taken_by(&rig), owner, "{target}");
        let public = matches!(owner, "web" | "exact" | "prefix");
        assert_eq!(rig.upstream.last().bearer().is_none(), public, "{target}: a token where none belongs, or none");
    }
}

/// BFF-25, ROUTE-01, ASVS-6.1.3, ASVS-8.2.1, ASVS-8.3.1, ASVS-8.4.2, ASVS-13.4.5: what no route names is refused, with
/// and without a session.
#[tokio::test]
async fn route_01_a_path_that_no_route_takes_is_refused() {
    let rig = Rig::start(|config, up| routes(config, &route("/api/", up, ""))).await;
    for target in
        ["/", "/x", "/apix", "/api.html", "/ap", "/metrics", "/livez", "/readyz", "/config", "/revoke", "/debug"]
    {
        for fields in [&rig.signed(SCRIPT)[..], SCRIPT] {
            assert_eq!(rig.call("GET", target, fields).await.verdict(), (404, "no_route".to_owned()), "{target}");
        }
    }
    let page = rig.call("GET", "/nowhere", TYPED).await;
    assert_eq!((page.status, page.header("content-type")), (404, Some("text/html; charset=utf-8")));
    assert!(page.text().contains("no_route"), "the page names its code (ERR-02)");
    assert!(rig.upstream.untouched());
}

/// BFF-26: a method that the path does not take is refused with the methods of all its routes.
#[tokio::test]
async fn bff_26_methods_of_several_routes_are_one_resource() {
    let rig = Rig::start(|config, up| {
        let text = [
            route("/x", &format!("{up}/reader"), "access = 'public'\nmethods = ['GET']"),
            route("/x", &format!("{up}/writer"), "access = 'session'\nmethods = ['POST', 'PUT']"),
            route("/", &format!("{up}/web"), "access = 'public'"),
        ];
        routes(config, &text.concat());
    })
    .await;
    for (method, owner) in [("GET", "reader"), ("HEAD", "reader"), ("POST", "writer"), ("PUT", "writer")] {
        assert_eq!(rig.call(method, "/x", &rig.signed(SCRIPT)).await.status, 200, "{method}");
        assert_eq!(taken_by(&rig), owner, "{method}");
    }
    rig.upstream.forget();
    for method in ["DELETE", "PATCH", "PROPFIND", "get"] {
        for fields in [&rig.signed(SCRIPT)[..], SCRIPT] {
            let reply = rig.call(method, "/x", fields).await;
            assert_eq!(reply.verdict(), (405, "method_not_allowed".to_owned()), "{method}");
            let mut allowed: Vec<&str> = reply.header("allow").unwrap_or_default().split(", ").collect();
            allowed.sort_unstable();
            assert_eq!(allowed, ["GET", "POST", "PUT"], "{method}");
        }
    }
    assert!(rig.upstream.untouched(), "the longer path decides, not the one below it");
}

/// HTTP-26, HTTP-17, ASVS-13.4.4: TRACE and CONNECT are served nowhere.
#[tokio::test]
async fn http_26_trace_and_connect_are_refused() {
    let rig = Rig::start(|_, _| {}).await;
    for target in ["/", "/api/x", "/auth/session", "/nowhere"] {
        let reply = rig.call("TRACE", target, &rig.signed(SCRIPT)).await;
        assert!(matches!(reply.status, 405 | 501), "{target}: {}", reply.status);
        assert!(!reply.text().contains(&rig.cookie), "no echo");
    }
    for target in ["evil.test:443", "/api/x"] {
        let reply = rig.call("CONNECT", target, &rig.signed(SCRIPT)).await;
        assert!(matches!(reply.status, 400 | 405 | 501), "{target}: {}", reply.status);
    }
    assert!(rig.upstream.untouched());
}

/// ROUTE-08: hosts are compared without case and port; a foreign one is refused.
#[tokio::test]
async fn route_08_hosts() {
    let rig = Rig::start(|config, up| {
        let text = [
            route("/", &format!("{up}/other"), "access = 'public'\nhosts = ['Second.localhost']"),
            route("/only/", &format!("{up}/only"), "access = 'public'\nhosts = ['second.localhost']"),
            route("/", &format!("{up}/own"), "access = 'public'\nhosts = ['localhost']"),
        ];
        routes(config, &text.concat());
    })
    .await;
    let own = rig.gateway.host().to_owned();
    for (host, target, owner) in [
        (own.as_str(), "/x", "own"),
        (own.as_str(), "/only/x", "own"),
        ("localhost", "/x", "own"),
        ("LOCALHOST", "/x", "own"),
        ("second.localhost", "/x", "other"),
        ("SECOND.localhost:1234", "/only/x", "only"),
    ] {
        let reply = rig.call("GET", target, &[("Host", host)]).await;
        assert_eq!(reply.status, 200, "{host} {target}");
        assert_eq!(taken_by(&rig), owner, "{host} {target}");
    }
    rig.upstream.forget();
    for host in [
        "evil.test",
        "xsecond.localhost",
        "second.localhost.evil.test",
        "a.second.localhost",
        "second.localhos",
        "127.0.0.1",
        "[::1]",
        "localhost.",
    ] {
        let reply = rig.call("GET", "/x", &[("Host", host)]).await;
        assert_eq!(reply.verdict(), (421, "wrong_host".to_owned()), "{host}");
    }
    // The name that counts is the one of an absolute target; it may not differ from `Host` (HTTP-16).
    for (target, host) in [("http://evil.test/x", own.as_str()), ("http://evil.test/x", "evil.test")] {
        let reply = rig.call("GET", target, &[("Host", host)]).await;
        assert!(matches!(reply.status, 400 | 421), "{target} {host}: {}", reply.status);
    }
    assert!(rig.upstream.untouched());
}

/// ROUTE-09: stripping, rewriting and base paths, each done once.
#[tokio::test]
async fn route_09_paths_are_stripped_rewritten_and_based() {
    let rig = Rig::start(|config, up| {
        let public = "access = 'public'\n";
        let text = [
            route("/based/", &format!("{up}/base/path"), public),
            route("/based2/", &format!("{up}/base/"), public),
            route("/stripped/", up, &format!("{public}strip_prefix = true")),
            route("/deep/er/", up, &format!("{public}strip_prefix = '/deep'")),
            route("/both/", &format!("{up}/root"), &format!("{public}strip_prefix = true")),
            route("/old/", up, &format!("{public}rewrite_prefix = '/new/'")),
            route("/rebased/", &format!("{up}/b"), &format!("{public}rewrite_prefix = '/n/'")),
            route("/exact", up, &format!("{public}rewrite_prefix = '/elsewhere'")),
        ];
        routes(config, &text.concat());
    })
    .await;
    for (target, want) in [
        ("/based/x?y=1", "/base/path/based/x?y=1"),
        ("/based/", "/base/path/based/"),
        ("/based2/x", "/base/based2/x"),
        ("/stripped/x", "/x"),
        ("/stripped/x/y?z", "/x/y?z"),
        ("/stripped/", "/"),
        ("/stripped", "/"),
        ("/stripped?q=1", "/?q=1"),
        ("/stripped/?q", "/?q"),
        ("/stripped/?", "/?"),
        ("/stripped/stripped/x", "/stripped/x"),
        ("/deep/er/x", "/er/x"),
        ("/both/x", "/root/x"),
        ("/both/", "/root/"),
        ("/old/x?y", "/new/x?y"),
        ("/old/", "/new/"),
        ("/old/old/x", "/new/old/x"),
        ("/rebased/x", "/b/n/x"),
        ("/exact?a", "/elsewhere?a"),
    ] {
        assert_eq!(rig.forwarded("GET", target, SCRIPT).await.target, want, "{target}");
    }
    let query = "/stripped/a%20b%C3%A4?x=%2F..%2f&y=a+b&//;={}|^`'[]\\";
    assert_eq!(rig.forwarded("GET", query, SCRIPT).await.target, query.replacen("/stripped", "", 1), "byte for byte");

    rig.upstream.forget();
    for target in [
        "/stripped/../x",
        "/stripped/../../etc/passwd",
        "/stripped//evil.test/x",
        "/stripped/..%2fx",
        "/stripped/%2e%2e/x",
        "/stripped//",
        "/both/../../x",
        "/both//x",
        "/based/../../x",
        "/stripped/..",
        "/strippedx",
    ] {
        let reply = rig.call("GET", target, SCRIPT).await;
        assert!(matches!(reply.status, 400 | 404), "{target}: {}", reply.status);
    }
    assert!(rig.upstream.untouched(), "nothing leaves the route's tree");
}

/// ROUTE-02, ROUTE-03, ROUTE-04, ROUTE-10, ASVS-1.1.1, ASVS-1.5.3: a path with two readings gets past no rule.
#[tokio::test]
async fn pitfall_05_no_spelling_reaches_a_protected_path() {
    let rig = Rig::start(|config, up| {
        routes(config, &[route("/api/", up, ""), route("/public/", up, "access = 'public'")].concat());
    })
    .await;
    for target in [
        "/public/../api/admin",
        "/public/%2e%2e/api/admin",
        "/public/%2E./api/admin",
        "/public/..%2fapi/admin",
        "/public/..%5capi",
        "/public/.%00./api",
        "/public/..;/api/admin",
        "/public;/../api",
        "/public\\..\\api\\admin",
        "/public/%5c..%5capi",
        "//api/admin",
        "/api//admin",
        "/./api/admin",
        "/api/./admin",
        "/api/admin%00",
        "/api/admin%0a",
        "/api/%zz",
        "/api/%",
        "/%c0%ae%c0%ae/api",
        "/public#/../api",
        "/api/\u{ff}",
        "api/admin",
    ] {
        let reply = rig.call("GET", target, &rig.signed(SCRIPT)).await;
        let wanted = if matches!(reply.code().as_str(), "bad_path" | "bad_request") { 400 } else { 0 };
        assert_eq!(reply.status, wanted, "{target}: {}", reply.text());
    }
    assert!(rig.upstream.untouched());
    // What has one reading is judged in that reading.
    assert_eq!(rig.call("GET", "/%61pi/admin", SCRIPT).await.status, 401);
    assert_eq!(rig.forwarded("GET", "/public/%7Eme/%252e%252e/x", SCRIPT).await.target, "/public/~me/%252e%252e/x");
}

/// ROUTE-07: the prefix of our endpoints is never forwarded, in no spelling.
#[tokio::test]
async fn route_07_the_prefix_is_ours() {
    let rig = Rig::start(|config, up| {
        let text = [route("/", up, "access = 'public'"), route("/authx/", up, "access = 'public'")];
        routes(config, &text.concat());
    })
    .await;
    for (target, status) in [
        ("/auth", 404),
        ("/auth/", 404),
        ("/auth/nowhere", 404),
        ("/auth/session/", 404),
        ("/auth/Session", 404),
        ("/%61uth/session", 200),
        ("//auth/session", 400),
        ("/auth//session", 400),
        ("/x/../auth/session", 400),
        ("/auth%2fsession", 400),
    ] {
        assert_eq!(rig.get(target, &[]).await.status, status, "{target}");
    }
    assert!(rig.upstream.untouched());
    for target in ["/AUTH/session", "/authx/session", "/x/auth/session"] {
        assert_eq!(rig.get(target, &[]).await.status, 200, "{target}");
        assert_eq!(rig.upstream.last().target, target, "paths are case-sensitive, prefixes end at a segment");
    }
}

/// HLT-02: probes are answered by the admin listener; here neither their names nor their paths open anything.
#[tokio::test]
async fn hlt_02_probes_get_past_no_rule() {
    let rig = Rig::start(|config, up| routes(config, &route("/", up, ""))).await;
    for agent in ["kube-probe/1.30", "GoogleHC/1.0", "ELB-HealthChecker/2.0", "Consul Health Check"] {
        for target in ["/", "/healthz", "/livez", "/readyz", "/ping", "/metrics"] {
            for fields in [&[("User-Agent", agent)][..], &[SCRIPT, &[("User-Agent", agent)]].concat()] {
                let reply = rig.call("GET", target, fields).await;
                assert_eq!(reply.verdict(), (401, "login_required".to_owned()), "{agent} {target}");
            }
        }
    }
    assert!(rig.upstream.untouched());
}

/// BFF-24, BFF-28, ASVS-1.3.6, ASVS-13.2.4, ASVS-13.2.5: nothing in a request or an answer sends it elsewhere.
#[tokio::test]
async fn bff_24_only_configured_upstreams_are_reached() {
    let rig = Rig::start(|_, _| {}).await;
    let evil = Upstream::start().await;
    let elsewhere = evil.url();
    let authority = elsewhere.strip_prefix("http://").expect("a URL").to_owned();
    for (target, name, value) in [
        (elsewhere.as_str(), "X-Nothing", "1"),
        ("/api/x", "Host", authority.as_str()),
        ("/api/x", "X-Forwarded-Host", authority.as_str()),
        ("/api/x", "X-Original-URL", elsewhere.as_str()),
        ("/api/x", "X-Rewrite-URL", elsewhere.as_str()),
        ("/api/x", "Forwarded", &format!("host={authority}")),
        (&format!("/@{authority}/"), "X-Nothing", "1"),
        (&format!("/%2f%2f{authority}/"), "X-Nothing", "1"),
        (&format!("//{authority}/"), "X-Nothing", "1"),
    ] {
        rig.call("GET", target, &rig.signed(&[SCRIPT, &[(name, value)]].concat())).await;
    }
    for status in [301, 302, 303, 307, 308] {
        let redirect = Answer::empty(status).with("Location", &format!("{elsewhere}/caught"));
        rig.upstream.on("/api/away", Script::Answer(redirect));
        let reply = rig.get("/api/away", &[]).await;
        assert_eq!((reply.status, reply.header("location")), (status, Some(format!("{elsewhere}/caught").as_str())));
    }
    assert_eq!(evil.connections(), 0);
}

/// A unix socket is an upstream like any other.
#[tokio::test]
async fn an_upstream_may_be_a_unix_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("app.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a head"));
            }
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", head.len());
            let _ = stream.write_all(&[answer.as_bytes(), &head].concat()).await;
        }
    });
    let rig = Rig::start(|config, _| {
        routes(config, &route("/api/", &format!("unix:{}", path.display()), ""));
    })
    .await;
    let reply = rig.get("/api/x?y=1", &[]).await;
    let head = reply.text().to_lowercase();
    assert!(head.starts_with("get /api/x?y=1 http/1.1\r\n"), "{head}");
    assert_eq!(head.matches("\r\nauthorization: bearer ").count(), 1, "{head}");
    assert_eq!(head.matches("\r\nhost: ").count(), 1, "{head}");

    let gone = Rig::start(|config, _| {
        routes(config, &route("/api/", &format!("unix:{}/none.sock", dir.path().display()), ""));
    })
    .await;
    assert_eq!(gone.get("/api/x", &[]).await.verdict(), (502, "upstream_unreachable".to_owned()));
}

/// Of several upstreams all are used, and a dead one is passed over.
#[tokio::test]
async fn a_dead_upstream_is_passed_over() {
    let (provider, first) = (ProviderDouble::start().await, Upstream::start().await);
    let (second, dead) = (Upstream::start().await, Upstream::start().await);
    dead.go_down().await;
    let gateway = Inside::start_with(&provider, &first, |config| {
        let list = format!("['{}', '{}', '{}']", dead.url(), first.url(), second.url());
        routes(config, &format!("[[route]]\npath = '/'\naccess = 'public'\nupstream = {list}\n"));
    })
    .await;
    for number in 0..6 {
        let get = gateway.exact("GET", &format!("/{number}"), SCRIPT, None).await.expect("an answer");
        let post = gateway.exact("POST", &format!("/{number}"), SCRIPT, Some(b"body")).await.expect("an answer");
        assert_eq!((get.status, post.status), (200, 200));
    }
    assert!(!first.requests().is_empty() && !second.requests().is_empty(), "all addresses are used");
    assert_eq!(first.requests().len() + second.requests().len(), 12, "nothing is sent twice");

    first.go_down().await;
    second.go_down().await;
    let reply = gateway.exact("GET", "/", SCRIPT, None).await.expect("an answer");
    assert_eq!(reply.verdict(), (502, "upstream_unreachable".to_owned()));
    second.come_back().await;
    for _ in 0..3 {
        assert_eq!(gateway.exact("GET", "/", SCRIPT, None).await.expect("an answer").status, 200, "and it comes back");
    }
}

/// A name that does not resolve stops neither the start nor the other routes.
#[tokio::test]
async fn a_name_that_does_not_resolve_is_a_502_on_its_route_alone() {
    let rig = Rig::start(|config, up| {
        let text = [
            route("/lost/", "http://no-such-host.invalid:81", ""),
            route("/named/", &up.replace("127.0.0.1", "localhost"), ""),
            route("/", up, "access = 'public'"),
        ];
        routes(config, &text.concat());
    })
    .await;
    assert_eq!(rig.get("/lost/x", &[]).await.verdict(), (502, "upstream_unreachable".to_owned()));
    assert_eq!(rig.get("/x", &[]).await.status, 200);
    assert_eq!(rig.get("/named/x", &[]).await.status, 200);
    assert_eq!(rig.upstream.last().header("host"), Some(&*rig.upstream.url().replace("http://127.0.0.1", "localhost")));
    let page = rig.call("GET", "/lost/x", &rig.signed(TYPED)).await;
    assert_eq!(page.status, 502);
    assert!(page.text().contains("upstream_unreachable") && !page.text().contains("no-such-host"), "{}", page.text());
}

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "fixtures", "tls", name].iter().collect()
}

/// An upstream with TLS and the certificate for `localhost`; counts connections and requests.
struct Secure {
    port: u16,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

impl Secure {
    async fn start() -> Self {
        Self::trusting(None).await
    }

    /// One that wants a certificate of this authority from us.
    async fn trusting(client_ca: Option<&Path>) -> Self {
        let (cert, key) = (fixture("localhost.pem"), fixture("localhost.key"));
        let tls = sidegate::net::load_server_config(&cert, &key, client_ca, false).expect("a certificate");
        let acceptor = TlsAcceptor::from(tls);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (accepted, answered) = (Arc::clone(&connections), Arc::clone(&requests));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::SeqCst);
                let (acceptor, answered) = (acceptor.clone(), Arc::clone(&answered));
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut head = Vec::new();
                    while let Ok(byte) = stream.read_u8().await {
                        head.push(byte);
                        if head.ends_with(b"\r\n\r\n") {
                            head.clear();
                            answered.fetch_add(1, Ordering::SeqCst);
                            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                            let _ = stream.flush().await;
                        }
                    }
                });
            }
        });
        Self { port, connections, requests }
    }
}

/// RFC9700-14, ASVS-12.3.2, ASVS-12.3.4: a certificate that cannot be verified ends in a 502, never in an unchecked or
/// plain connection; one route's trust is not another's.
#[tokio::test]
async fn pitfall_27_an_untrusted_certificate_is_a_502() {
    let (secure, mutual) = (Secure::start().await, Secure::trusting(Some(&fixture("localhost.pem"))).await);
    let port = secure.port;
    let trust = format!("ca_file = {:?}", fixture("localhost.pem"));
    let strict = format!("https://localhost:{}", mutual.port);
    let rig = Rig::start(|config, up| {
        let (name, address) = (format!("https://localhost:{port}"), format!("https://127.0.0.1:{port}"));
        let text = [
            route("/trusted/", &name, &format!("upstream_tls = {{ {trust} }}")),
            route("/renamed/", &address, &format!("upstream_tls = {{ {trust}, server_name = 'localhost' }}")),
            route("/system/", &name, ""),
            route("/literal/", &address, ""),
            route("/misnamed/", &name, &format!("upstream_tls = {{ {trust}, server_name = 'other.test' }}")),
            route("/mutual/", &strict, &format!("upstream_tls = {{ {trust} }}")),
            route("/", up, "access = 'public'"),
        ];
        routes(config, &text.concat());
    })
    .await;
    for path in ["/trusted/x", "/renamed/x"] {
        let reply = rig.get(path, &[]).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "ok"), "{path}");
    }
    assert_eq!(secure.requests.load(Ordering::SeqCst), 2);
    // The last of them is refused itself.
    for path in ["/system/x", "/literal/x", "/misnamed/x", "/mutual/x"] {
        assert_eq!(rig.get(path, &[]).await.verdict(), (502, "upstream_unreachable".to_owned()), "{path}");
    }
    assert!(secure.connections.load(Ordering::SeqCst) >= 3);
    assert_eq!(secure.requests.load(Ordering::SeqCst), 2, "nothing was sent where nobody was verified");
    assert_eq!(rig.get("/x", &[]).await.status, 200);
}

/// What a route's own trust costs is paid once a connection, and connections are kept.
#[tokio::test]
async fn pitfall_28_connections_with_own_trust_are_kept() {
    let secure = Secure::start().await;
    let port = secure.port;
    let rig = Rig::start(|config, _| {
        let trust = format!("upstream_tls = {{ ca_file = {:?} }}", fixture("localhost.pem"));
        routes(config, &route("/", &format!("https://localhost:{port}"), &trust));
    })
    .await;
    for _ in 0..5 {
        assert_eq!(rig.get("/x", &[]).await.status, 200);
    }
    assert!(secure.requests.load(Ordering::SeqCst) >= 5);
    assert_eq!(secure.connections.load(Ordering::SeqCst), 1);
}

/// ASVS-12.2.1, ASVS-12.3.3: a plain upstream behind `https://` is not spoken to in clear text.
#[tokio::test]
async fn pitfall_26_tls_is_never_given_up() {
    let rig = Rig::start(|config, up| {
        routes(config, &route("/api/", &up.replace("http://", "https://"), "connect_timeout = '300ms'"));
    })
    .await;
    let reply = rig.get("/api/x", &[]).await;
    assert!(matches!(reply.code().as_str(), "upstream_unreachable" | "upstream_timeout"), "{}", reply.text());
    let seen = String::from_utf8_lossy(&rig.upstream.bytes()).into_owned();
    assert!(!seen.contains("HTTP/1.1") && !seen.to_lowercase().contains("bearer"), "{seen}");
}

/// What `explain` says of a request, as `(without a session, with one)`: statuses, 200 for "forwarded".
fn explained(text: &str) -> (u16, u16) {
    let status = |words: &str| {
        if words.starts_with("forwarded") {
            return 200;
        }
        if words.starts_with("the hop page") {
            return 200;
        }
        if words.starts_with("answered by sidegate") {
            return 204;
        }
        words.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{words:?} in {text}"))
    };
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    match (line("answer"), line("without session"), line("with session")) {
        (Some(answer), _, _) => (status(answer), status(answer)),
        (None, Some(without), Some(with)) => (status(without), status(with)),
        _ => panic!("{text}"),
    }
}

/// ROUTE-06, CFG-02: `explain` tells what the gateway then does.
#[tokio::test]
async fn explain_agrees_with_the_gateway() {
    let rig = Rig::start(|config, up| {
        let text = [
            route("/api/", &format!("{up}/A"), ""),
            route("/api/admin/", &format!("{up}/B"), "methods = ['GET']\ntoken = 'id'"),
            route("/api/admin/", &format!("{up}/C"), "methods = ['POST']\ntoken = 'none'"),
            route("/opt/", &format!("{up}/D"), "access = 'optional'\nstrip_prefix = true"),
            route("/only401/", &format!("{up}/E"), "on_anonymous = '401'"),
            route("/login/", &format!("{up}/F"), "on_anonymous = 'login'\ntoken_header = 'X-Token'"),
            route("/old/", &format!("{up}/G"), "access = 'public'\nrewrite_prefix = '/new/'"),
            route("/assets/x", up, "access = 'public'"),
        ];
        routes(config, &text.concat());
    })
    .await;
    let around = Surroundings { text: Some(("test", rig.gateway.config.to_string())), ..Surroundings::default() };
    let config = config::load_in(&[], &around).expect("the same configuration");
    let targets = [
        "/",
        "/api",
        "/api/x?y=1",
        "/apix",
        "/api/admin/x",
        "/api/admin",
        "/opt/x",
        "/opt",
        "/only401/x",
        "/login/x",
        "/old/x",
        "/assets/x",
        "/assets/x/",
        "/%61pi/x",
        "/api/..",
        "/api/%2e%2e%2fx",
        "/a\\b",
        "/auth/nowhere",
        "/auth",
        "//x",
    ];
    for method in ["GET", "HEAD", "POST", "DELETE", "OPTIONS", "TRACE"] {
        for target in targets {
            for navigate in [false, true] {
                let says =
                    explain(&config.gateway, false, &Method::try_from(method).expect("a method"), target, navigate);
                let (without, with) = explained(&says);
                let fields: &[(&str, &str)] = match (navigate, method) {
                    (false, _) => SCRIPT,
                    (true, "GET" | "HEAD") => TYPED,
                    // Only a page of the app can post to it.
                    (true, _) => &[
                        ("Sec-Fetch-Site", "same-origin"),
                        ("Sec-Fetch-Mode", "navigate"),
                        ("Sec-Fetch-Dest", "document"),
                    ],
                };
                rig.upstream.forget();
                let at = format!("{method} {target} navigate={navigate}\n{says}");
                assert_eq!(rig.call(method, target, fields).await.status, without, "without: {at}");
                rig.upstream.forget();
                assert_eq!(rig.call(method, target, &rig.signed(fields)).await.status, with, "with: {at}");
                let seen = rig.upstream.requests();
                assert_eq!(seen.len(), usize::from(with == 200), "{at}");
                let Some(seen) = seen.first() else { continue };
                let line = |name: &str| says.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim();
                assert_eq!(seen.target, line("forwarded as"), "{at}");
                let token = line("token").split(' ').next().unwrap_or_default();
                let sent = seen.bearer().or_else(|| seen.header("x-token")).unwrap_or_default();
                let sent = match sent {
                    "" => "none",
                    text if text.starts_with("eyJ") => "id",
                    _ => "access",
                };
                assert_eq!(sent, token, "{at}");
            }
        }
    }
}

/// ERR-01, RFC9700-18, ASVS-3.2.1, ASVS-3.4.5, ASVS-3.4.6, ASVS-4.1.1, ASVS-13.4.2, ASVS-13.4.6, ASVS-16.5.1: a
/// refusal is a problem document that tells nothing of the inside.
#[tokio::test]
async fn err_01_refusals_are_problem_documents() {
    let rig = Rig::start(|config, up| {
        let text = [
            route("/api/", up, ""),
            route("/dead/", "http://127.0.0.1:9", "access = 'public'"),
            route("/small/", up, "access = 'public'\nmax_body = '4B'"),
        ];
        routes(config, &text.concat());
    })
    .await;
    let evil: &[(&str, &str)] = &[("Host", "evil.test")];
    for (method, target, fields, status, code) in [
        ("GET", "/api/x", SCRIPT, 401, "login_required"),
        ("GET", "/nowhere", SCRIPT, 404, "no_route"),
        ("POST", "/auth/session", SCRIPT, 405, "method_not_allowed"),
        ("GET", "/api/..", SCRIPT, 400, "bad_path"),
        ("GET", "/dead/", SCRIPT, 502, "upstream_unreachable"),
        ("GET", "/api/x", evil, 421, "wrong_host"),
    ] {
        let reply = rig.call(method, target, fields).await;
        assert_eq!(reply.verdict(), (status, code.to_owned()), "{target}");
        let document: Value = serde_json::from_slice(&reply.body).expect("JSON");
        let media_type = reply.header("content-type").unwrap_or_default();
        assert!(media_type.starts_with("application/problem+json"), "{media_type}");
        assert_eq!(document["status"], status);
        for member in ["title", "detail", "request_id"] {
            assert!(document[member].as_str().is_some_and(|text| !text.is_empty()), "{member} of {document}");
        }
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(reply.header("referrer-policy"), Some("no-referrer"));
        let policy = reply.header("content-security-policy").unwrap_or_default();
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
        let told = format!("{}{}", reply.head(), reply.text()).to_lowercase();
        for inside in ["pingora", "127.0.0.1:9", ".rs", "panic"] {
            assert!(!told.contains(inside), "{inside} in {told}");
        }
    }
}
