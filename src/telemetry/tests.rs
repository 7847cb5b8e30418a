use serde_json::Value;

use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_123);

fn log(settings: Settings) -> Arc<Log> {
    let clock = Clock::manual(NOW);
    Arc::new(Log {
        settings: ArcSwap::from_pointee(settings),
        clock,
        sink: Sink::Memory(Mutex::default()),
        foreign: Foreign::default(),
    })
}

fn written(log: &Log) -> String {
    let Sink::Memory(bytes) = &log.sink else { panic!("tests write to memory") };
    String::from_utf8(bytes.lock().clone()).expect("lines are UTF-8")
}

/// What `act` logs.
fn captured(settings: Settings, act: impl FnOnce()) -> String {
    let log = log(settings);
    tracing::subscriber::with_default(tracing_subscriber::registry().with(Lines(Arc::clone(&log))), act);
    written(&log)
}

fn lines(settings: Settings, act: impl FnOnce()) -> Vec<Value> {
    let text = captured(settings, act);
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn at(level: Level) -> Settings {
    Settings { level, ..Settings::default() }
}

fn request<'a>() -> AccessLine<'a> {
    AccessLine {
        request_id: "rid-1",
        route: "/api/",
        method: "GET",
        path: "/api/x",
        status: 200,
        duration: Duration::from_micros(12_345),
        upstream: Some(Duration::from_micros(9_007)),
        client: Some(IpAddr::from([127, 0, 0, 1])),
        sub_hash: Some(SubHash(0xbeef)),
        trace_id: None,
        code: None,
    }
}

/// What the line of one request looks like.
fn access_line(settings: Settings, line: &AccessLine<'_>) -> String {
    let log = log(settings);
    log.access(line);
    written(&log)
}

/// LOG-06
#[test]
fn the_line_of_a_request() {
    assert_eq!(
        access_line(Settings::default(), &request()),
        concat!(
            r#"{"ts":"2023-11-14T22:13:20.123Z","level":"info","event":"request","request_id":"rid-1","route":"/api/","#,
            r#""method":"GET","path":"/api/x","status":200,"duration_ms":12.345,"upstream_ms":9.007,"#,
            r#""client":"127.0.0.1","sub_hash":"000000000000beef"}"#,
            "\n"
        )
    );
}

/// LOG-02
#[test]
fn a_query_is_cut_even_if_the_caller_forgot() {
    let line = access_line(Settings::default(), &AccessLine { path: "/cb?code=canary", ..request() });
    assert!(line.contains(r#""path":"/cb","#) && !line.contains("canary"), "{line}");
}

#[test]
fn access_lines_can_be_switched_off() {
    assert_eq!(access_line(Settings { access: false, ..Settings::default() }, &request()), "");
}

#[test]
fn text_lines_never_look_like_json() {
    let settings = Settings { format: Format::Text, ..Settings::default() };
    let line = access_line(settings, &AccessLine { path: "/a b\n{\"event\":\"login\"}\u{1b}[31m", ..request() });
    assert!(line.starts_with("2023-11-14T22:13:20.123Z INFO  request request_id=rid-1 route=/api/"), "{line}");
    assert_eq!(line.lines().count(), 1);
    assert!(!line.contains('\u{1b}') && line.contains(r#"path="/a b\u000a{\"event"#), "{line}");
}

/// LOG-05, ASVS-16.4.1
#[test]
fn injected_text_stays_text() {
    let evil = "x\"},{\"event\":\"login\"}\r\n{\"event\":\"login\"}\u{1b}[31m\u{85}\u{2028}\u{202e}\u{7f}\\\u{fe0f}é";
    let line = access_line(
        Settings::default(),
        &AccessLine { path: evil, request_id: evil, method: evil, route: evil, ..request() },
    );
    assert_eq!(line.lines().count(), 1);
    assert!(line.trim_end().chars().all(|c| !c.is_control() && c != '\u{2028}' && c != '\u{202e}'), "{line:?}");
    let document: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(document["event"], "request");
    assert_eq!(document["path"], evil, "and it can be read back");
}

/// LOG-05: whatever is in the fields, a line ends.
#[test]
fn lines_are_bounded() {
    for filler in ["a", "\u{1}", "\"", "é", "😀", "\u{2028}"] {
        let long = filler.repeat(100_000 / filler.len());
        let log = log(Settings::default());
        log.line(Level::Info, &long, Kind::Event, |line| {
            for key in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
                line.text(key, &long);
                line.shown(key, format_args!("{long}"));
                line.value("n", format_args!("{}", u64::MAX));
            }
        });
        let text = written(&log);
        assert!(text.len() < 16 * 1024, "{} bytes of {filler:?}", text.len());
        let document: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} with {filler:?}"));
        assert!(document["a"].as_str().unwrap().ends_with(CUT));
    }
}

#[test]
fn our_events_have_their_fields() {
    let found = lines(Settings::default(), || {
        tracing::info!(target: "sidegate", event = "listening", addr = %"127.0.0.1:1", n = 3_u64, ok = true, f = 1.5);
        tracing::debug!(target: "sidegate", event = "too quiet");
        tracing::warn!(target: "sidegate::net", nan = f64::NAN, none = None::<&str>, "words {}", 1);
    });
    assert_eq!(found.len(), 2);
    let expected = serde_json::json!({
        "ts": "2023-11-14T22:13:20.123Z", "level": "info", "event": "listening",
        "addr": "127.0.0.1:1", "n": 3, "ok": true, "f": 1.5
    });
    assert_eq!(found[0], expected);
    assert_eq!(
        (&found[1]["event"], &found[1]["message"], &found[1]["nan"]),
        (&"note".into(), &"words 1".into(), &"NaN".into())
    );
    assert!(found[1].get("none").is_none());
}

/// LOG-07
#[test]
fn audit_events_are_written_at_every_level() {
    let hash = SubHasher::new([7; 32]).hash("https://idp.test", "alice");
    let origin =
        audit::Origin { request_id: Some("rid-2"), client: Some(IpAddr::from([192, 0, 2, 1])), sub_hash: Some(hash) };
    let found = lines(at(Level::Error), || {
        audit::login(&origin);
        audit::login_refused(&audit::Origin::default(), "bad_state");
        audit::refresh(&origin, "ok", None);
        audit::refresh(&origin, "dead", Some("invalid_grant"));
        audit::logout(&origin);
        audit::session_ended(&origin, "idle");
        audit::csrf_refused(&origin, "/api/", "cross_site");
        tracing::info!(target: "sidegate", event = "listening");
        tracing::info!(target: "sidegateway", event = "not ours");
    });
    let names: Vec<_> = found.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["login", "login_refused", "refresh", "refresh", "logout", "session_ended", "csrf_refused"]);
    assert_eq!(found[0]["sub_hash"], hash.to_string());
    assert_eq!(found[0]["client"], "192.0.2.1");
    assert_eq!((&found[1]["level"], &found[1]["reason"]), (&"warn".into(), &"bad_state".into()));
    assert!(found[1].get("sub_hash").is_none() && found[1].get("client").is_none());
    assert_eq!((&found[3]["outcome"], &found[3]["reason"]), (&"dead".into(), &"invalid_grant".into()));
    assert_eq!((&found[6]["route"], &found[6]["reason"]), (&"/api/".into(), &"cross_site".into()));
}

/// LOG-03, LOG-04
#[test]
fn libraries_tell_no_secrets_at_any_level() {
    let canary = "canary-4711";
    for format in [Format::Json, Format::Text] {
        let text = captured(Settings { format, level: Level::Trace, access: true }, || {
            tracing::trace!(target: "pingora_core::protocols", "read {canary}");
            tracing::debug!(target: "h2::codec", "frame {canary}");
            tracing::info!(target: "reqwest::connect", "GET https://idp.test/{canary}");
            tracing::warn!(target: "pingora_proxy", "InvalidHTTPHeader {canary}");
            tracing::error!(
                target: "pingora_proxy",
                "Fail to proxy: Downstream InvalidHTTPHeader context: buf: GET /?{canary} cause: Cookie: {canary}"
            );
            tracing::error!(target: "pingora_core", "failed with {canary}");
            tracing::warn!(target: "rustls::msgs", "Illegal SNI hostname received \"{canary}\"");
            tracing::warn!(target: "hyper", "bad Authorization Bearer {canary}");
            tracing::warn!(target: "reqwest", "error sending request for url (https://x/?code={canary})");
            tracing::error!(target: "other", user = canary, "with fields");
        });
        assert!(!text.contains(canary), "{text}");
        assert!(text.contains("InvalidHTTPHeader") && text.contains("Illegal SNI hostname received"), "{text}");
        assert_eq!(text.lines().count(), 5, "{text}");
    }
}

/// The same by way of the `log` crate, which is what Pingora uses.
#[test]
fn records_of_the_log_crate_are_scrubbed_too() {
    use tracing_log::{LogTracer, log};
    let found = lines(at(Level::Trace), || {
        let bridge = LogTracer::new();
        for (level, target, text) in [
            (log::Level::Error, "pingora_core::apps", "ConnectRefused for /path?canary"),
            (log::Level::Debug, "pingora_core::apps", "ReadError canary"),
            (log::Level::Warn, "rustls", "Sending fatal alert canary"),
        ] {
            let record = format_args!("{text}");
            log::Log::log(&bridge, &log::Record::builder().level(level).target(target).args(record).build());
        }
    });
    assert_eq!(found.len(), 2);
    assert_eq!((&found[0]["target"], &found[0]["message"]), (&"pingora_core::apps".into(), &"ConnectRefused".into()));
    assert_eq!((&found[1]["target"], &found[1]["level"]), (&"rustls".into(), &"warn".into()));
}

/// LOG-11
#[test]
fn a_flood_of_library_lines_is_counted_instead() {
    let log = log(Settings::default());
    let subscriber = tracing_subscriber::registry().with(Lines(Arc::clone(&log)));
    tracing::subscriber::with_default(subscriber, || {
        for _ in 0..1000 {
            tracing::warn!(target: "rustls", "again");
        }
        log.clock.advance(Duration::from_secs(1));
        tracing::warn!(target: "rustls", "again");
    });
    let text = written(&log);
    assert_eq!(text.lines().count(), 21);
    assert!(text.lines().last().unwrap().contains(r#""suppressed":980"#));
}

/// LOG-10, ASVS-16.5.4
#[test]
fn a_panic_is_a_place_without_words() {
    let log = log(Settings::default());
    log.panicked(Some(("/home/me/.cargo/registry/src/index-1/dep-1.0/src/lib.rs", 7)));
    let document: Value = serde_json::from_str(&written(&log)).unwrap();
    assert_eq!(
        (&document["event"], &document["level"], &document["location"]),
        (&"panic".into(), &"error".into(), &"index-1/dep-1.0/src/lib.rs:7".into())
    );
}

/// LOG-08
#[test]
fn a_users_pseudonym_is_stable_under_one_key() {
    let hasher = SubHasher::new([1; 32]);
    let alice = hasher.hash("https://idp.test", "alice");
    assert_eq!(alice, hasher.hash("https://idp.test", "alice"));
    assert_ne!(alice, hasher.hash("https://idp.test", "bob"));
    assert_ne!(alice, hasher.hash("https://idp.tes", "talice"));
    assert_ne!(alice, SubHasher::new([2; 32]).hash("https://idp.test", "alice"));
    assert_eq!(alice.to_string().len(), 16);
    assert!(!format!("{hasher:?}").contains('1'));
}

#[test]
fn a_field_that_logs_while_it_is_shown_does_not_spoil_the_line() {
    struct Chatty;
    impl fmt::Debug for Chatty {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let log = log(Settings::default());
            log.line(Level::Info, "inner", Kind::Event, |_| {});
            f.write_str("chatty")
        }
    }
    let log = log(Settings::default());
    log.line(Level::Info, "outer", Kind::Event, |line| line.shown("field", format_args!("{Chatty:?}")));
    let document: Value = serde_json::from_str(&written(&log)).unwrap();
    assert_eq!((&document["event"], &document["field"]), (&"outer".into(), &"chatty".into()));
}

#[test]
fn a_queue_that_nobody_reads_keeps_room_for_events() {
    let queue = Queue::default();
    let line = [b'x'; 64 * 1024];
    for _ in 0..1000 {
        queue.push(&line, Kind::Access);
    }
    assert!(queue.pending.lock().bytes.len() <= Queue::ROOM);
    queue.push(b"login\n", Kind::Event);
    let pending = queue.pending.lock();
    assert!(pending.bytes.ends_with(b"login\n"));
    assert_eq!(pending.dropped, 1000 - u64::try_from(Queue::ROOM / line.len()).unwrap());
}

#[test]
fn levels_have_names() {
    for level in [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace] {
        assert_eq!(Level::parse(level.as_str()), Some(level));
    }
    assert_eq!(Level::parse("INFO"), None);
}
