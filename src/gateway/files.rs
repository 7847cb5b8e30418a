//! `static_dir`: files from a folder, in place of an upstream.
//!
//! ```text
//! path below the route ─► name ─► file inside the folder ─► variant (br, gzip, as it is) ─► 200, 206, 304, 416
//!                           └──── nothing there ─► navigation: fallback; else 404
//! ```

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};
use rustix::fs::{Mode, OFlags};
use tokio::io::AsyncReadExt as _;

use super::ctx::{Ctx, Phase};
use super::settings::{Access, StaticFiles};
use super::{downstream, respond};
use crate::web::conditional::{Selected, Validators, encoding_quality, select};
use crate::web::problem::{Code, Problem, Shape};
use crate::web::response::LocalResponse;

/// Bytes that are read and written at a time.
const PIECE: usize = 64 * 1024;
/// The largest file whose entity tag is made of its content, so that all replicas and the next release agree on it.
const HASHED_MAX: u64 = 8 * 1024 * 1024;
/// Content hashes that are remembered.
const TAGS: usize = 4096;
/// Fewer characters after the `-` are no content hash.
const HASH_MIN: usize = 8;

/// An open file with the head that goes before it.
#[derive(Debug)]
struct Found {
    head: Head,
    /// None when the head says it all.
    body: Option<(File, u64)>,
}

/// Status and fields of an answer.
#[derive(Debug)]
struct Head {
    status: StatusCode,
    fields: Vec<(header::HeaderName, HeaderValue)>,
}

/// What became of a name.
#[derive(Debug)]
enum Lookup {
    Found(Box<Found>),
    /// A folder was named without the `/` that relative links in its page need.
    Folder,
    Missing,
}

/// A request for a file, as far as the search for it needs to know.
#[derive(Clone, Debug)]
struct Wanted {
    /// What follows the route's path, still encoded, without a `/` in front.
    rest: String,
    method: Method,
    headers: HeaderMap,
    /// A page load, which gets the fallback when there is no such file.
    navigation: bool,
    access: Access,
}

/// Finds and opens the file. Does not hold up the runtime.
///
/// # Errors
/// When the file is there but cannot be read.
async fn find(files: &StaticFiles, wanted: Wanted) -> io::Result<Lookup> {
    let files = files.clone();
    tokio::task::spawn_blocking(move || look_up(&files, &wanted)).await.map_err(io::Error::other)?
}

fn look_up(files: &StaticFiles, wanted: &Wanted) -> io::Result<Lookup> {
    // Anew each time: a release is often a symlink that moves on.
    let Ok(root) = files.dir.canonicalize() else { return Ok(Lookup::Missing) };
    let Some(name) = name_of(&wanted.rest) else { return Ok(Lookup::Missing) };
    let as_folder = wanted.rest.is_empty() || wanted.rest.ends_with('/');
    match open(&root, &name) {
        Opened::File(file, meta) if !as_folder => return answer(&root, &name, file, &meta, wanted),
        Opened::Folder => {
            let page = name.join("index.html");
            match open(&root, &page) {
                Opened::File(..) if !as_folder => return Ok(Lookup::Folder),
                Opened::File(file, meta) => return answer(&root, &page, file, &meta, wanted),
                _ => {}
            }
        }
        // Not the fallback: a page load is told no more of such a name than a script is.
        Opened::Outside => return Ok(Lookup::Missing),
        Opened::File(..) | Opened::Nothing => {}
    }
    if let Some(name) = files.fallback.as_ref().filter(|_| wanted.navigation)
        && let Opened::File(file, meta) = open(&root, name)
    {
        return answer(&root, name, file, &meta, wanted);
    }
    Ok(Lookup::Missing)
}

/// The name below the folder; none when it is one that is never served.
fn name_of(rest: &str) -> Option<PathBuf> {
    let mut name = PathBuf::new();
    for segment in rest.trim_end_matches('/').split('/').filter(|segment| !segment.is_empty()) {
        let segment = percent_decode_str(segment).decode_utf8().ok()?;
        // Dot files hold what nobody meant to publish: .env, .git.
        if segment.starts_with('.') || segment.contains(['/', '\0']) {
            return None;
        }
        name.push(segment.as_ref());
    }
    Some(name)
}

/// What stands under a name.
enum Opened {
    File(File, Metadata),
    Folder,
    /// It leads out of the folder.
    Outside,
    Nothing,
}

/// Opens what lies inside the folder, symlinks within it included.
fn open(root: &Path, name: &Path) -> Opened {
    let Ok(path) = root.join(name).canonicalize() else { return Opened::Nothing };
    if !path.starts_with(root) {
        return Opened::Outside;
    }
    match std::fs::metadata(&path) {
        Ok(meta) if meta.is_dir() => Opened::Folder,
        // Nothing else: a pipe would be waited for.
        Ok(meta) if meta.is_file() => match open_resolved(root, &path).and_then(|file| Ok((file.metadata()?, file))) {
            Ok((meta, file)) if meta.is_file() => Opened::File(file, meta),
            _ => Opened::Nothing,
        },
        _ => Opened::Nothing,
    }
}

/// Opens a path below the folder that was resolved a moment ago, step by step and without following any link: what has
/// become one meanwhile may lead anywhere.
fn open_resolved(root: &Path, path: &Path) -> io::Result<File> {
    let below = path.strip_prefix(root).map_err(io::Error::other)?;
    let step = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(root, step | OFlags::DIRECTORY, Mode::empty())?;
    let mut steps = below.iter().peekable();
    while let Some(name) = steps.next() {
        // A pipe that took the file's place is not waited for.
        let kind = if steps.peek().is_some() { OFlags::DIRECTORY } else { OFlags::NONBLOCK };
        at = rustix::fs::openat(&at, name, step | kind, Mode::empty())?;
    }
    Ok(at.into())
}

fn answer(root: &Path, name: &Path, file: File, meta: &Metadata, wanted: &Wanted) -> io::Result<Lookup> {
    let media_type = media_type(name);
    let (mut file, meta, coding) = variant(root, name, &wanted.headers).unwrap_or_else(|| (file, meta.clone(), None));
    let length = meta.len();
    let validators = Validators { etag: etag(&mut file, &meta, coding)?, modified: modified(&meta) };
    let selected = select(&wanted.headers, &validators, length, wanted.method == Method::GET);

    let mut head = Head { status: StatusCode::OK, fields: Vec::with_capacity(10) };
    head.put(header::ETAG, &validators.etag);
    if let Some(modified) = validators.modified {
        head.put(header::LAST_MODIFIED, &httpdate::fmt_http_date(modified));
    }
    head.put(header::CACHE_CONTROL, cache_control(name, &media_type, wanted.access));
    head.put(header::VARY, "Accept-Encoding");
    head.put(header::ACCEPT_RANGES, "bytes");
    let (first, length) = match selected {
        Selected::NotModified => {
            head.status = StatusCode::NOT_MODIFIED;
            return Ok(Lookup::Found(Box::new(Found { head, body: None })));
        }
        Selected::Unsatisfiable => {
            head.status = StatusCode::RANGE_NOT_SATISFIABLE;
            head.put(header::CONTENT_RANGE, &format!("bytes */{length}"));
            head.put(header::CONTENT_LENGTH, "0");
            return Ok(Lookup::Found(Box::new(Found { head, body: None })));
        }
        Selected::Part { first, last } => {
            head.status = StatusCode::PARTIAL_CONTENT;
            head.put(header::CONTENT_RANGE, &format!("bytes {first}-{last}/{length}"));
            (first, last + 1 - first)
        }
        Selected::Whole => (0, length),
    };
    head.put(header::CONTENT_TYPE, &media_type);
    head.put(header::CONTENT_LENGTH, &length.to_string());
    if let Some(coding) = coding {
        head.put(header::CONTENT_ENCODING, coding);
    }
    file.seek(SeekFrom::Start(first))?;
    let body = (wanted.method != Method::HEAD && length > 0).then_some((file, length));
    Ok(Lookup::Found(Box::new(Found { head, body })))
}

impl Head {
    fn put(&mut self, name: header::HeaderName, value: &str) {
        if let Ok(value) = HeaderValue::try_from(value) {
            self.fields.push((name, value));
        }
    }
}

/// A file that was compressed beforehand, if there is one that the client takes: what it wants most, else the smaller kind
/// first.
fn variant(root: &Path, name: &Path, headers: &HeaderMap) -> Option<(File, Metadata, Option<&'static str>)> {
    let (br, gzip) = (encoding_quality(headers, "br"), encoding_quality(headers, "gzip"));
    let mut kinds = [("br", ".br", br), ("gzip", ".gz", gzip)];
    if gzip > br {
        kinds.reverse();
    }
    kinds.into_iter().filter(|(.., quality)| *quality > 0).find_map(|(coding, suffix, _)| {
        let mut name = name.as_os_str().to_owned();
        name.push(suffix);
        match open(root, Path::new(&name)) {
            Opened::File(file, meta) => Some((file, meta, Some(coding))),
            _ => None,
        }
    })
}

/// Hashed names never change their content. Pages name them, so pages are asked for anew; so is all else.
fn cache_control(name: &Path, media_type: &str, access: Access) -> &'static str {
    match (is_hashed(name) && !media_type.starts_with("text/html"), access) {
        (false, _) => "no-cache",
        (true, Access::Session) => "private, max-age=31536000, immutable",
        (true, Access::Public | Access::Optional) => "public, max-age=31536000, immutable",
    }
}

/// `name-<8 or more characters>.ext`, as bundlers write it.
fn is_hashed(name: &Path) -> bool {
    let Some((stem, _)) = name.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('.')) else {
        return false;
    };
    stem.rsplit_once('-').is_some_and(|(before, hash)| {
        let plain = hash.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        !before.is_empty() && hash.len() >= HASH_MIN && plain
    })
}

fn media_type(name: &Path) -> String {
    let guess = mime_guess::from_path(name).first_or_octet_stream();
    let kind = guess.essence_str();
    let is_text = guess.type_() == "text"
        || matches!(kind, "application/javascript" | "application/json" | "application/manifest+json")
        || kind.ends_with("+xml");
    if is_text { format!("{kind}; charset=utf-8") } else { kind.to_owned() }
}

/// To the second, like the field; a time before 1970 cannot be said.
fn modified(meta: &Metadata) -> Option<SystemTime> {
    let since = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(UNIX_EPOCH + Duration::from_secs(since.as_secs()))
}

/// Names a file's content of one moment.
type Identity = (u64, u64, u64, i64, i64, i64, i64);

/// Of the content, where that is read in no time; else of size and time.
fn etag(file: &mut File, meta: &Metadata, coding: Option<&str>) -> io::Result<String> {
    static KNOWN: LazyLock<Mutex<HashMap<Identity, u64>>> = LazyLock::new(Mutex::default);
    let identity =
        (meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
    let known = KNOWN.lock().get(&identity).copied();
    let hash = match known {
        Some(hash) => hash,
        None => {
            let mut context = ring::digest::Context::new(&ring::digest::SHA256);
            if meta.len() <= HASHED_MAX {
                let mut piece = vec![0; PIECE];
                loop {
                    match file.read(&mut piece)? {
                        0 => break,
                        read => context.update(piece.get(..read).unwrap_or_default()),
                    }
                }
            } else {
                context.update(&meta.len().to_be_bytes());
                context.update(&meta.mtime().to_be_bytes());
                context.update(&meta.mtime_nsec().to_be_bytes());
            }
            let hash = context.finish().as_ref().first_chunk().map_or(0, |head| u64::from_be_bytes(*head));
            let mut known = KNOWN.lock();
            if known.len() >= TAGS {
                known.clear(); // so rare that an order of eviction is not worth keeping
            }
            known.insert(identity, hash);
            hash
        }
    };
    Ok(match coding {
        Some(coding) => format!("\"{hash:016x}-{coding}\""),
        None => format!("\"{hash:016x}\""),
    })
}

impl Ctx {
    /// Answers with a file what was decided to be answered.
    ///
    /// # Errors
    /// As [`Found::write`].
    pub(super) async fn serve_file(&mut self, session: &mut Session, files: &StaticFiles) -> Result<()> {
        let Phase::Forward(forward) = &self.phase else {
            return Error::e_explain(ErrorType::InternalError, "no file was decided on");
        };
        let request = session.req_header();
        let path = forward.path.as_str();
        let wanted = Wanted {
            rest: path.strip_prefix(&forward.route.settings.path).unwrap_or_default().to_owned(),
            method: request.method.clone(),
            headers: request.headers.clone(),
            navigation: self.shape == Shape::Html,
            access: forward.route.settings.access,
        };
        let answer = match find(files, wanted).await {
            Ok(Lookup::Found(found)) => {
                let mut head = found.head()?;
                downstream::rewrite(&mut head, &self.state, forward, self.cors.as_ref());
                downstream::add_cookies(&mut head, self.late_cookies());
                respond::settle_request_body(session).await;
                return found.write(session, head).await;
            }
            Ok(Lookup::Folder) => {
                let query = forward.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
                let target = format!("{path}/{query}");
                LocalResponse::redirect(StatusCode::TEMPORARY_REDIRECT, &target).set_cookies(self.late_cookies())
            }
            Ok(Lookup::Missing) => {
                let cookies = self.late_cookies();
                self.render(Problem::new(Code::NoRoute, "There is no such file."), cookies)
            }
            Err(error) => {
                tracing::error!(target: "sidegate", event = "file_unreadable", request_id = %self.request_id, kind = %error.kind());
                let cookies = self.late_cookies();
                self.render(Problem::new(Code::Internal, "A file cannot be read."), cookies)
            }
        };
        self.respond(session, answer).await
    }
}

impl Found {
    /// The head, with room for what the route and the session add.
    ///
    /// # Errors
    /// When the status is none, which it is not.
    fn head(&self) -> Result<ResponseHeader> {
        let mut head = ResponseHeader::build(self.head.status, Some(self.head.fields.len() + 6))?;
        for (name, value) in &self.head.fields {
            head.insert_header(name.clone(), value.clone())?;
        }
        head.insert_header(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))?;
        Ok(head)
    }

    /// Writes head and body, piece by piece.
    ///
    /// # Errors
    /// When the client is gone, or the file became shorter than was announced: then the connection has to end.
    async fn write(self, session: &mut Session, head: ResponseHeader) -> Result<()> {
        session.write_response_header(Box::new(head), self.body.is_none()).await?;
        let Some((file, mut left)) = self.body else { return Ok(()) };
        let mut file = tokio::fs::File::from_std(file);
        file.set_max_buf_size(PIECE);
        while left > 0 {
            let mut piece = BytesMut::with_capacity(PIECE.min(usize::try_from(left).unwrap_or(PIECE)));
            let read = (&mut file).take(left).read_buf(&mut piece).await;
            let read = read.map_err(|_| Error::new_in(ErrorType::FileReadError))?;
            if read == 0 {
                return Err(Error::new_in(ErrorType::FileReadError));
            }
            left = left.saturating_sub(u64::try_from(read).unwrap_or(left));
            session.write_response_body(Some(piece.freeze()), left == 0).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashed_names() {
        for (name, hashed) in [
            ("app-3f9a8b7c.js", true),
            ("assets/index-DiwrgTda.css", true),
            ("app-12345678.js.map", true),
            ("a-b-0123456789abcdef.woff2", true),
            ("app-1234567.js", false),
            ("app.js", false),
            ("-12345678.js", false),
            ("app-12345678", false),
            ("index.html", false),
        ] {
            assert_eq!(is_hashed(Path::new(name)), hashed, "{name}");
        }
    }

    /// A folder that becomes a link between the look and the opening leads nowhere.
    #[test]
    fn a_link_that_came_meanwhile_is_not_followed() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(dir.path().join("a")).unwrap();
        for folder in [dir.path().join("a"), outside.path().to_owned()] {
            std::fs::write(folder.join("x"), "x").unwrap();
        }
        let root = dir.path().canonicalize().unwrap();
        let path = root.join("a/x").canonicalize().unwrap();
        assert!(open_resolved(&root, &path).is_ok());
        std::fs::remove_dir_all(root.join("a")).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.join("a")).unwrap();
        assert!(open_resolved(&root, &path).is_err(), "a folder on the way");
        std::fs::remove_file(root.join("a")).unwrap();
        std::fs::create_dir(root.join("a")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("x"), root.join("a/x")).unwrap();
        assert!(open_resolved(&root, &path).is_err(), "the file itself");
        assert!(matches!(open(&root, Path::new("a/x")), Opened::Outside));
    }

    /// ASVS-13.4.1.
    #[test]
    fn names_that_are_never_served() {
        for rest in [".env", ".git/config", "a/.htpasswd", "a/..%2fb", "%2e%2e/x", "a%00b", "%ff"] {
            assert_eq!(name_of(rest), None, "{rest}");
        }
        assert_eq!(name_of(""), Some(PathBuf::new()));
        assert_eq!(name_of("a/b%20c.js"), Some(PathBuf::from("a/b c.js")));
        assert_eq!(name_of("a/"), Some(PathBuf::from("a")));
    }

    #[test]
    fn media_types() {
        for (name, wanted) in [
            ("index.html", "text/html; charset=utf-8"),
            ("a.css", "text/css; charset=utf-8"),
            ("a.js", "text/javascript; charset=utf-8"),
            ("a.json", "application/json; charset=utf-8"),
            ("a.svg", "image/svg+xml; charset=utf-8"),
            ("a.png", "image/png"),
            ("a.wasm", "application/wasm"),
            ("a.unknown-kind", "application/octet-stream"),
        ] {
            assert_eq!(media_type(Path::new(name)), wanted, "{name}");
        }
    }
}
