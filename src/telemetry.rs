//! Logs: one JSON object a line on stdout, without secrets, whatever a dependency says.
//!
//! Three ways lead to a line:
//!
//! - [`access`]: the line of a request, written without tracing's machinery, since there is one for each.
//! - `tracing` events with `target: "sidegate"` (or below `sidegate::`) and a field `event`: our own words. Those of
//!   [`audit`] are written at every level.
//! - all else is a library's: see `Foreign` for the little that passes.
//!
//! `RUST_LOG` is never read. A line goes into a queue that a thread writes out, so that a slow reader of stdout does not
//! hold a request; [`flush`] before the process ends.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::io::IsTerminal as _;
use std::net::IpAddr;
use std::panic::PanicHookInfo;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex};
use ring::hmac;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_log::{LogTracer, NormalizeEvent as _, log::LevelFilter as BridgeLevel};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use crate::clock::{Clock, Timestamp};
use crate::web::forwarded;

/// `[log]`, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub format: Format,
    /// Of our own events; libraries never get below [`Level::Warn`].
    pub level: Level,
    /// One line per request.
    pub access: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { format: Format::Json, level: Level::Info, access: true }
    }
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object.
    Json,
    /// For people: time, level, event, `key=value`.
    Text,
}

impl Format {
    /// [`Format::Text`] when stdout is a terminal.
    pub fn for_stdout() -> Self {
        if std::io::stdout().is_terminal() { Self::Text } else { Self::Json }
    }
}

/// How important a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    /// Lower case, as in the configuration and in the line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// The level of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace].into_iter().find(|level| level.as_str() == name)
    }

    const fn filter(self) -> LevelFilter {
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }
}

impl From<&tracing::Level> for Level {
    fn from(level: &tracing::Level) -> Self {
        match *level {
            tracing::Level::ERROR => Self::Error,
            tracing::Level::WARN => Self::Warn,
            tracing::Level::INFO => Self::Info,
            tracing::Level::DEBUG => Self::Debug,
            tracing::Level::TRACE => Self::Trace,
        }
    }
}

static LOG: OnceLock<Arc<Log>> = OnceLock::new();

/// Takes over stdout, the `log` crate and the panic hook. Only the first call counts.
pub fn init(settings: &Settings) {
    let log = Arc::new(Log::new(*settings, Sink::stdout()));
    if LOG.set(Arc::clone(&log)).is_err() {
        return;
    }
    let subscriber = tracing_subscriber::registry().with(Lines(log));
    // Both fail only when somebody was there before us, which the line above excludes.
    let _ = tracing::subscriber::set_global_default(subscriber);
    let _ = LogTracer::builder().with_max_level(bridge_level(settings)).init();
    std::panic::set_hook(Box::new(on_panic));
}

/// Other settings from now on.
pub fn reconfigure(settings: &Settings) {
    let Some(log) = LOG.get() else { return };
    if **log.settings.load() == *settings {
        return;
    }
    log.settings.store(Arc::new(*settings));
    tracing_log::log::set_max_level(bridge_level(settings));
    tracing::callsite::rebuild_interest_cache();
}

/// What the `log` crate hands on.
fn bridge_level(settings: &Settings) -> BridgeLevel {
    if settings.level == Level::Error { BridgeLevel::Error } else { BridgeLevel::Warn }
}

/// Waits, for a second at most, until all lines are written. Before the process ends.
pub fn flush() {
    if let Some(log) = LOG.get() {
        log.sink.flush();
    }
}

/// The line of one request. Nothing when `log.access` is off.
pub fn access(line: &AccessLine<'_>) {
    if let Some(log) = LOG.get() {
        log.access(line);
    }
}

/// What the line of one request says.
#[derive(Clone, Copy, Debug)]
pub struct AccessLine<'a> {
    /// Also in problem documents and in `X-Request-Id`.
    pub request_id: &'a str,
    /// A route's `path`, or a word of [`crate::metrics::NoRoute`].
    pub route: &'a str,
    pub method: &'a str,
    /// Without the query: that holds codes, states and whatever the app puts there.
    pub path: &'a str,
    pub status: u16,
    /// From the end of the head to the end of the answer.
    pub duration: Duration,
    /// From forwarding to the head of the upstream's answer; none when not forwarded.
    pub upstream: Option<Duration>,
    /// None on a unix socket.
    pub client: Option<IpAddr>,
    pub sub_hash: Option<SubHash>,
    /// Of `traceparent`.
    pub trace_id: Option<&'a str>,
    /// The `code` of a problem that sidegate itself answered with.
    pub code: Option<&'a str>,
}

/// The security events of contract section 8. Each is one line, and is written at every configured level.
///
/// Reasons and outcomes are `&'static str` so that nothing which came over the network can become one.
pub mod audit {
    use std::net::IpAddr;

    use super::SubHash;

    /// The request that an event belongs to.
    #[derive(Clone, Copy, Debug, Default)]
    pub struct Origin<'a> {
        pub request_id: Option<&'a str>,
        pub client: Option<IpAddr>,
        /// None when nobody is known yet.
        pub sub_hash: Option<SubHash>,
    }

    /// One event: the fields of its origin, and its own.
    macro_rules! audit {
        ($level:ident, $event:literal, $origin:expr $(, $field:ident)*) => {
            tracing::event!(
                target: "sidegate::audit", tracing::Level::$level, event = $event,
                request_id = $origin.request_id, client = $origin.client.map(tracing::field::display),
                sub_hash = $origin.sub_hash.map(tracing::field::display) $(, $field)*
            )
        };
    }

    /// A user has logged in.
    pub fn login(origin: &Origin<'_>) {
        audit!(INFO, "login", origin);
    }

    /// A login attempt ended without a session.
    pub fn login_refused(origin: &Origin<'_>, reason: &'static str) {
        audit!(WARN, "login_refused", origin, reason);
    }

    /// A login whose session fits no cookie; `sizes` are numbers of ours.
    pub fn login_too_large(origin: &Origin<'_>, sizes: &str) {
        let reason = "session_too_large";
        audit!(WARN, "login_refused", origin, reason, sizes);
    }

    /// A refresh grant finished; `outcome` is the metric's word, `reason` says why it is not `ok`.
    pub fn refresh(origin: &Origin<'_>, outcome: &'static str, reason: Option<&'static str>) {
        if outcome == "ok" {
            audit!(INFO, "refresh", origin, outcome);
        } else {
            audit!(WARN, "refresh", origin, outcome, reason);
        }
    }

    /// The user has logged out here.
    pub fn logout(origin: &Origin<'_>) {
        audit!(INFO, "logout", origin);
    }

    /// A session ended; `reason` is the metric's word.
    pub fn session_ended(origin: &Origin<'_>, reason: &'static str) {
        audit!(INFO, "session_ended", origin, reason);
    }

    /// A request did not prove its origin.
    pub fn csrf_refused(origin: &Origin<'_>, route: &str, reason: &'static str) {
        audit!(WARN, "csrf_refused", origin, route, reason);
    }
}

/// Names a user in the log without telling who it is (LOG-08).
#[derive(Clone)]
pub struct SubHasher(hmac::Key);

impl fmt::Debug for SubHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SubHasher(***)")
    }
}

impl SubHasher {
    /// Hashes are equal under equal keys: a random key bounds what can be linked to one process.
    pub fn new(key: [u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &key))
    }

    /// 64 bits of HMAC-SHA-256.
    pub fn hash(&self, issuer: &str, sub: &str) -> SubHash {
        let mut context = hmac::Context::with_key(&self.0);
        // The length keeps `a` + `bc` apart from `ab` + `c`.
        context.update(&u64::try_from(issuer.len()).unwrap_or(u64::MAX).to_be_bytes());
        context.update(issuer.as_bytes());
        context.update(sub.as_bytes());
        let tag = context.sign();
        let mut head = [0; 8];
        head.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        SubHash(u64::from_be_bytes(head))
    }
}

/// A user's pseudonym: 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SubHash(u64);

impl SubHash {
    /// For keeping.
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// What was kept.
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_be_bytes(bytes))
    }
}

impl fmt::Display for SubHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for SubHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// --- From event to line ----------------------------------------------------------------------------------------------

/// Where lines are made.
struct Log {
    settings: ArcSwap<Settings>,
    clock: Clock,
    sink: Sink,
    foreign: Foreign,
}

impl Log {
    fn new(settings: Settings, sink: Sink) -> Self {
        Self { settings: ArcSwap::from_pointee(settings), clock: Clock::System, sink, foreign: Foreign::default() }
    }

    /// Makes a line in this thread's buffer and hands it to the sink.
    fn line(&self, level: Level, event: &str, kind: Kind, fill: impl FnOnce(&mut Line<'_>)) {
        thread_local! {
            static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
        }
        // Taken out for the while: a field whose `Debug` logs gets a buffer of its own, as does a thread that is ending.
        let mut buffer = BUFFER.try_with(Cell::take).unwrap_or_default();
        buffer.clear();
        let mut line = Line::begin(&mut buffer, self.settings.load().format, self.clock.now(), level, event);
        fill(&mut line);
        line.end();
        self.sink.put(&buffer, kind);
        let _ = BUFFER.try_with(|cell| cell.set(buffer));
    }

    fn access(&self, access: &AccessLine<'_>) {
        if !self.settings.load().access {
            return;
        }
        self.line(Level::Info, "request", Kind::Access, |line| {
            line.text("request_id", access.request_id);
            line.text("route", access.route);
            line.text("method", access.method);
            // The callers have cut the query; this is the last line, not the check.
            line.text("path", access.path.split(['?', '#']).next().unwrap_or_default());
            line.number("status", access.status.into());
            line.millis("duration_ms", access.duration);
            if let Some(upstream) = access.upstream {
                line.millis("upstream_ms", upstream);
            }
            if let Some(client) = access.client {
                line.address("client", client);
            }
            if let Some(hash) = access.sub_hash {
                line.clean("sub_hash", format_args!("{hash}"));
            }
            if let Some(id) = access.trace_id {
                line.text("trace_id", id);
            }
            if let Some(code) = access.code {
                line.text("code", code);
            }
        });
    }

    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        if !metadata.is_event() {
            return false;
        }
        let level = Level::from(metadata.level());
        if metadata.target() == "sidegate::audit" {
            level <= Level::Info
        } else if is_own(metadata.target()) {
            level <= self.settings.load().level
        } else {
            level <= Foreign::most_talkative(metadata.target()).min(self.settings.load().level)
        }
    }

    fn own(&self, event: &Event<'_>) {
        let mut name = EventName(None);
        event.record(&mut name);
        let level = Level::from(event.metadata().level());
        self.line(level, name.0.as_deref().unwrap_or("note"), Kind::Event, |line| event.record(&mut Fields(line)));
    }

    fn library(&self, event: &Event<'_>, target: &str, level: Level) {
        let mut message = Message(String::new());
        event.record(&mut message);
        let Some(text) = Foreign::scrub(target, &message.0) else { return };
        let Some(suppressed) = self.foreign.admit(self.clock.now()) else { return };
        self.line(level, "library", Kind::Event, |line| {
            line.text("target", target);
            if !text.is_empty() {
                line.text("message", &text);
            }
            if suppressed > 0 {
                line.value("suppressed", format_args!("{suppressed}"));
            }
        });
    }
}

fn is_own(target: &str) -> bool {
    target.strip_prefix("sidegate").is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// The tracing layer.
struct Lines(Arc<Log>);

impl<S: Subscriber> Layer<S> for Lines {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.0.wants(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.0.wants(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        // Audit events are at most `info`, and are wanted at every level.
        Some(self.0.settings.load().level.max(Level::Info).filter())
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let bridged = event.normalized_metadata();
        let metadata = bridged.as_ref().unwrap_or_else(|| event.metadata());
        if !self.0.wants(metadata) {
        } else if is_own(metadata.target()) {
            self.0.own(event);
        } else {
            self.0.library(event, metadata.target(), Level::from(metadata.level()));
        }
    }
}

/// Finds the field `event`.
struct EventName(Option<String>);

impl Visit for EventName {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "event" {
            self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

/// Finds the text of a library's event.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(Capped(&mut self.0, FIELD_MAX), "{value:?}");
        }
    }
}

/// Writes all fields but `event`.
struct Fields<'a, 'b>(&'a mut Line<'b>);

impl Visit for Fields<'_, '_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() != "event" {
            self.0.text(field.name(), value);
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.value(field.name(), format_args!("{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.value(field.name(), format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.value(field.name(), format_args!("{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.0.value(field.name(), format_args!("{value}"));
        } else {
            self.0.shown(field.name(), format_args!("{value}"));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() != "event" {
            self.0.shown(field.name(), format_args!("{value:?}"));
        }
    }
}

/// No file, no text, no backtrace: a panic's message may quote the request (LOG-10).
fn on_panic(info: &PanicHookInfo<'_>) {
    let Some(log) = LOG.get() else { return };
    log.panicked(info.location().map(|at| (at.file(), at.line())));
    // If this was the main thread, nobody else will.
    log.sink.flush();
}

impl Log {
    fn panicked(&self, location: Option<(&str, u32)>) {
        self.line(Level::Error, "panic", Kind::Event, |line| {
            if let Some((file, number)) = location {
                // A dependency's path begins with the home of whoever built this.
                let file = file.split_once("/registry/src/").map_or(file, |(_, rest)| rest);
                line.shown("location", format_args!("{file}:{number}"));
            }
        });
    }
}

// --- What libraries may say ------------------------------------------------------------------------------------------

/// Keeps libraries from telling secrets (LOG-03, LOG-04).
///
/// Their `debug` and `trace` lines hold whole heads, `Authorization` and cookies included, so they end at `warn`.
/// Errors are no better: Pingora's quote up to 2 KiB of a request that did not parse, and whole answers of an upstream.
/// What we need of those is in our own lines; of Pingora's text only the names of its error types pass, of the others
/// what stands before the first sign of quoted data. And since a client can provoke them, they are counted.
#[derive(Default)]
struct Foreign(Mutex<Window>);

/// How many lines of libraries were written in this second.
#[derive(Default)]
struct Window {
    second: u64,
    written: u32,
    suppressed: u64,
}

impl Foreign {
    const LINES_PER_SECOND: u32 = 20;
    const TEXT_MAX: usize = 200;

    /// The error types of Pingora that tell something, as they stand in its texts.
    const PINGORA_WORDS: &[&str] = &[
        "ConnectTimedout",
        "ConnectRefused",
        "ConnectNoRoute",
        "ConnectError",
        "TLSWantX509Lookup",
        "TLSHandshakeFailure",
        "TLSHandshakeTimedout",
        "InvalidCert",
        "HandshakeError",
        "BindError",
        "AcceptError",
        "SocketError",
        "InvalidHTTPHeader",
        "H1Error",
        "H2Error",
        "H2Downgrade",
        "InvalidH2",
        "ReadError",
        "WriteError",
        "ReadTimedout",
        "WriteTimedout",
        "ConnectionClosed",
        "FileOpenError",
        "FileReadError",
        "InternalError",
        "UnknownError",
    ];

    /// What a library puts before data that is not its own, in lower case.
    const SIGNS: &[&str] = &[
        "?",
        "\"",
        "'",
        "`",
        "[",
        "{",
        "(",
        "<",
        "=",
        "://",
        "eyj",
        "bearer",
        "basic ",
        "cookie",
        "authorization",
        "token",
        "code",
        "state",
        "secret",
        "header",
        "payload",
        "body",
    ];

    fn most_talkative(target: &str) -> Level {
        if target.starts_with("pingora") { Level::Error } else { Level::Warn }
    }

    /// The harmless part of a text; none when the line is not worth writing without the rest.
    fn scrub(target: &str, text: &str) -> Option<String> {
        if target.starts_with("pingora") {
            let words: Vec<_> = Self::PINGORA_WORDS.iter().copied().filter(|word| text.contains(word)).collect();
            return (!words.is_empty()).then(|| words.join(" "));
        }
        // Same length, byte for byte, as only ASCII is changed: positions in one are positions in the other.
        let lower = text.to_ascii_lowercase();
        let cut = Self::SIGNS.iter().filter_map(|sign| lower.find(sign)).min().unwrap_or(text.len());
        let kept: String = text.get(..cut).unwrap_or_default().chars().take(Self::TEXT_MAX).collect();
        Some(kept.trim_end_matches([' ', ':', ',', '-']).to_owned())
    }

    /// How many lines were left out before this one; none when this is left out too.
    fn admit(&self, now: Timestamp) -> Option<u64> {
        let mut window = self.0.lock();
        if window.second != now.as_secs() {
            window.second = now.as_secs();
            window.written = 0;
        }
        if window.written >= Self::LINES_PER_SECOND {
            window.suppressed += 1;
            return None;
        }
        window.written += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

// --- How a line looks ------------------------------------------------------------------------------------------------

/// Bytes of a line at most, its end included.
const LINE_MAX: usize = 16 * 1024 - 1;

/// Bytes of one field's text at most, as written.
const FIELD_MAX: usize = 2048;

/// Stands where text was cut.
const CUT: &str = "…";

/// A line in the making. Takes fields for as long as there is room; the ends always fit.
struct Line<'a> {
    out: &'a mut Vec<u8>,
    format: Format,
}

impl<'a> Line<'a> {
    fn begin(out: &'a mut Vec<u8>, format: Format, now: Timestamp, level: Level, event: &str) -> Self {
        let mut line = Self { out, format };
        match format {
            Format::Json => {
                line.out.extend_from_slice(b"{\"ts\":\"");
                line.time(now);
                line.out.extend_from_slice(b"\",\"level\":\"");
                line.out.extend_from_slice(level.as_str().as_bytes());
                line.out.push(b'"');
                line.text("event", event);
            }
            Format::Text => {
                line.time(now);
                line.put(format_args!(" {:5} ", level.as_str().to_ascii_uppercase()));
                escape(line.out, event, FIELD_MAX);
            }
        }
        line
    }

    /// RFC 3339 to the millisecond. Within a second a thread writes the same but for its end.
    fn time(&mut self, now: Timestamp) {
        thread_local! {
            static SECOND: Cell<(u64, [u8; 19])> = const { Cell::new((u64::MAX, [0; 19])) };
        }
        let (mut second, mut text) = SECOND.get();
        if second != now.as_secs() {
            second = now.as_secs();
            let whole = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(second)).to_string();
            text.iter_mut().zip(whole.bytes()).for_each(|(to, from)| *to = from);
            SECOND.set((second, text));
        }
        self.out.extend_from_slice(&text);
        self.thousandths(now.as_millis() % 1000);
        self.out.push(b'Z');
    }

    /// A point and three digits.
    fn thousandths(&mut self, of: u64) {
        let digit = |place: u64| b'0' + u8::try_from(of / place % 10).unwrap_or_default();
        self.out.extend_from_slice(&[b'.', digit(100), digit(10), digit(1)]);
    }

    /// What stands before a field's value.
    fn key(&mut self, key: &str) {
        match self.format {
            Format::Json => {
                self.out.extend_from_slice(b",\"");
                self.out.extend_from_slice(key.as_bytes());
                self.out.extend_from_slice(b"\":");
            }
            Format::Text => {
                self.out.push(b' ');
                self.out.extend_from_slice(key.as_bytes());
                self.out.push(b'=');
            }
        }
    }

    /// A text, which may come from anywhere.
    fn text(&mut self, key: &str, value: &str) {
        // Key, its quotes and colon, comma, the value's quotes, the cut mark, the end of the line.
        let Some(room) = LINE_MAX.checked_sub(self.out.len() + key.len() + 16) else { return };
        self.key(key);
        let quoted = self.format == Format::Json
            || value.is_empty()
            || !value.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'='));
        if quoted {
            self.out.push(b'"');
        }
        escape(self.out, value, room.min(FIELD_MAX));
        if quoted {
            self.out.push(b'"');
        }
    }

    /// What displays as text.
    fn shown(&mut self, key: &str, value: fmt::Arguments<'_>) {
        let mut text = String::new();
        let _ = Capped(&mut text, FIELD_MAX + 1).write_fmt(value);
        self.text(key, &text);
    }

    /// A short text of ours in which nothing needs to be escaped.
    fn clean(&mut self, key: &str, value: fmt::Arguments<'_>) {
        if !self.has_room(key) {
            return;
        }
        self.key(key);
        match self.format {
            Format::Json => self.put(format_args!("\"{value}\"")),
            Format::Text => self.put(value),
        }
    }

    /// A number or a boolean.
    fn value(&mut self, key: &str, value: fmt::Arguments<'_>) {
        if self.has_room(key) {
            self.key(key);
            self.put(value);
        }
    }

    fn address(&mut self, key: &str, value: IpAddr) {
        if !self.has_room(key) {
            return;
        }
        self.key(key);
        let quote: &[u8] = if self.format == Format::Json { b"\"" } else { b"" };
        self.out.extend_from_slice(quote);
        forwarded::put_address(self.out, value);
        self.out.extend_from_slice(quote);
    }

    fn number(&mut self, key: &str, value: u64) {
        if self.has_room(key) {
            self.key(key);
            self.digits(value);
        }
    }

    /// Milliseconds to the microsecond.
    fn millis(&mut self, key: &str, value: Duration) {
        if self.has_room(key) {
            let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
            self.key(key);
            self.digits(micros / 1000);
            self.thousandths(micros % 1000);
        }
    }

    fn digits(&mut self, value: u64) {
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// For a field whose value is short.
    fn has_room(&self, key: &str) -> bool {
        self.out.len() + key.len() + 64 <= LINE_MAX
    }

    fn end(self) {
        if self.format == Format::Json {
            self.out.push(b'}');
        }
        self.out.push(b'\n');
    }

    fn put(&mut self, text: fmt::Arguments<'_>) {
        let _ = std::io::Write::write_fmt(self.out, text);
    }
}

/// Writes `text` as it may stand between the quotes of a JSON string, at most `limit` bytes and [`CUT`].
///
/// JSON needs only C0 controls escaped. We escape all that a terminal or a line reader may act upon: C1 controls,
/// U+2028 and U+2029 (line ends to some readers), and the marks that turn the direction of text (LOG-05).
fn escape(out: &mut Vec<u8>, text: &str, limit: usize) {
    // Without a branch for each byte, so that the compiler takes many at a time.
    let special = |b: u8| !matches!(b, b' '..=b'~') | (b == b'"') | (b == b'\\');
    if text.len() <= limit && !text.bytes().fold(false, |found, b| found | special(b)) {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    let end = out.len() + limit;
    for c in text.chars() {
        let start = out.len();
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            c if c.is_control()
                || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{feff}') =>
            {
                let _ = std::io::Write::write_fmt(out, format_args!("\\u{:04x}", u32::from(c)));
            }
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
        if out.len() > end {
            out.truncate(start);
            out.extend_from_slice(CUT.as_bytes());
            return;
        }
    }
}

/// Takes text up to a length and forgets the rest, so that a huge `Debug` is not made in full.
struct Capped<'a>(&'a mut String, usize);

impl fmt::Write for Capped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.0.len() >= self.1 {
                return Err(fmt::Error);
            }
            self.0.push(c);
        }
        Ok(())
    }
}

// --- Where lines go --------------------------------------------------------------------------------------------------

/// What may be dropped when nobody reads stdout.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// First.
    Access,
    Event,
}

enum Sink {
    /// By way of the writer's thread.
    Queue(Arc<Queue>),
    /// Where no thread could be made.
    Direct,
    #[cfg(test)]
    Memory(Mutex<Vec<u8>>),
}

impl Sink {
    fn stdout() -> Self {
        let queue = Arc::new(Queue::default());
        let writer = Arc::clone(&queue);
        let thread = std::thread::Builder::new().name("log".to_owned()).spawn(move || writer.run());
        thread.map_or(Self::Direct, |_| Self::Queue(queue))
    }

    fn put(&self, line: &[u8], kind: Kind) {
        match self {
            Self::Queue(queue) => queue.push(line, kind),
            Self::Direct => write_stdout(line),
            #[cfg(test)]
            Self::Memory(bytes) => bytes.lock().extend_from_slice(line),
        }
    }

    fn flush(&self) {
        if let Self::Queue(queue) = self {
            queue.flush();
        }
    }
}

/// Lines on their way to stdout.
///
/// The first line after a silence is written at once. Under load the writer then comes by itself every
/// [`Queue::LINGER`], finds many lines and writes them with one system call: waking it for each would cost more than
/// making the line. Events do not wait. A process that is killed loses what lies here: the access lines of that while,
/// unless stdout is stuck.
#[derive(Default)]
struct Queue {
    pending: Mutex<Pending>,
    filled: Condvar,
    written: Condvar,
}

#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    /// Lines that found no room.
    dropped: u64,
    /// The writer waits for `filled`; it need not be told otherwise.
    asleep: bool,
    writing: bool,
    /// An event is there, or somebody waits in `flush`.
    hurry: bool,
}

impl Queue {
    /// How long the writer lets access lines gather.
    const LINGER: Duration = Duration::from_millis(4);
    /// Access lines beyond this are dropped; other lines beyond twice this.
    const ROOM: usize = 4 * 1024 * 1024;
    /// A buffer that grew larger is given back.
    const KEEP: usize = 256 * 1024;

    fn push(&self, line: &[u8], kind: Kind) {
        let room = if kind == Kind::Access { Self::ROOM } else { 2 * Self::ROOM };
        let mut pending = self.pending.lock();
        if pending.bytes.len() + line.len() > room {
            pending.dropped += 1;
            return;
        }
        pending.bytes.extend_from_slice(line);
        let hurries = kind == Kind::Event && !std::mem::replace(&mut pending.hurry, true);
        if std::mem::take(&mut pending.asleep) || hurries {
            self.filled.notify_one();
        }
    }

    fn run(&self) {
        let mut bytes = Vec::new();
        loop {
            let mut pending = self.pending.lock();
            while pending.bytes.is_empty() {
                pending.asleep = true;
                self.filled.wait(&mut pending);
            }
            pending.asleep = false;
            std::mem::swap(&mut pending.bytes, &mut bytes);
            let dropped = std::mem::take(&mut pending.dropped);
            pending.writing = true;
            drop(pending);

            write_stdout(&bytes);
            bytes.clear();
            bytes.shrink_to(Self::KEEP);
            if dropped > 0 {
                tracing::warn!(target: "sidegate", event = "log_dropped", lines = dropped);
            }

            let mut pending = self.pending.lock();
            pending.writing = false;
            if pending.bytes.is_empty() {
                pending.hurry = false;
                self.written.notify_all();
            }
            if !pending.hurry {
                self.filled.wait_for(&mut pending, Self::LINGER);
            }
        }
    }

    fn flush(&self) {
        let mut pending = self.pending.lock();
        while !pending.bytes.is_empty() || pending.writing {
            pending.hurry = true;
            self.filled.notify_one();
            if self.written.wait_for(&mut pending, Duration::from_secs(1)).timed_out() {
                return;
            }
        }
    }
}

/// Not by `std::io::stdout`: its buffer is not needed, and `println!` panics when the reader has gone.
fn write_stdout(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rustix::io::write(std::io::stdout(), bytes) {
            Ok(0) => return,
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            // Somebody shares a non-blocking stdout with us; half a line must not stay half.
            Err(rustix::io::Errno::AGAIN) => std::thread::sleep(Queue::LINGER),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests;
