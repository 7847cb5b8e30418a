//! A changed configuration in a running process: all of it or nothing, and nobody notices but by its effect.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;
use support::client::{Ask, Initiator};
use support::gateway::{Gateway, config, set};
use support::http2::Client;
use support::provider::ProviderDouble;
use support::upstream::{Gate, Script, Upstream};
use tokio::task::JoinSet;
use toml::Table;

/// Writes the file as an editor does that renames, so that it is never half.
fn write(gateway: &Gateway, text: &str) {
    let (file, new) = (gateway.config_file(), gateway.config_file().with_extension("new"));
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, file).unwrap();
}

/// Sends the signal and waits for what the log says of this reload.
async fn reload(gateway: &Gateway, table: &Table) -> Vec<Value> {
    write(gateway, &table.to_string());
    let before = gateway.log_events("reload").len();
    gateway.signal(Signal::HUP);
    gateway.wait_for_log("reload", before + 1).await.split_off(before)
}

async fn takes(gateway: &Gateway, table: &Table) {
    let told = reload(gateway, table).await;
    assert_eq!(told[0]["outcome"], "ok", "{told:?}");
}

fn route<'t>(table: &'t mut Table, path: &str) -> &'t mut Table {
    let routes = table["route"].as_array_mut().unwrap().iter_mut().map(|route| route.as_table_mut().unwrap());
    routes.into_iter().find(|route| route["path"].as_str() == Some(path)).unwrap()
}

/// The file of a running gateway, to be changed.
fn current(gateway: &Gateway) -> Table {
    std::fs::read_to_string(gateway.config_file()).unwrap().parse().unwrap()
}

async fn shown(gateway: &Gateway) -> Table {
    let reply = gateway.admin("/config").await.unwrap();
    String::from_utf8(reply.body).unwrap().parse().unwrap()
}

/// CFG-04: reloads in a row under load, one of them while a refresh, a slow answer and a WebSocket are under way.
#[tokio::test]
async fn a_loop_of_reloads_under_load_fails_no_request() {
    const RELOADS: usize = 15;
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start_with(&provider, &upstream, |table| {
        set(table, "refresh.wait", "\"30s\"");
        set(table, "refresh.timeout", "\"30s\"");
    })
    .await;
    let browser = gateway.signed_in().await;
    let gate = Gate::default();
    upstream.on("/api/slow", Script::Held(gate.clone(), Box::new(Script::Echo)));
    let slow = browser.launch(&Ask::fetch("/api/slow")).await;
    gate.wait_for(1).await;
    let mut socket = browser.websocket("/api/ws", Initiator::SameOrigin).await.unwrap();
    let hold = provider.hold_token_answers();
    let refreshing = browser.launch(&Ask::fetch("/auth/refresh").method("POST")).await;
    hold.wait_for(1).await;

    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut load = JoinSet::new();
    for path in ["/api/x", "/opt/x", "/open", "/auth/session"] {
        let (tab, stop) = (browser.clone(), stop.clone());
        load.spawn(async move {
            let mut answers = Vec::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                answers.push(tab.fetch(path).await.status);
            }
            answers
        });
    }
    let mut table = current(&gateway);
    for round in 0..RELOADS {
        let value = round.to_string();
        route(&mut table, "/").insert(
            "response_headers".to_owned(),
            Table::from_iter([("X-Round".to_owned(), value.clone().into())]).into(),
        );
        // Pairs and orders change too: nothing may hang on a route's place.
        table["route"].as_array_mut().unwrap().rotate_left(1);
        takes(&gateway, &table).await;
        assert_eq!(browser.fetch("/open").await.header("x-round"), Some(value.as_str()));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let answers: Vec<u16> = load.join_all().await.into_iter().flatten().collect();
    assert!(answers.len() >= RELOADS, "there was a load");
    assert_eq!(answers.iter().filter(|status| **status != 200).count(), 0, "of {}", answers.len());

    hold.release();
    assert_eq!(refreshing.answer().await.status, 200, "the flight outlived the reloads");
    assert_eq!(provider.refreshes(), 1);
    gate.open();
    assert_eq!(slow.answer().await.status, 200);
    socket.send_text("still there?").await.unwrap();
    assert_eq!(socket.next().await.unwrap().text(), "still there?");
    assert_eq!(browser.session().await["authenticated"], true);
    assert_eq!(gateway.metric("sidegate_config_reloads_total", &[("outcome", "ok")]).await, RELOADS as f64);
    assert_eq!(gateway.metric("sidegate_refreshes_total", &[("outcome", "ok")]).await, 1.0, "metrics count on");
    assert!(!gateway.output().contains("panic"));
}

/// Contract 2, "Reload": what an operator may change, seen from outside.
#[tokio::test]
async fn every_kind_of_change_takes_effect() {
    let (provider, upstream, other) = (ProviderDouble::start().await, Upstream::start().await, Upstream::start().await);
    let gateway = Gateway::start(&provider, &upstream).await;
    let browser = gateway.signed_in().await;
    let mut table = current(&gateway);

    // Routes: one more, and one that leads elsewhere.
    let more: Table =
        format!("path = \"/api/new\"\nupstream = {:?}\naccess = \"public\"", other.url()).parse().unwrap();
    table["route"].as_array_mut().unwrap().push(more.into());
    takes(&gateway, &table).await;
    assert_eq!(browser.fetch("/api/new").await.status, 200);
    assert_eq!(other.requests_to("/api/new").len(), 1);

    // Claims, CSRF, limits, log-out.
    set(&mut table, "claims.expose", "[\"sub\"]");
    set(&mut table, "csrf.allowed_origins", "[\"https://friend.example\"]");
    set(&mut table, "limits.uri_bytes", "\"1KiB\"");
    set(&mut table, "logout.clear_site_data", "[\"storage\"]");
    takes(&gateway, &table).await;
    let claims = browser.session().await["claims"].as_object().unwrap().clone();
    assert_eq!(claims.keys().collect::<Vec<_>>(), ["sub"]);
    let friend = Ask::fetch("/open").header("Origin", "https://friend.example");
    assert_eq!(browser.send(friend).await.header("access-control-allow-origin"), Some("https://friend.example"));
    assert_eq!(browser.fetch(&format!("/open?{}", "q".repeat(2000))).await.status, 414);

    // The client's secret: the provider knows the new one only.
    provider.set(|switches| switches.client_secret = "a-new-secret-for-this-client".to_owned());
    assert_eq!(browser.post("/auth/refresh").await.status, 502);
    set(&mut table, "provider.client_secret", "\"a-new-secret-for-this-client\"");
    takes(&gateway, &table).await;
    assert_eq!(browser.post("/auth/refresh").await.status, 200, "the session is the same");
    assert_eq!(browser.post("/auth/logout").await.header("clear-site-data"), Some("\"storage\""));

    // The session's life and its cookie's name.
    set(&mut table, "session.max_age", "\"10m\"");
    set(&mut table, "session.cookie_name", "\"other\"");
    takes(&gateway, &table).await;
    let end = browser.login("/").await;
    let cookie = end.via.iter().find_map(|answer| answer.set_cookie("other")).expect("a cookie of the new name");
    assert!(cookie.max_age.is_some_and(|age| (1..=600).contains(&age)), "{cookie:?}");

    // The log.
    set(&mut table, "log.access", "false");
    takes(&gateway, &table).await;
    let lines = gateway.log_events("request").len();
    assert_eq!(browser.fetch("/api/x").await.status, 200);
    set(&mut table, "log.access", "true");
    takes(&gateway, &table).await;
    assert_eq!(gateway.log_events("request").len(), lines, "none while it was off");

    // Another provider altogether.
    let second = ProviderDouble::start().await;
    second.register(&gateway.public_url);
    set(&mut table, "provider.issuer", &format!("{:?}", second.issuer));
    set(&mut table, "provider.client_id", &format!("{:?}", second.client_id()));
    set(&mut table, "provider.client_secret", &format!("{:?}", second.client_secret()));
    takes(&gateway, &table).await;
    assert_eq!(browser.session().await["authenticated"], false, "a session belongs to its issuer");
    let login = browser.start_login("/").await;
    assert!(login.location().unwrap().starts_with(&second.issuer), "{login:?}");
    assert_eq!(shown(&gateway).await["provider"]["issuer"].as_str(), Some(second.issuer.as_str()));
}

/// The next connection speaks it.
#[tokio::test]
async fn http_2_without_tls_is_switched_on() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start(&provider, &upstream).await;
    let mut table = current(&gateway);
    set(&mut table, "server.h2c", "true");
    takes(&gateway, &table).await;
    let client = Client::dial(gateway.addr).await;
    let whole = client.call("GET", &format!("{}/auth/session", gateway.public_url), &[], None).await.unwrap();
    assert_eq!(whole.status, 200);
    assert!(gateway.log_events("restart_needed").is_empty());
}

/// What needs a restart is named; what stands beside it takes effect.
#[tokio::test]
async fn what_needs_a_restart_is_named_and_the_rest_is_taken() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start(&provider, &upstream).await;
    let mut table = current(&gateway);
    let listen = table["server"]["listen"].clone();
    set(&mut table, "server.listen", "\"127.0.0.1:1\"");
    set(&mut table, "server.threads", "7");
    set(&mut table, "admin.listen", "\"127.0.0.1:2\"");
    set(&mut table, "claims.expose", "[\"sub\"]");
    takes(&gateway, &table).await;
    let named: Vec<Value> = gateway.log_events("restart_needed").iter().map(|line| line["key"].clone()).collect();
    assert_eq!(named, ["server.listen", "server.threads", "admin.listen"]);
    let shown = shown(&gateway).await;
    assert_eq!((&shown["server"]["listen"], shown["server"]["threads"].as_integer()), (&listen, Some(0)), "in force");
    assert_eq!(shown["claims"]["expose"].as_array().unwrap().len(), 1);
    let browser = gateway.signed_in().await;
    assert_eq!(browser.session().await["claims"].as_object().unwrap().len(), 1);
}

/// CFG-04: a file with mistakes changes nothing at all, and says every one of them.
#[tokio::test]
async fn a_broken_file_changes_nothing() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start(&provider, &upstream).await;
    let browser = gateway.signed_in().await;
    let (good, before) = (current(&gateway), shown(&gateway).await);

    let mut bad = good.clone();
    set(&mut bad, "claims.expose", "[]");
    set(&mut bad, "provider.clock_skew", "\"soon\"");
    route(&mut bad, "/api/").insert("upstream".to_owned(), "ftp://x".into());
    write(&gateway, &bad.to_string());
    gateway.signal(Signal::HUP);
    let told = gateway.wait_for_log("reload", 2).await;
    assert!(told.iter().all(|line| line["outcome"] == "failed" && line["level"] == "error"), "{told:?}");
    let problems: Vec<&str> = told.iter().map(|line| line["problem"].as_str().unwrap()).collect();
    assert!(problems.iter().any(|text| text.contains("provider.clock_skew")), "{problems:?}");
    assert!(problems.iter().any(|text| text.contains("route[0].upstream")), "{problems:?}");
    assert_eq!(shown(&gateway).await, before);
    assert_eq!(browser.fetch("/api/x").await.status, 200);
    assert!(browser.session().await["claims"]["sub"].is_string());

    write(&gateway, "[server\nlisten =");
    gateway.signal(Signal::HUP);
    gateway.wait_for_log("reload", 3).await;
    assert_eq!(gateway.metric("sidegate_config_reloads_total", &[("outcome", "failed")]).await, 2.0);
    assert_eq!(browser.fetch("/api/x").await.status, 200);

    takes(&gateway, &good).await;
    assert_eq!(gateway.metric("sidegate_config_reloads_total", &[("outcome", "ok")]).await, 1.0);
}

/// A mounted Secret or ConfigMap: `name -> ..data/name`, `..data -> ..v1`.
fn mount(dir: &Path, version: &str, files: &[(&str, &str)]) {
    std::fs::create_dir(dir.join(version)).unwrap();
    for (name, content) in files {
        std::fs::write(dir.join(version).join(name), content).unwrap();
        if !dir.join(name).exists() {
            symlink(format!("..data/{name}"), dir.join(name)).unwrap();
        }
    }
    symlink(version, dir.join("..data_tmp")).unwrap();
    std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
}

/// K8S-08: without any signal, when the kubelet swaps its symlink: the file itself, and a secret that it names. A file
/// that a refused configuration names is waited for.
#[tokio::test]
async fn files_are_watched_through_symlinks() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let dir = tempfile::tempdir().unwrap();
    mount(dir.path(), "..v1", &[("secret", &provider.client_secret())]);
    let mut table = config(&provider, &upstream);
    table["provider"].as_table_mut().unwrap().remove("client_secret");
    set(&mut table, "provider.client_secret_file", &format!("{:?}", dir.path().join("secret")));
    let gateway = Gateway::run(&table);
    provider.register(&gateway.public_url);
    gateway.wait_until_ready().await;
    let browser = gateway.signed_in().await;

    provider.set(|switches| switches.client_secret = "rotated-by-the-platform".to_owned());
    mount(dir.path(), "..v2", &[("secret", "rotated-by-the-platform\n")]);
    let told = gateway.wait_for_log("reload", 1).await;
    assert_eq!((&told[0]["outcome"], &told[0]["trigger"]), (&"ok".into(), &"files".into()));
    assert_eq!(browser.post("/auth/refresh").await.status, 200);

    // The new file names a key that is not there yet.
    set(&mut table, "session.key_files", &format!("[{:?}]", dir.path().join("key")));
    let key = table["session"].as_table_mut().unwrap().remove("keys").unwrap();
    write(&gateway, &table.to_string());
    let told = gateway.wait_for_log("reload", 2).await;
    assert_eq!(told[1]["outcome"], "failed");
    assert_eq!(browser.fetch("/api/x").await.status, 200);
    mount(dir.path(), "..v3", &[("secret", "rotated-by-the-platform\n"), ("key", key[0].as_str().unwrap())]);
    let told = gateway.wait_for_log("reload", 3).await;
    assert_eq!(told[2]["outcome"], "ok", "{told:?}");
    for secret in ["rotated-by-the-platform", key[0].as_str().unwrap()] {
        assert!(!gateway.output().contains(secret), "LOG-01");
        assert!(!shown(&gateway).await.to_string().contains(secret));
    }
    assert_eq!(browser.fetch("/api/x").await.status, 200, "the same key, by another way");
}

/// DOS-16: a reload forgets no count of a route that stays as it is; another rate begins anew.
#[tokio::test]
async fn a_reload_keeps_what_rates_have_counted() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start_with(&provider, &upstream, |table| {
        let rate: Table = "rate_limit = { requests = 1, per = '1h', burst = 2 }".parse().unwrap();
        route(table, "/").extend(rate);
    })
    .await;
    let browser = gateway.browser();
    assert_eq!([browser.fetch("/a").await.status, browser.fetch("/a").await.status], [200, 200]);
    let mut table = current(&gateway);
    for round in 0..2 {
        route(&mut table, "/").insert(
            "response_headers".to_owned(),
            Table::from_iter([("X-Round".to_owned(), format!("{round}").into())]).into(),
        );
        takes(&gateway, &table).await;
        assert_eq!(browser.fetch("/a").await.status, 429, "round {round}");
    }
    let rate: Table = "rate_limit = { requests = 1, per = '1h', burst = 3 }".parse().unwrap();
    route(&mut table, "/").extend(rate);
    takes(&gateway, &table).await;
    assert_eq!(browser.fetch("/a").await.status, 200);
}
