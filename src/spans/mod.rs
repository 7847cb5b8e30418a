//! Traces: what became of a request, told to an OpenTelemetry collector. Off, it costs one look at a pointer.
//!
//! ```text
//! server span: the request ─┬─ client span: the upstream
//!                           ├─ client span: a call to the provider
//!                           └─ refresh ── client span: its call
//! ```
//!
//! Nothing that a client sent becomes part of a span but the method, if it is a known one, and the trace's id: no query,
//! no path, no header, no user (TRC-01).

mod export;
pub mod otlp;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::{HeaderName, HeaderValue};
use tokio::task::futures::TaskLocalFuture;
use url::Url;

use self::export::Exporter;
use crate::clock::{Clock, Timestamp};
use crate::crypto::random;

/// `[tracing]`, parsed.
#[derive(Clone, PartialEq)]
pub struct Settings {
    /// Where spans are posted to (OTLP over HTTP).
    pub endpoint: Url,
    /// Sent along; often a credential.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Share of traces that are kept, 0 to 1.
    pub sample: f64,
    /// `service.name`.
    pub service_name: String,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("sample", &self.sample).finish_non_exhaustive()
    }
}

/// What a span is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Work of our own.
    Internal,
    /// A request that came.
    Server,
    /// A request that we made.
    Client,
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

/// What is told of something that is over.
#[derive(Clone, Debug)]
pub struct Span {
    name: String,
    kind: Kind,
    context: Context,
    began: Timestamp,
    took: Duration,
    failed: bool,
    attributes: Vec<(&'static str, Value)>,
}

impl Span {
    /// Something of `context` that began then and took so long.
    pub fn new(context: &Context, name: impl Into<String>, kind: Kind, began: Timestamp, took: Duration) -> Self {
        let context = context.clone();
        Self { name: name.into(), kind, context, began, took, failed: false, attributes: Vec::new() }
    }

    /// Adds an attribute.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.attributes.push((key, value.into()));
        self
    }

    /// Says that it failed.
    #[must_use]
    pub fn failed(mut self, failed: bool) -> Self {
        self.failed = failed;
        self
    }

    /// Hands it over for export. Never waits: without room it is dropped.
    pub fn end(self) {
        let exporter = Arc::clone(&self.context.exporter);
        exporter.take(self);
    }
}

/// A span that goes on: others are its children. Exists only where a trace is recorded.
#[derive(Clone)]
pub struct Context {
    exporter: Arc<Exporter>,
    trace: [u8; 16],
    span: [u8; 8],
    parent: Option<[u8; 8]>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.traceparent())
    }
}

impl Context {
    /// A span below this one.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { span: id(), parent: Some(self.span), ..self.clone() }
    }

    /// As it travels to the next one (W3C Trace Context).
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-01", hex(&self.trace), hex(&self.span))
    }
}

/// Decides which requests are traced, and takes their spans.
#[derive(Debug)]
pub struct Tracer {
    exporter: ArcSwapOption<Exporter>,
    clock: Clock,
}

/// An exporter that is ready to be put in place.
#[derive(Debug)]
pub struct Prepared(Option<Arc<Exporter>>);

impl Tracer {
    /// Traces nothing yet.
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self { exporter: ArcSwapOption::empty(), clock })
    }

    /// Makes ready for these settings; none switches it off. Connects nowhere.
    ///
    /// # Errors
    /// A sentence that names the configuration key.
    pub fn prepare(&self, settings: Option<&Settings>) -> Result<Prepared, String> {
        let running = self.exporter.load_full();
        Ok(Prepared(match (settings, running) {
            (None, _) => None,
            (Some(settings), Some(running)) if running.settings() == settings => Some(running),
            (Some(settings), _) => Some(Exporter::new(settings.clone())?),
        }))
    }

    /// Takes effect with the next request. Needs a tokio runtime.
    pub fn install(&self, prepared: Prepared) {
        if let Some(exporter) = &prepared.0 {
            exporter.start();
        }
        if let Some(old) = self.exporter.swap(prepared.0.clone())
            && prepared.0.is_none_or(|new| !Arc::ptr_eq(&new, &old))
        {
            // What it has goes out; then it ends with the last request that holds it.
            tokio::spawn(async move { old.flush().await });
        }
    }

    /// Whether traces are recorded at all.
    pub fn is_on(&self) -> bool {
        self.exporter.load().is_some()
    }

    /// The span of a request with this `traceparent`, when it is recorded: not when the caller says that his is not.
    pub fn begin(&self, traceparent: Option<&str>) -> Option<Context> {
        let exporter = self.exporter.load_full()?;
        let (trace, parent) = match traceparent.and_then(read) {
            Some(Parent { sampled: false, .. }) => return None,
            Some(Parent { trace, span, .. }) => (trace, Some(span)),
            None => (random::identifier(), None),
        };
        keeps(exporter.settings().sample, trace).then(|| Context { exporter, trace, span: id(), parent })
    }

    /// The time, for a span that ended now.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Sends what is there. Bounded in time.
    pub async fn flush(&self) {
        if let Some(exporter) = self.exporter.load_full() {
            exporter.flush().await;
        }
    }
}

/// A caller's span.
struct Parent {
    trace: [u8; 16],
    span: [u8; 8],
    sampled: bool,
}

/// Reads a `traceparent` that is known to be valid.
fn read(text: &str) -> Option<Parent> {
    let mut parts = text.split('-').skip(1);
    let trace = bytes(parts.next()?)?;
    let span = bytes(parts.next()?)?;
    let [flags] = bytes(parts.next()?)?;
    Some(Parent { trace, span, sampled: flags & 1 == 1 })
}

/// The same for the same trace in every replica.
fn keeps(share: f64, trace: [u8; 16]) -> bool {
    let [.., a, b, c, d] = trace;
    f64::from(u32::from_be_bytes([a, b, c, d])) < share * (f64::from(u32::MAX) + 1.0)
}

/// A span's id: never zero, which would be none.
fn id() -> [u8; 8] {
    match random::identifier() {
        [0, 0, 0, 0, 0, 0, 0, 0] => [0, 0, 0, 0, 0, 0, 0, 1],
        id => id,
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    (text.len() == 2 * N).then_some(bytes)
}

tokio::task_local! {
    static CURRENT: Option<Context>;
}

/// The span that this task works for.
pub fn current() -> Option<Context> {
    CURRENT.try_with(Clone::clone).ok().flatten()
}

/// Runs a future for that span.
pub fn within<F: Future>(context: Option<Context>, future: F) -> TaskLocalFuture<Option<Context>, F> {
    CURRENT.scope(context, future)
}

/// Takes the span that this task works for along into another one.
pub fn carry<F: Future>(future: F) -> TaskLocalFuture<Option<Context>, F> {
    within(current(), future)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_and_written() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parent = read(text).unwrap();
        assert_eq!((hex(&parent.trace), hex(&parent.span)), (text[3..35].to_owned(), text[36..52].to_owned()));
        assert!(parent.sampled);
        assert!(!read(&text.replace("-01", "-00")).unwrap().sampled);
        assert!(read("00-xx").is_none());
    }

    #[test]
    fn the_share_of_traces_is_kept() {
        let traces: Vec<[u8; 16]> = (0..2000).map(|_| random::bytes()).collect();
        let kept = |share| traces.iter().filter(|trace| keeps(share, **trace)).count();
        assert_eq!((kept(0.0), kept(1.0)), (0, 2000));
        assert!((800..1200).contains(&kept(0.5)));
    }

    #[tokio::test]
    async fn off_there_is_no_span() {
        let tracer = Tracer::new(Clock::System);
        assert!(tracer.begin(None).is_none());
        assert!(current().is_none());
    }
}
