//! `POST /revoke` of the admin listener: an operator ends sessions.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use std::path::PathBuf;
use std::time::Duration;

use support::client::{Ask, Browser, Initiator};
use support::gateway::{Gateway, set};
use support::provider::{Endpoint, ProviderDouble};
use support::text;
use support::upstream::Upstream;
use support::wire::{self, Conn, Reply};
use tempfile::TempDir;

const FORM: &str = "application/x-www-form-urlencoded";
const TOKEN: &str = "operators-token-0123456789";

struct Rig {
    provider: ProviderDouble,
    _upstream: Upstream,
    gateway: Gateway,
    dir: TempDir,
}

impl Rig {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut toml::Table)) -> Self {
        let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
        let gateway = Gateway::start_with(&provider, &upstream, |config| {
            set(config, "admin.token_file", &format!("{:?}", file.to_str().unwrap()));
            change(config);
        })
        .await;
        Self { provider, _upstream: upstream, gateway, dir }
    }

    fn token_file(&self) -> PathBuf {
        self.dir.path().join("token")
    }

    async fn signed_in(&self) -> (Browser, String) {
        (self.gateway.signed_in().await, self.provider.last_session().sid)
    }

    async fn call(&self, method: &str, headers: &[(&str, &str)], body: Option<&str>) -> Reply {
        let mut conn = Conn::dial(self.gateway.admin_addr).await.unwrap();
        let host = [("Host", "admin")];
        let headers: Vec<_> = host.iter().chain(headers).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        conn.send(&wire::request_bytes(method, "/revoke", &headers, body.map(str::as_bytes))).await.unwrap();
        let reply = tokio::time::timeout(Duration::from_secs(20), wire::read_reply(&mut conn, method)).await;
        reply.expect("in time").unwrap().expect("an answer")
    }

    async fn form_with(&self, token: &str, pairs: &[(&str, &str)]) -> u16 {
        let bearer = format!("Bearer {token}");
        let headers = [("Content-Type", FORM), ("Authorization", bearer.as_str())];
        self.call("POST", &headers, Some(&text::form(pairs))).await.status
    }

    async fn form(&self, pairs: &[(&str, &str)]) -> u16 {
        self.form_with(TOKEN, pairs).await
    }
}

async fn alive(browser: &Browser) -> bool {
    browser.fetch("/api/x").await.status == 200
}

/// Contract 2.3, ASVS-7.4.5, BCL-05: `sub` ends all sessions of the user, `sid` one, and nobody else's; later logins
/// work; each end is counted and told once.
#[tokio::test]
async fn an_operator_ends_sessions() {
    let rig = Rig::start().await;
    let (one, sid) = rig.signed_in().await;
    let (two, _) = rig.signed_in().await;
    let (three, _) = rig.signed_in().await;
    rig.provider.set(|s| s.sub = "bob-0815".to_owned());
    let (bob, _) = rig.signed_in().await;
    rig.provider.set(|s| s.sub = "alice-4711".to_owned());
    let copy = one.fork();

    assert_eq!(rig.form(&[("sid", &sid)]).await, 204);
    assert!(!alive(&one).await && !alive(&copy).await && alive(&two).await && alive(&bob).await);
    assert_eq!(rig.form(&[("sub", "alice-4711"), ("iss", &rig.provider.issuer)]).await, 204);
    assert!(!alive(&two).await && !alive(&three).await && alive(&bob).await);
    assert_eq!(two.session().await["authenticated"], false);
    assert_eq!(rig.form(&[("sub", "nobody")]).await, 204);
    let (later, _) = rig.signed_in().await;
    assert!(alive(&later).await && alive(&bob).await);

    let ended = rig.gateway.wait_for_log("session_ended", 3).await;
    assert_eq!(ended.len(), 3, "each once: {ended:?}");
    assert!(ended.iter().all(|line| line["reason"] == "operator" && line["sub_hash"].is_string()), "{ended:?}");
    assert_eq!(rig.gateway.metric("sidegate_sessions_ended_total", &[("reason", "operator")]).await, 3.0);
    let orders = rig.gateway.log_events("revoke");
    assert_eq!(orders.iter().map(|line| line["by"].as_str().unwrap()).collect::<Vec<_>>(), ["sid", "sub", "sub"]);
    let output = rig.gateway.output();
    for secret in [TOKEN, "alice-4711", "nobody", sid.as_str()] {
        assert!(!output.contains(secret), "{secret}");
    }
    assert!(rig.provider.calls_to(Endpoint::Revocation).is_empty());
}

/// WS-06: what is open ends with the session.
#[tokio::test]
async fn what_is_open_ends_too() {
    let rig = Rig::start().await;
    let (browser, _) = rig.signed_in().await;
    let mut socket = browser.websocket("/api/ws", Initiator::SameOrigin).await.expect("a tunnel");
    let mut events = browser.open(&Ask::fetch("/auth/events")).await;
    assert!(events.read_until("\n\n").await.is_some());
    assert_eq!(rig.form(&[("sub", "alice-4711")]).await, 204);
    let patience = Duration::from_secs(30);
    assert!(tokio::time::timeout(patience, events.read_until("event: ended")).await.expect("in time").is_some());
    let end = tokio::time::timeout(patience, socket.next()).await.expect("the tunnel ends");
    assert!(end.as_ref().is_none_or(|frame| frame.close_code() == Some(1001)), "{end:?}");
}

/// Contract 2.3: 401 without the bearer, whatever else the request says; 400 for what is no order; 405 and 413.
#[tokio::test]
async fn what_is_refused_ends_nothing() {
    let rig = Rig::start().await;
    let (browser, _) = rig.signed_in().await;
    let bearer = format!("Bearer {TOKEN}");
    let auth = ("Authorization", bearer.as_str());
    let form = Some("sub=alice-4711");
    for wrong in ["", "Bearer", "Bearer ", "Bearer x", "Basic b3A6eA==", TOKEN, &bearer[..20], &format!("{bearer}x")] {
        let reply = rig.call("POST", &[("Content-Type", FORM), ("Authorization", wrong)], form).await;
        assert_eq!((reply.status, text::header(&reply.headers, "www-authenticate")), (401, Some("Bearer")), "{wrong}");
        assert!(!String::from_utf8_lossy(&reply.body).contains(TOKEN));
    }
    assert_eq!(rig.call("POST", &[("Content-Type", FORM)], form).await.status, 401);
    assert_eq!(rig.call("POST", &[("Content-Type", FORM), auth, auth], form).await.status, 401);
    assert_eq!(rig.call("POST", &[("Content-Type", FORM)], Some("nonsense")).await.status, 401);
    for (what, headers, body) in [
        ("nothing", vec![("Content-Type", FORM), auth], ""),
        ("another word", vec![("Content-Type", FORM), auth], "user=alice-4711"),
        ("both", vec![("Content-Type", FORM), auth], "sub=alice-4711&sid=x"),
        ("twice", vec![("Content-Type", FORM), auth], "sub=alice-4711&sub=alice-4711"),
        ("blank", vec![("Content-Type", FORM), auth], "sub="),
        ("another issuer", vec![("Content-Type", FORM), auth], "sub=alice-4711&iss=https://other.example"),
        ("JSON", vec![("Content-Type", "application/json"), auth], r#"{"sub":"alice-4711"}"#),
        ("no type", vec![auth], "sub=alice-4711"),
    ] {
        assert_eq!(rig.call("POST", &headers, Some(body)).await.status, 400, "{what}");
    }
    let long = format!("sub={}", "a".repeat(100_000));
    assert_eq!(rig.call("POST", &[("Content-Type", FORM), auth], Some(&long)).await.status, 413);
    for method in ["GET", "PUT", "DELETE"] {
        let reply = rig.call(method, &[auth], None).await;
        assert_eq!((reply.status, text::header(&reply.headers, "allow")), (405, Some("POST")), "{method}");
    }
    // The public listener has no such thing.
    assert_ne!(browser.send(Ask::fetch("/auth/revoke").form(&[("sub", "alice-4711")])).await.status, 204);
    assert!(alive(&browser).await);
}

/// Contract 2.3, ASVS-6.8.1: with several providers an order names the issuer, for one `sub` may be two users.
#[tokio::test]
async fn with_several_providers_an_order_names_the_issuer() {
    let guests = ProviderDouble::start().await;
    let rig = Rig::start_with(|config| {
        let mut home = config["provider"].as_table().unwrap().clone();
        let mut other = home.clone();
        home.insert("name".to_owned(), "home".into());
        other.insert("name".to_owned(), "guests".into());
        other.insert("issuer".to_owned(), guests.issuer.as_str().into());
        config.insert("provider".to_owned(), toml::Value::Array(vec![home.into(), other.into()]));
    })
    .await;
    let browser = rig.gateway.browser();
    browser.navigate_from(Initiator::SameOrigin, "/auth/login?provider=home").await;
    assert!(alive(&browser).await);
    assert_eq!(rig.form(&[("sub", "alice-4711")]).await, 400);
    assert_eq!(rig.form(&[("sub", "alice-4711"), ("iss", &guests.issuer)]).await, 204);
    assert!(alive(&browser).await, "another user");
    assert_eq!(rig.form(&[("sub", "alice-4711"), ("iss", &rig.provider.issuer)]).await, 204);
    assert!(!alive(&browser).await);
}

/// Contract 2: the file is read again; content that cannot be used leaves the old one in force.
#[tokio::test]
async fn the_token_changes_with_its_file() {
    let rig = Rig::start().await;
    std::fs::write(rig.token_file(), "another-token\n").unwrap();
    let other = rig.dir.path().join("next");
    assert_eq!(rig.form_with("another-token", &[("sub", "x")]).await, 204);
    assert_eq!(rig.form(&[("sub", "x")]).await, 401);
    std::fs::write(rig.token_file(), " \n").unwrap();
    assert_eq!(rig.form_with("another-token", &[("sub", "x")]).await, 204);
    assert_eq!(rig.form_with("", &[("sub", "x")]).await, 401);
    // As Kubernetes does it.
    std::fs::write(&other, "a-third-token").unwrap();
    std::fs::remove_file(rig.token_file()).unwrap();
    std::os::unix::fs::symlink(&other, rig.token_file()).unwrap();
    assert_eq!(rig.form_with("a-third-token", &[("sub", "x")]).await, 204);
    assert_eq!(rig.form_with("another-token", &[("sub", "x")]).await, 401);
}

/// Contract 2.3: 404 unless there is a token.
#[tokio::test]
async fn without_a_token_it_is_not_there() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start(&provider, &upstream).await;
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig { provider, _upstream: upstream, gateway, dir };
    for method in ["GET", "POST"] {
        let bearer = [("Content-Type", FORM), ("Authorization", "Bearer ")];
        assert_eq!(rig.call(method, &bearer, Some("sub=x")).await.status, 404, "{method}");
    }
}
