//! `static_dir`: the app's files served by sidegate itself (contract 2.11).

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::os::unix::fs::symlink;
use std::path::Path;

use support::client::{Ask, Browser, Response};
use support::inside::Inside;
use support::provider::ProviderDouble;
use support::upstream::{Script, Upstream};
use tempfile::TempDir;
use toml::Table;

const APP: &str = "app-3f9a8b7c.js";

fn site() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    write("index.html", "<!doctype html><title>home</title>");
    write(APP, "console.log('plain')");
    write(&format!("{APP}.br"), "as brotli");
    write(&format!("{APP}.gz"), "as gzip");
    write("logo.png", "0123456789");
    write("empty.txt", "");
    write("a b.txt", "blank");
    write("docs/index.html", "docs");
    write("bare/file.txt", "x");
    write(".env", "SECRET=1");
    write(".git/config", "secret");
    dir
}

/// `/` public, `/priv/` with a session, `/opt2/` optional, all from the same folder.
async fn start(dir: &Path) -> (Inside, ProviderDouble, Upstream) {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Inside::start_with(&provider, &upstream, |table| {
        let routes = table["route"].as_array_mut().unwrap();
        routes.retain(|route| route["path"].as_str() == Some("/api/"));
        for (path, access) in [("/", "public"), ("/priv/", "session"), ("/opt2/", "optional")] {
            let text = format!(
                "path = {path:?}\nstatic_dir = {dir:?}\nfallback = \"index.html\"\naccess = {access:?}\n\
                 response_headers = {{ X-Own = \"yes\" }}"
            );
            routes.push(text.parse::<Table>().unwrap().into());
        }
    })
    .await;
    (gateway, provider, upstream)
}

async fn get(browser: &Browser, path: &str, fields: &[(&str, &str)]) -> Response {
    let ask = fields.iter().fold(Ask::fetch(path), |ask, (name, value)| ask.header(name, value));
    browser.send(ask).await
}

#[tokio::test]
async fn files_pages_and_what_is_missing() {
    let dir = site();
    let (gateway, _provider, upstream) = start(dir.path()).await;
    let browser = gateway.browser();
    let home = browser.navigate("/").await;
    assert_eq!((home.status, home.text().as_str()), (200, "<!doctype html><title>home</title>"));
    assert_eq!(home.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(home.header("cache-control"), Some("no-cache"));
    assert_eq!(home.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(home.header("x-own"), Some("yes"));

    let script = get(&browser, &format!("/{APP}?v=1"), &[]).await;
    assert_eq!(script.text(), "console.log('plain')");
    assert_eq!(script.header("content-type"), Some("text/javascript; charset=utf-8"));
    assert_eq!(script.header("cache-control"), Some("public, max-age=31536000, immutable"));
    assert_eq!(script.header("vary"), Some("Accept-Encoding"));
    assert_eq!(script.header("accept-ranges"), Some("bytes"));
    for (path, text) in [("/a%20b.txt", "blank"), ("/docs/", "docs"), ("/empty.txt", ""), ("/bare/file.txt", "x")] {
        let answer = get(&browser, path, &[]).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, text), "{path}");
    }
    let folder = browser.send(Ask::fetch("/docs?x=1").stay()).await;
    assert_eq!((folder.status, folder.location()), (307, Some("/docs/?x=1")));

    // The fallback is for page loads.
    for path in ["/users/7", "/bare/", "/bare", "/logo.png/", "/missing.js"] {
        let page = browser.navigate(path).await;
        assert_eq!((page.status, page.text()), (200, home.text()), "{path}");
        let asset = get(&browser, path, &[]).await;
        assert_eq!((asset.status, asset.code().as_str()), (404, "no_route"), "{path}");
        assert_eq!(asset.header("x-own"), Some("yes"));
    }
    assert!(upstream.untouched());
    assert_eq!(gateway.metric("sidegate_requests_total", &[("route", "/"), ("status", "404")]), 5.0);
}

/// ASVS-13.4.1, ASVS-13.4.3.
#[tokio::test]
async fn what_must_not_be_served() {
    let (dir, outside) = (site(), tempfile::tempdir().unwrap());
    std::fs::write(outside.path().join("secret.txt"), "outside").unwrap();
    symlink(outside.path().join("secret.txt"), dir.path().join("link.txt")).unwrap();
    symlink(outside.path(), dir.path().join("linked")).unwrap();
    symlink("logo.png", dir.path().join("inside.png")).unwrap();
    let (gateway, _provider, _upstream) = start(dir.path()).await;
    let browser = gateway.browser();
    for path in ["/.env", "/.git/config", "/link.txt", "/linked/secret.txt", "/linked/", "/docs/.hidden", "/bare/"] {
        assert_eq!(get(&browser, path, &[]).await.status, 404, "{path}");
        if path != "/bare/" {
            assert_eq!(browser.navigate(path).await.status, 404, "{path}: no fallback either");
        }
    }
    for path in ["/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/a/../../etc/passwd", "/x%00.html", "/a\\b"] {
        let raw = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            gateway.public_url.trim_start_matches("http://")
        );
        let answer = String::from_utf8_lossy(&browser.raw_to_end(raw).await).into_owned();
        assert!(answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
        assert!(!answer.contains("root:"), "{path}");
    }
    assert_eq!(get(&browser, "/inside.png", &[]).await.text(), "0123456789", "a symlink within the folder");
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let answer = browser.send(Ask::fetch("/logo.png").method(method)).await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{method}");
    }
}

#[tokio::test]
async fn validators_ranges_and_variants() {
    let dir = site();
    let (gateway, _provider, _upstream) = start(dir.path()).await;
    let browser = gateway.browser();
    let plain = get(&browser, "/logo.png", &[]).await;
    let (etag, modified) =
        (plain.header("etag").unwrap().to_owned(), plain.header("last-modified").unwrap().to_owned());
    for fields in [vec![("If-None-Match", etag.as_str())], vec![("If-Modified-Since", modified.as_str())]] {
        let known = get(&browser, "/logo.png", &fields).await;
        assert_eq!((known.status, known.body.len()), (304, 0), "{fields:?}");
        assert_eq!(known.header("etag"), Some(etag.as_str()));
        assert_eq!(known.header("vary"), Some("Accept-Encoding"));
        assert_eq!(known.header("cache-control"), Some("no-cache"));
    }
    assert_eq!(get(&browser, "/logo.png", &[("If-None-Match", "\"other\"")]).await.status, 200);
    let part = get(&browser, "/logo.png", &[("Range", "bytes=2-4")]).await;
    assert_eq!((part.status, part.text().as_str()), (206, "234"));
    assert_eq!((part.header("content-range"), part.header("content-length")), (Some("bytes 2-4/10"), Some("3")));
    assert_eq!(get(&browser, "/logo.png", &[("Range", "bytes=-3")]).await.text(), "789");
    let beyond = get(&browser, "/logo.png", &[("Range", "bytes=10-")]).await;
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */10")));
    let stale = get(&browser, "/logo.png", &[("Range", "bytes=2-4"), ("If-Range", "\"other\"")]).await;
    assert_eq!((stale.status, stale.text().as_str()), (200, "0123456789"));
    let head = browser.send(Ask::fetch("/logo.png").method("HEAD").header("Range", "bytes=2-4")).await;
    assert_eq!((head.status, head.body.len(), head.header("content-length")), (200, 0, Some("10")));

    let path = format!("/{APP}");
    let mut tags = Vec::new();
    for (accept, coding, text) in [
        ("gzip, br", Some("br"), "as brotli"),
        ("gzip", Some("gzip"), "as gzip"),
        ("br;q=0, gzip;q=0.5", Some("gzip"), "as gzip"),
        ("br;q=0.1, gzip;q=0.9", Some("gzip"), "as gzip"),
        ("identity", None, "console.log('plain')"),
    ] {
        let answer = get(&browser, &path, &[("Accept-Encoding", accept)]).await;
        assert_eq!((answer.header("content-encoding"), answer.text().as_str()), (coding, text), "{accept}");
        assert_eq!(answer.header("content-type"), Some("text/javascript; charset=utf-8"));
        assert_eq!(answer.header("vary"), Some("Accept-Encoding"));
        let tag = answer.header("etag").unwrap().to_owned();
        let known = get(&browser, &path, &[("Accept-Encoding", accept), ("If-None-Match", &tag)]).await;
        assert_eq!(known.status, 304, "{accept}");
        tags.push(tag);
    }
    tags.dedup();
    assert_eq!(tags.len(), 3, "one for each variant: {tags:?}");

    // A release: same name, same size, other content.
    std::fs::write(dir.path().join("logo.png"), "abcdefghij").unwrap();
    let new = get(&browser, "/logo.png", &[("If-None-Match", &etag)]).await;
    assert_eq!((new.status, new.text().as_str()), (200, "abcdefghij"));
}

/// ROUTE-11: the route's access holds for files as for an upstream, and its path is not part of the name.
#[tokio::test]
async fn access_is_the_routes() {
    let dir = site();
    let (gateway, _provider, upstream) = start(dir.path()).await;
    let stranger = gateway.browser();
    let path = format!("/priv/{APP}");
    assert_eq!(get(&stranger, &path, &[]).await.code(), "login_required");
    let page = stranger.send(Ask::navigate("/priv/x").stay()).await;
    assert_eq!(page.status, 302);
    assert_eq!(get(&stranger, &format!("/opt2/{APP}"), &[]).await.status, 200);

    let browser = gateway.signed_in().await;
    let script = get(&browser, &path, &[]).await;
    assert_eq!((script.status, script.text().as_str()), (200, "console.log('plain')"));
    assert_eq!(script.header("cache-control"), Some("private, max-age=31536000, immutable"));
    assert_eq!(browser.navigate("/priv/deep/link").await.text(), "<!doctype html><title>home</title>");

    // What an API does not know is the API's to say.
    upstream.on("/api/unknown", Script::text(404, "no such thing"));
    for answer in [browser.navigate("/api/unknown").await, browser.fetch("/api/unknown").await] {
        assert_eq!((answer.status, answer.text().as_str()), (404, "no such thing"));
    }
}

/// Far larger than any buffer: it arrives whole, and a slow reader costs no memory.
#[tokio::test]
async fn a_large_file_is_streamed() {
    let dir = site();
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(dir.path().join("large.bin"), &content).unwrap();
    let (gateway, _provider, _upstream) = start(dir.path()).await;
    let browser = gateway.browser();
    let answer = get(&browser, "/large.bin", &[]).await;
    assert!(answer.body == content, "{} bytes", answer.body.len());
    let part = get(&browser, "/large.bin", &[("Range", "bytes=4000000-4000003")]).await;
    assert_eq!(part.body, 1_000_000_u32.to_le_bytes());
}
