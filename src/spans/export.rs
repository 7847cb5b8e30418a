//! The way to the collector: a bounded queue and one task. A collector that is slow or away costs spans, never a
//! request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::otlp::{AnyValue, Export, KeyValue, Resource, ResourceSpans, Scope, ScopeSpans, Status};
use super::{Kind, Settings, Span, Value, otlp};

/// Spans that may wait; beyond it they are dropped and counted.
const QUEUE: usize = 4096;
/// Spans of one export, and how long they gather.
const BATCH: usize = 512;
const GATHER: Duration = Duration::from_secs(1);
/// For one export.
const TIMEOUT: Duration = Duration::from_secs(5);
/// For what is left at the end of the process.
const FLUSH: Duration = Duration::from_secs(3);
/// How often a failure is told.
const TELL: Duration = Duration::from_secs(60);

enum Item {
    Span(Box<Span>),
    /// Send what is there, then say so.
    Flush(oneshot::Sender<()>),
}

/// Takes spans and sends them.
#[derive(Debug)]
pub(super) struct Exporter {
    settings: Settings,
    queue: mpsc::Sender<Item>,
    /// Taken at the start.
    worker: Mutex<Option<Worker>>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Worker {
    settings: Settings,
    client: reqwest::Client,
    items: mpsc::Receiver<Item>,
    dropped: Arc<AtomicU64>,
    told: Option<Instant>,
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Item")
    }
}

impl Exporter {
    pub(super) fn new(settings: Settings) -> Result<Arc<Self>, String> {
        let (queue, items) = mpsc::channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let client = client()?;
        let worker = Worker { settings: settings.clone(), client, items, dropped: Arc::clone(&dropped), told: None };
        Ok(Arc::new(Self { settings, queue, worker: Mutex::new(Some(worker)), dropped }))
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Begins to send, once.
    pub(super) fn start(&self) {
        if let Some(worker) = self.worker.lock().take() {
            tokio::spawn(worker.run());
        }
    }

    pub(super) fn take(&self, span: Span) {
        if self.queue.try_send(Item::Span(Box::new(span))).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) async fn flush(&self) {
        let (done, sent) = oneshot::channel();
        let _ = timeout(FLUSH, async {
            if self.queue.send(Item::Flush(done)).await.is_ok() {
                let _ = sent.await;
            }
        })
        .await;
    }
}

impl Worker {
    /// Ends when nobody can hand over a span any more.
    async fn run(mut self) {
        let mut batch = Vec::new();
        while let Some(first) = self.items.recv().await {
            let mut flushed = Vec::new();
            let until = Instant::now() + GATHER;
            let mut next = Some(first);
            while let Some(item) = next.take() {
                match item {
                    Item::Span(span) => batch.push(encode(*span)),
                    Item::Flush(done) => {
                        flushed.push(done);
                        break;
                    }
                }
                if batch.len() < BATCH {
                    next = timeout_at(until, self.items.recv()).await.ok().flatten();
                }
            }
            if !batch.is_empty() {
                self.send(std::mem::take(&mut batch)).await;
            }
            for done in flushed {
                let _ = done.send(());
            }
        }
    }

    async fn send(&mut self, spans: Vec<otlp::Span>) {
        let count = spans.len();
        let body = export(&self.settings, spans).encode_to_vec();
        let mut request =
            self.client.post(self.settings.endpoint.clone()).header(CONTENT_TYPE, "application/x-protobuf");
        for (name, value) in &self.settings.headers {
            request = request.header(name.clone(), value.clone());
        }
        // Not the error's text: it holds the URL.
        let reason = match request.body(body).send().await {
            Ok(answer) if answer.status().is_success() => None,
            Ok(_) => Some("status"),
            Err(error) if error.is_timeout() => Some("timeout"),
            Err(error) if error.is_connect() => Some("connect"),
            Err(_) => Some("lost"),
        };
        if let Some(reason) = reason {
            self.dropped.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
            self.complain(reason);
        } else if self.dropped.load(Ordering::Relaxed) > 0 {
            self.complain("queue_full");
        }
    }

    fn complain(&mut self, reason: &'static str) {
        if self.told.is_some_and(|told| told.elapsed() < TELL) {
            return;
        }
        self.told = Some(Instant::now());
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        tracing::warn!(target: "sidegate", event = "spans_dropped", reason, spans = dropped);
    }
}

/// TLS 1.2 and up with *ring* and the system's trust anchors.
fn client() -> Result<reqwest::Client, String> {
    let mut roots = rustls::RootCertStore::empty();
    let (_, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|_| "TLS cannot be set up".to_owned())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent("sidegate")
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .timeout(TIMEOUT)
        .no_proxy()
        .build()
        .map_err(|_| "tracing.otlp_endpoint: the client cannot be set up".to_owned())
}

fn export(settings: &Settings, spans: Vec<otlp::Span>) -> Export {
    let version = env!("CARGO_PKG_VERSION");
    let attributes = vec![
        text("service.name", &settings.service_name),
        text("telemetry.sdk.language", "rust"),
        text("telemetry.sdk.name", "sidegate"),
    ];
    let scope = Scope { name: "sidegate".to_owned(), version: version.to_owned() };
    Export {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans }],
        }],
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, otlp::Value::Text(value.to_owned()))
}

fn attribute(key: &str, value: otlp::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}

fn encode(span: Span) -> otlp::Span {
    let Span { name, kind, context, began, took, failed, attributes } = span;
    let start = began.as_millis().saturating_mul(1_000_000);
    otlp::Span {
        trace_id: context.trace.to_vec(),
        span_id: context.span.to_vec(),
        parent_span_id: context.parent.map(|parent| parent.to_vec()).unwrap_or_default(),
        name,
        kind: match kind {
            Kind::Internal => 1,
            Kind::Server => 2,
            Kind::Client => 3,
        },
        start_time_unix_nano: start,
        end_time_unix_nano: start.saturating_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)),
        attributes: attributes
            .into_iter()
            .map(|(key, value)| match value {
                Value::Text(value) => attribute(key, otlp::Value::Text(value)),
                Value::Number(value) => attribute(key, otlp::Value::Number(value)),
            })
            .collect(),
        status: failed.then_some(Status { code: 2 }),
        flags: 1,
    }
}
