//! OpenTelemetry traces of the real program, as a collector gets them (TRC-01).

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use rustix::process::Signal;
use sidegate::spans::otlp::{self, Export, Span, Value};
use support::client::Ask;
use support::gateway::{Gateway, set};
use support::provider::ProviderDouble;
use support::text::mark;
use support::upstream::{Script, Upstream};
use support::wait::eventually;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn exports(collector: &Upstream) -> Vec<Export> {
    collector.requests().iter().map(|request| otlp::decode(&request.body).unwrap()).collect()
}

fn spans(collector: &Upstream) -> Vec<Span> {
    let scopes = exports(collector).into_iter().flat_map(|export| export.resource_spans);
    scopes.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
}

/// Waits until the collector has a span of that name.
async fn span(collector: &Upstream, name: &str) -> Span {
    loop {
        let seen = collector.requests().len();
        if let Some(span) = spans(collector).into_iter().rev().find(|span| span.name == name) {
            return span;
        }
        collector.wait_for_requests(seen + 1).await;
    }
}

fn attribute(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    let found = found.unwrap_or_else(|| panic!("no {key}: {span:?}"));
    match found.value.clone().and_then(|value| value.value) {
        Some(Value::Text(text)) => text,
        Some(Value::Number(number)) => number.to_string(),
        None => String::new(),
    }
}

async fn start(collector: &Upstream, more: &[(&str, &str)]) -> (Gateway, ProviderDouble, Upstream) {
    collector.otherwise(Script::text(200, ""));
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start_with(&provider, &upstream, |table| {
        set(table, "tracing.otlp_endpoint", &format!("{:?}", collector.url()));
        set(table, "server.shutdown_delay", "\"0s\"");
        for (key, value) in more {
            set(table, key, value);
        }
    })
    .await;
    (gateway, provider, upstream)
}

#[tokio::test]
async fn a_trace_goes_from_the_caller_through_us_to_app_and_provider() {
    let collector = Upstream::start().await;
    let secret = mark("collector-credential-");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("headers");
    std::fs::write(&file, format!("Authorization: Bearer {secret}\nX-Tenant: acme\n")).unwrap();
    let more = [
        ("tracing.headers_file", format!("{file:?}")),
        ("tracing.service_name", "\"spa-gate\"".to_owned()),
        ("log.level", "\"trace\"".to_owned()),
    ];
    let more: Vec<(&str, &str)> = more.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let (gateway, provider, upstream) = start(&collector, &more).await;
    let browser = gateway.signed_in().await;
    let query = mark("query-");
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    let ask = Ask::fetch(&format!("/api/orders/4711?token={query}")).header("traceparent", &traceparent);
    assert_eq!(browser.send(ask).await.status, 200);

    let server = span(&collector, "GET /api/").await;
    assert_eq!((hex(&server.trace_id), hex(&server.parent_span_id)), (TRACE.to_owned(), CALLER.to_owned()));
    assert_eq!((server.kind, server.status.is_none()), (2, true));
    assert_eq!(attribute(&server, "http.response.status_code"), "200");
    assert_eq!(attribute(&server, "http.route"), "/api/");
    let client = span(&collector, "GET upstream").await;
    assert_eq!((client.kind, hex(&client.trace_id)), (3, TRACE.to_owned()));
    assert_eq!(client.parent_span_id, server.span_id);
    assert!(server.start_time_unix_nano <= client.start_time_unix_nano);
    assert!(client.end_time_unix_nano <= server.end_time_unix_nano);
    let sent = upstream.last().header("traceparent").unwrap().to_owned();
    assert_eq!(sent, format!("00-{TRACE}-{}-01", hex(&client.span_id)), "the app's spans hang below ours");
    let line = gateway.log_events("request").into_iter().find(|line| line["route"] == "/api/").unwrap();
    assert_eq!(line["trace_id"], TRACE);

    // The login's exchange belongs to the callback's request.
    let token = span(&collector, "provider token").await;
    let callback = spans(&collector).into_iter().find(|span| span.span_id == token.parent_span_id);
    assert_eq!(callback.expect("the request that made the call").trace_id, token.trace_id);

    let forced = Ask::fetch("/auth/refresh").method("POST").header("traceparent", &traceparent.replace("c-b", "c-a"));
    assert_eq!(browser.send(forced).await.status, 200);
    let refresh = span(&collector, "refresh").await;
    assert_eq!((hex(&refresh.trace_id), attribute(&refresh, "sidegate.outcome")), (TRACE.to_owned(), "ok".to_owned()));
    loop {
        let call = span(&collector, "provider token").await;
        if call.parent_span_id == refresh.span_id {
            break;
        }
        collector.wait_for_requests(collector.requests().len() + 1).await;
    }

    for request in collector.requests() {
        assert_eq!(request.target, "/v1/traces");
        assert_eq!(request.header("content-type"), Some("application/x-protobuf"));
        assert_eq!(request.header("authorization"), Some(format!("Bearer {secret}").as_str()));
        assert_eq!(request.header("x-tenant"), Some("acme"));
    }
    let resource = exports(&collector).remove(0).resource_spans.remove(0).resource.unwrap();
    assert!(format!("{resource:?}").contains("spa-gate"));

    let mut canaries = provider.canaries();
    for (label, value) in [("query", query.as_str()), ("e-mail", "alice@users.example"), ("sub", "alice-4711")] {
        canaries.add(label, value);
    }
    for answer in browser.history() {
        for cookie in answer.via.iter().chain([&answer]).flat_map(|answer| answer.set_cookies()) {
            canaries.add("cookie", &cookie.value);
        }
    }
    let told: Vec<u8> = collector.requests().into_iter().flat_map(|request| request.body).collect();
    canaries.assert_absent("spans", told);
    canaries.add("collector's credential", &secret);
    canaries.assert_absent("log", gateway.output());
    canaries.assert_absent("config", gateway.admin("/config").await.unwrap().body);
}

/// What is not sampled, by the configuration or by the caller, is not recorded, and passes through unchanged.
#[tokio::test]
async fn what_is_not_sampled_leaves_no_trace() {
    let collector = Upstream::start().await;
    let (gateway, _provider, upstream) = start(&collector, &[("tracing.sample", "0.0")]).await;
    let browser = gateway.browser();
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    browser.send(Ask::fetch("/open").header("traceparent", &traceparent)).await;
    assert_eq!(upstream.last().header("traceparent"), Some(traceparent.as_str()));
    // One that would have begun here is not for the app to record either.
    browser.send(Ask::fetch("/open")).await;
    assert!(upstream.last().header("traceparent").is_some_and(|own| own.ends_with("-00")));
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
    assert!(collector.untouched());

    let collector = Upstream::start().await;
    let (gateway, _provider, _upstream) = start(&collector, &[]).await;
    let quiet = traceparent.replace("-01", "-00");
    gateway.browser().send(Ask::fetch("/open").header("traceparent", &quiet)).await;
    gateway.signal(Signal::TERM);
    gateway.wait_for_exit().await;
    assert!(collector.untouched(), "the caller does not record it");
}

/// A collector that is away costs spans, never a request; what is left goes out at the end.
#[tokio::test]
async fn the_collectors_troubles_are_not_the_users() {
    let collector = Upstream::start().await;
    collector.go_down().await;
    let (gateway, _provider, _upstream) = start(&collector, &[]).await;
    let browser = gateway.signed_in().await;
    assert_eq!(browser.fetch("/api/x").await.status, 200);
    let told = gateway.wait_for_log("spans_dropped", 1).await;
    assert_eq!(told[0]["reason"], "connect");
    collector.come_back().await;
    assert_eq!(browser.fetch("/api/last").await.status, 200);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
    assert!(spans(&collector).iter().any(|span| span.name == "GET /api/"), "flushed before the end");
}

/// Without a collector too: the line of a request says which trace it belongs to, whoever answers.
#[tokio::test]
async fn every_line_names_the_callers_trace() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start_with(&provider, &upstream, |_| {}).await;
    upstream.on("/api/broken", Script::Close);
    let browser = gateway.signed_in().await;
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    let asks = [("/auth/nothing", 404), ("/api/x", 200), ("/api/broken", 502), ("/a%2fb", 400)];
    for (path, status) in asks {
        let answer = browser.send(Ask::fetch(path).header("traceparent", &traceparent)).await;
        assert_eq!(answer.status, status, "{path}");
    }
    let of_trace = async || gateway.log_events("request").iter().filter(|line| line["trace_id"] == TRACE).count();
    let all = eventually(async || of_trace().await == asks.len()).await;
    assert!(all, "{:?}", gateway.log_events("request"));
}
