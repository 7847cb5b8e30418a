//! Who may use a session: fetch metadata, the header mode, CORS, navigations, frames, the hop page.

mod support;

use toml::Table;

use support::exact::{FOREIGN_LINK, FOREIGN_SCRIPT, Fields, Rig, SCRIPT, TYPED, route, routes};
use support::gateway::set;
use support::text::unform_value;
use support::wire::Reply;

const PARTNER: &str = "https://partner.example";

/// Routes of each kind.
fn all_kinds(config: &mut Table, up: &str) {
    let text = [
        route("/api/", up, ""),
        route("/strict/", up, "on_anonymous = '401'"),
        route("/login/", up, "on_anonymous = 'login'"),
        route("/opt/", up, "access = 'optional'"),
        route("/hook/", up, "csrf = false"),
        route("/", up, "access = 'public'"),
    ];
    routes(config, &text.concat());
}

/// `site mode dest origin` as header fields; `-` for a field that is not sent, `ours` for our origin.
fn said<'a>(line: &'a str, ours: &'a str) -> Vec<(&'a str, &'a str)> {
    let names = ["Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest", "Origin"];
    let value = |value: &'a str| if value == "ours" { ours } else { value };
    names.into_iter().zip(line.split(' ')).filter(|(_, v)| *v != "-").map(|(k, v)| (k, value(v))).collect()
}

/// Whether the request used the session; a refusal must be 403 `csrf`, touch nothing and set nothing.
async fn uses_session(rig: &Rig, method: &str, path: &str, fields: &Fields<'_>) -> bool {
    rig.upstream.forget();
    let reply = rig.call(method, path, &rig.signed(fields)).await;
    let at = format!("{method} {path} {fields:?}: {} {}", reply.status, reply.text());
    if reply.status == 200 {
        assert!(rig.upstream.last().bearer().is_some(), "{at}");
        return true;
    }
    assert_eq!(reply.status, 403, "{at}");
    let html = reply.header("content-type").is_some_and(|t| t.starts_with("text/html"));
    assert!(if html { reply.text().contains("csrf") } else { reply.code() == "csrf" } || method == "HEAD", "{at}");
    assert!(rig.upstream.untouched(), "{at}");
    assert_eq!(reply.header_all("set-cookie"), [""; 0], "{at}");
    assert_eq!(reply.header("access-control-allow-origin"), None, "{at}");
    false
}

/// BFF-19, BFF-23, ASVS-3.5.1, ASVS-3.5.2: what proves that a request comes from the app, method by method.
#[tokio::test]
async fn bff_19_what_proves_the_origin() {
    let rig = Rig::start(all_kinds).await;
    let ours = rig.gateway.public_url.clone();
    for (line, proves) in [
        // The app
        ("same-origin cors empty -", true),
        ("same-origin cors empty ours", true),
        ("same-origin no-cors image -", true),
        ("same-origin navigate document ours", true),
        ("- - - ours", true),
        ("none cors empty ours", true),
        // Others
        ("cross-site cors empty https://evil.example", false),
        ("cross-site cors empty -", false),
        ("cross-site no-cors image -", false),
        ("same-site cors empty http://sibling.localhost", false),
        ("same-site cors empty -", false),
        ("none cors empty -", false),
        ("- - - https://evil.example", false),
        ("- - - null", false),
        ("cross-site cors empty null", false),
        ("cross-site navigate iframe -", false),
        ("- - - -", false),
        // Contradictions
        ("cross-site cors empty ours", false),
        ("same-site cors empty ours", false),
        ("same-origin cors empty https://evil.example", false),
        ("same-origin cors empty null", false),
        // Spellings
        ("Same-Origin cors empty -", false),
        ("sameorigin cors empty -", false),
        ("same-origin,cross-site cors empty -", false),
    ] {
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"] {
            let used = uses_session(&rig, method, "/api/x", &said(line, &ours)).await;
            assert_eq!(used, proves, "{method} {line}");
        }
    }
    // A form that anybody's page can send, with the content types that need no preflight.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
        let fields =
            [said("cross-site navigate document https://evil.example", &ours), vec![("Content-Type", kind)]].concat();
        assert!(!uses_session(&rig, "POST", "/api/x", &fields).await, "{kind}");
    }
}

/// BFF-22: tricks with the origin's text prove nothing.
#[tokio::test]
async fn bff_22_origins_are_compared_exactly() {
    let rig = Rig::start(all_kinds).await;
    let ours = rig.gateway.public_url.clone();
    let port: u16 = ours.rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port");
    let tricks = [
        format!("{ours}.evil.example"),
        format!("{ours}/"),
        format!("{ours}, {ours}"),
        format!("{ours} {ours}"),
        format!("http://evil.localhost:{port}"),
        format!("http://localhost.:{port}"),
        format!("http://LOCALHOST:{port}"),
        format!("https://localhost:{port}"),
        format!("http://localhost:{}", port - 1),
        "http://localhost".to_owned(),
        format!("http://127.0.0.1:{port}"),
        "null".to_owned(),
        String::new(),
    ];
    for trick in &tricks {
        for fields in [&[("Origin", trick.as_str())][..], &[("Sec-Fetch-Site", "same-origin"), ("Origin", trick)]] {
            let with_header = [fields, &[("X-CSRF", "1")]].concat();
            assert!(!uses_session(&rig, "POST", "/api/x", &with_header).await, "{trick}");
        }
    }
    for twice in [
        &[("Origin", ours.as_str()), ("Origin", ours.as_str())][..],
        &[("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "same-origin")],
        &[("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site")],
    ] {
        rig.upstream.forget();
        let reply = rig.call("POST", "/api/x", &rig.signed(twice)).await;
        assert!(matches!(reply.status, 400 | 403), "{twice:?}: {}", reply.status);
        assert!(rig.upstream.untouched());
    }
}

/// `X-CSRF` stands in for both fields where neither is sent, with any value.
#[tokio::test]
async fn the_header_counts_where_nothing_else_is_said() {
    let rig = Rig::start(all_kinds).await;
    let ours = rig.gateway.public_url.clone();
    for value in ["1", "", "anything at all"] {
        for method in ["GET", "POST", "DELETE"] {
            assert!(uses_session(&rig, method, "/api/x", &[("X-CSRF", value)]).await, "{method} {value:?}");
        }
    }
    for line in
        ["none cors empty -", "cross-site cors empty -", "same-site cors empty -", "- - - null", "- - - https://a.test"]
    {
        let fields = [said(line, &ours), vec![("X-CSRF", "1")]].concat();
        assert!(!uses_session(&rig, "POST", "/api/x", &fields).await, "{line}");
    }
    assert!(!uses_session(&rig, "POST", "/api/x", &[("X-CSRF-Token", "1")]).await);
}

/// A link opens a page from anywhere, except where the route says that it is an API.
#[tokio::test]
async fn navigations_open_pages_but_no_apis() {
    let rig = Rig::start(all_kinds).await;
    let ours = rig.gateway.public_url.clone();
    for (line, api, strict) in [
        ("none navigate document -", true, true),
        ("same-origin navigate document -", true, true),
        ("same-site navigate document -", true, false),
        ("cross-site navigate document -", true, false),
        ("cross-site navigate iframe -", false, false),
        ("same-origin navigate iframe -", true, true),
        ("cross-site navigate embed -", false, false),
        ("cross-site navigate empty -", false, false),
        ("cross-site no-cors document -", false, false),
    ] {
        for method in ["GET", "HEAD"] {
            let fields = said(line, &ours);
            for (path, opens) in [("/api/x", api), ("/login/x", api), ("/strict/x", strict)] {
                assert_eq!(uses_session(&rig, method, path, &fields).await, opens, "{method} {path} {line}");
            }
        }
        let posted = uses_session(&rig, "POST", "/api/x", &said(line, &ours)).await;
        assert_eq!(posted, line.starts_with("same-origin"), "a form is no link: {line}");
    }
}

/// BFF-20: in header mode every request but a GET or HEAD navigation carries the header.
#[tokio::test]
async fn bff_20_header_mode() {
    let rig = Rig::start(|config, up| {
        all_kinds(config, up);
        set(config, "csrf.mode", "'header'");
        set(config, "csrf.header", "'X-My-Csrf'");
    })
    .await;
    let ours = rig.gateway.public_url.clone();
    for line in ["same-origin cors empty -", "- - - ours", "- - - -", "same-origin no-cors image -"] {
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"] {
            let without = said(line, &ours);
            assert!(!uses_session(&rig, method, "/api/x", &without).await, "{method} {line}");
            assert!(!uses_session(&rig, method, "/api/x", &[&without[..], &[("X-CSRF", "1")]].concat()).await);
            let with = [&without[..], &[("X-My-CSRF", "")]].concat();
            assert!(uses_session(&rig, method, "/api/x", &with).await, "{method} {line}");
        }
    }
    for line in ["none navigate document -", "cross-site navigate document -"] {
        assert!(uses_session(&rig, "GET", "/api/x", &said(line, &ours)).await, "{line}");
    }
    assert!(!uses_session(&rig, "POST", "/api/x", &said("same-origin navigate document ours", &ours)).await);
    for line in ["cross-site cors empty -", "cross-site cors empty https://evil.example", "same-site cors empty -"] {
        let fields = [said(line, &ours), vec![("X-My-CSRF", "1")]].concat();
        assert!(!uses_session(&rig, "POST", "/api/x", &fields).await, "{line}: a preflight was not asked for");
    }
    assert_eq!(rig.call("POST", "/auth/refresh", &rig.signed(SCRIPT)).await.verdict(), (403, "csrf".to_owned()));
    let fields = rig.signed(&[SCRIPT, &[("X-My-CSRF", "1")]].concat());
    assert_eq!(rig.call("POST", "/auth/refresh", &fields).await.status, 200);
}

/// `csrf = false` switches it off on that route, and there alone; a WebSocket's origin is still judged.
#[tokio::test]
async fn a_route_without_csrf() {
    let rig = Rig::start(all_kinds).await;
    let ours = rig.gateway.public_url.clone();
    for line in ["cross-site cors empty https://evil.example", "- - - -", "same-site navigate document -", "- - - null"]
    {
        for method in ["GET", "POST"] {
            assert!(uses_session(&rig, method, "/hook/x", &said(line, &ours)).await, "{method} {line}");
        }
    }
    assert!(!uses_session(&rig, "POST", "/api/x", FOREIGN_SCRIPT).await);
}

/// Without a session: 401 to who names no foreign site, 401 or 403 to who does, never a cookie.
#[tokio::test]
async fn without_a_session_nothing_is_proven_and_nothing_set() {
    let rig = Rig::start(all_kinds).await;
    let ours = rig.gateway.public_url.clone();
    let bad = format!("sidegate={}", "A".repeat(300));
    for (line, foreign) in [
        ("same-origin cors empty -", false),
        ("- - - ours", false),
        ("- - - -", false),
        ("none cors empty -", false),
        ("cross-site cors empty https://evil.example", true),
        ("same-site cors empty -", true),
        ("- - - null", true),
    ] {
        for path in ["/api/x", "/strict/x"] {
            for method in ["GET", "POST", "DELETE"] {
                let reply = rig.call(method, path, &said(line, &ours)).await;
                if foreign {
                    assert!(matches!(reply.status, 401 | 403), "{line}: {}", reply.status);
                } else {
                    assert_eq!(reply.verdict(), (401, "login_required".to_owned()), "{method} {line}");
                    assert!(reply.text().contains("/auth/login?return_to="), "{}", reply.text());
                }
                assert_eq!((reply.header_all("set-cookie"), reply.header("location")), (vec![], None), "{line}");
            }
        }
        let fields = [said(line, &ours), vec![("Cookie", bad.as_str())]].concat();
        let reply = rig.call("GET", "/api/x", &fields).await;
        assert!(matches!(reply.status, 401 | 403), "a cookie that does not open is none: {}", reply.status);
    }
    assert!(rig.upstream.untouched());
}

/// BFF-05: navigations without a session go to the login; frames, sockets and forms each in their way.
#[tokio::test]
async fn bff_05_navigations_without_a_session() {
    let rig = Rig::start(all_kinds).await;
    let ours = rig.gateway.public_url.clone();
    let login = "/auth/login?return_to=/api/x?a=1";
    let to = |reply: &Reply| reply.header("location").map(unform_value);
    for line in ["none navigate document -", "same-origin navigate document -", "same-site navigate document -"] {
        let reply = rig.call("GET", "/api/x?a=1", &said(line, &ours)).await;
        assert_eq!((reply.status, to(&reply).as_deref()), (302, Some(login)), "{line}");
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        let reply = rig.call("GET", "/strict/x", &said(line, &ours)).await;
        assert_eq!((reply.status, reply.header("location")), (401, None), "{line}");
    }
    let head = rig.call("HEAD", "/api/x", TYPED).await;
    assert!((head.status, head.body.len()) == (302, 0) || head.status == 401, "{}", head.status);

    // A form is not replayed: the user comes back to the page that it was on.
    for (referer, back) in [
        (Some(format!("{ours}/orders?id=7")), "/auth/login?return_to=/orders?id=7"),
        (Some("https://evil.example/x".to_owned()), "/auth/login?return_to=/"),
        (Some(format!("{ours}.evil.example/x")), "/auth/login?return_to=/"),
        (Some(format!("{ours}//evil.example/x")), "/auth/login?return_to=/"),
        (Some(format!("{ours}/auth/session")), "/auth/login?return_to=/"),
        (None, "/auth/login?return_to=/"),
    ] {
        let mut fields = said("same-origin navigate document ours", &ours);
        fields.extend(referer.as_deref().map(|value| ("Referer", value)));
        let reply = rig.call("POST", "/api/x", &fields).await;
        assert_eq!((reply.status, to(&reply).as_deref()), (303, Some(back)), "RFC9700-16: {referer:?}");
    }
    let reply = rig.call("POST", "/api/x", &said("cross-site navigate document https://evil.example", &ours)).await;
    assert!(matches!(reply.status, 401 | 403), "{}", reply.status);

    for line in ["same-origin navigate iframe -", "cross-site navigate iframe -", "none navigate frame -"] {
        let reply = rig.call("GET", "/api/x", &said(line, &ours)).await;
        assert_eq!((reply.status, reply.header("location")), (401, None), "{line}");
    }
    // `on_anonymous = "login"` sends everybody to the login.
    assert_eq!(rig.call("GET", "/login/x", SCRIPT).await.status, 302);
    assert!(rig.upstream.untouched());
}

/// COOKIE-05: a link from another site arrives without its Strict cookie and comes again through the hop page.
#[tokio::test]
async fn a_foreign_link_hops_once() {
    let rig = Rig::start(all_kinds).await;
    let hop = rig.call("GET", "/api/x?a=1&b=%22", FOREIGN_LINK).await;
    assert_eq!((hop.status, hop.header("location"), hop.header("cache-control")), (200, None, Some("no-store")));
    assert!(hop.header("content-security-policy").is_some_and(|p| p.contains("default-src 'none'")));
    assert!(!hop.text().to_lowercase().contains("<script"));
    assert_eq!(hop.header_all("set-cookie"), [""; 0]);
    assert!(rig.upstream.untouched());

    // The browser as a whole: with the session it arrives, without it ends at the login.
    let arrived = rig.browser.navigate_from(support::client::Initiator::CrossSite, "/api/x?a=1&b=%22").await;
    assert_eq!((arrived.status, arrived.via.len()), (200, 1), "{arrived:?}");
    let seen = rig.upstream.last();
    assert_eq!((seen.target.as_str(), seen.bearer().is_some()), ("/api/x?a=1&b=%22", true));

    // With the cookie, or where nobody logs in, there is no hop.
    assert_eq!(rig.call("GET", "/api/x", &rig.signed(FOREIGN_LINK)).await.status, 200);
    for (path, method) in [("/strict/x", "GET"), ("/api/x", "POST")] {
        let reply = rig.call(method, path, FOREIGN_LINK).await;
        assert!(matches!(reply.status, 401 | 403), "{method} {path}: {}", reply.status);
    }
}

/// On `optional` routes a request without proof goes on without the session, or not at all.
#[tokio::test]
async fn optional_routes_give_the_token_to_the_app_alone() {
    let rig = Rig::start(all_kinds).await;
    let ours = rig.gateway.public_url.clone();
    for (line, method, carried) in [
        ("same-origin cors empty -", "POST", true),
        ("none navigate document -", "GET", true),
        ("cross-site navigate document -", "GET", true),
        ("cross-site navigate iframe -", "GET", false),
        ("cross-site cors empty https://evil.example", "GET", false),
        ("cross-site cors empty https://evil.example", "POST", false),
        ("cross-site navigate document https://evil.example", "POST", false),
        ("same-site no-cors image -", "GET", false),
        ("- - - -", "GET", false),
    ] {
        rig.upstream.forget();
        let reply = rig.call(method, "/opt/x", &rig.signed(&said(line, &ours))).await;
        if reply.status == 200 {
            let seen = rig.upstream.last();
            assert_eq!(seen.bearer().is_some(), carried, "{method} {line}");
            assert_eq!(seen.header("cookie"), None);
        } else {
            assert!(!carried && reply.status == 403 && rig.upstream.untouched(), "{method} {line}: {}", reply.status);
        }
    }
    // A foreign link comes without the Strict cookie: forwarded as anonymous, without a hop.
    let seen = rig.forwarded("GET", "/opt/x", FOREIGN_LINK).await;
    assert_eq!(seen.header("authorization"), None);
    // So is everybody without a session.
    for line in ["same-origin cors empty -", "cross-site cors empty https://evil.example", "- - - -"] {
        assert_eq!(rig.forwarded("POST", "/opt/x", &said(line, &ours)).await.header("authorization"), None);
    }
}

fn cors_of(reply: &Reply) -> Vec<String> {
    let fields = reply.headers.iter().filter(|(name, _)| name.to_lowercase().starts_with("access-control-"));
    fields.map(|(name, value)| format!("{}: {value}", name.to_lowercase())).collect()
}

const ASKS: &Fields<'static> =
    &[("Access-Control-Request-Method", "PUT"), ("Access-Control-Request-Headers", "content-type, x-csrf")];

/// BFF-21, ASVS-3.4.2: a preflight is answered here; an origin that is not listed learns nothing.
#[tokio::test]
async fn bff_21_preflights() {
    let rig = Rig::start(|config, up| {
        all_kinds(config, up);
        set(config, "csrf.allowed_origins", &format!("['{PARTNER}']"));
    })
    .await;
    let ours = rig.gateway.public_url.clone();
    for path in ["/api/x", "/strict/x", "/opt/x", "/auth/session", "/auth/logout", "/auth/refresh"] {
        for signed in [false, true] {
            let mut fields = [&[("Origin", PARTNER)], ASKS].concat();
            if signed {
                fields.push(("Cookie", &rig.cookie));
            }
            let reply = rig.call("OPTIONS", path, &fields).await;
            assert_eq!((reply.status, reply.body.len()), (204, 0), "{path}");
            assert_eq!(reply.header_all("access-control-allow-origin"), [PARTNER], "{path}");
            assert_eq!(reply.header_all("access-control-allow-credentials"), ["true"]);
            let methods = reply.header("access-control-allow-methods").unwrap_or_default();
            assert!(["GET", "POST", "PUT", "PATCH", "DELETE"].iter().all(|m| methods.contains(m)), "{methods}");
            let asked = reply.header("access-control-allow-headers").unwrap_or_default();
            assert!(asked.contains("content-type") && asked.contains("x-csrf"), "{asked}");
            assert!(reply.header_all("vary").join(",").contains("Origin"), "{path}");
            assert!(!cors_of(&reply).concat().contains('*'), "{:?}", cors_of(&reply));
        }
        for origin in [
            "https://evil.example",
            "null",
            "https://partner.example.evil.example",
            "https://evilpartner.example",
            "https://partner.example:444",
            "https://partner.example:443",
            "http://partner.example",
            "https://partner.example.",
            "https://PARTNER.example",
            "https://partner.example/",
            "https://sub.partner.example",
            ours.as_str(),
        ] {
            let reply =
                rig.call("OPTIONS", path, &[&[("Origin", origin), ("Cookie", &rig.cookie)], ASKS].concat()).await;
            assert_eq!(cors_of(&reply), [""; 0], "{path} {origin}");
            assert!(reply.status < 500);
        }
    }
    let strange = [&[("Origin", PARTNER)][..], &[ASKS[0], ("Access-Control-Request-Headers", "a\"<b>")]].concat();
    let reply = rig.call("OPTIONS", "/api/x", &strange).await;
    assert!(!format!("{}{}", reply.head(), reply.text()).contains('<'), "names only");
    let lines = ["x-a.b, X-C!", "x-d,*"].map(|line| ("Access-Control-Request-Headers", line));
    let reply = rig.call("OPTIONS", "/api/x", &[&[("Origin", PARTNER), ASKS[0]][..], &lines].concat()).await;
    assert_eq!(reply.header_all("access-control-allow-headers"), ["x-a.b, X-C!, x-d"]);
    assert!(rig.upstream.untouched(), "no preflight reaches an upstream that gets tokens");
    // A public route answers for itself.
    let seen = rig.forwarded("OPTIONS", "/x", &[&[("Origin", "https://evil.example")], ASKS].concat()).await;
    assert_eq!((seen.method.as_str(), seen.header("origin")), ("OPTIONS", Some("https://evil.example")));
}

/// BFF-22, ASVS-3.4.2: answers to a listed origin can be read by it, our errors too; answers to others cannot.
#[tokio::test]
async fn bff_22_cors_answers() {
    let rig = Rig::start(|config, up| {
        all_kinds(config, up);
        set(config, "csrf.allowed_origins", &format!("['{PARTNER}', 'https://second.example:8443']"));
    })
    .await;
    let from = |origin: &'static str| -> Vec<(&'static str, &'static str)> {
        [said("cross-site cors empty -", ""), vec![("Origin", origin)]].concat()
    };
    for (method, path, signed, status) in [
        ("GET", "/api/x", true, 200),
        ("POST", "/api/x", true, 200),
        ("DELETE", "/strict/x", true, 200),
        ("GET", "/opt/x", false, 200),
        ("GET", "/api/x", false, 401),
        ("GET", "/api/%2e%2e", true, 400),
        ("POST", "/auth/session", true, 405),
        ("GET", "/auth/nowhere", true, 404),
    ] {
        for origin in [PARTNER, "https://second.example:8443"] {
            let fields = if signed { rig.signed(&from(origin)) } else { from(origin) };
            let reply = rig.call(method, path, &fields).await;
            assert_eq!(reply.status, status, "{method} {path}: {}", reply.text());
            assert_eq!(reply.header_all("access-control-allow-origin"), [origin], "{method} {path}");
            assert_eq!(reply.header_all("access-control-allow-credentials"), ["true"], "{method} {path}");
            assert!(reply.header_all("vary").join(",").contains("Origin"), "{method} {path}");
        }
        let reply = rig.call(method, path, &rig.signed(&from("https://second.example"))).await;
        assert_eq!(reply.header("access-control-allow-credentials"), None, "{method} {path}");
        assert_ne!(reply.header("access-control-allow-origin"), Some("https://second.example"));
    }
    // FAPI2-17: that it is listed does not let it start a login out of sight.
    for line in
        ["cross-site cors empty", "cross-site no-cors image", "same-site cors empty", "cross-site navigate iframe"]
    {
        let line = format!("{line} {PARTNER}");
        let reply = rig.call("GET", "/auth/login", &said(&line, "")).await;
        assert!(reply.status == 403 && reply.text().contains("csrf"), "{line}: {}", reply.text());
        assert_eq!(reply.header_all("set-cookie"), [""; 0]);
    }
    // What the upstream says of CORS does not open what is closed.
    let open = support::wire::Answer::new(200, "text/plain", "x")
        .with("Access-Control-Allow-Origin", "https://evil.example")
        .with("Access-Control-Allow-Credentials", "true")
        .with("Vary", "Accept");
    rig.upstream.on("/api/x", support::upstream::Script::Answer(open));
    let reply = rig.call("GET", "/api/x", &rig.signed(&from(PARTNER))).await;
    assert_eq!(reply.header_all("access-control-allow-origin"), [PARTNER]);
    assert_eq!(reply.header_all("access-control-allow-credentials"), ["true"]);
    assert!(reply.header_all("vary").join(",").contains("Accept"));
}

/// The endpoints ask for the same proof: what changes something is no foreign page's to call.
#[tokio::test]
async fn endpoints_are_not_called_from_elsewhere() {
    let rig = Rig::start(all_kinds).await;
    let ours = rig.gateway.public_url.clone();
    for line in [
        "cross-site cors empty https://evil.example",
        "same-site cors empty -",
        "- - - null",
        "same-origin cors empty null",
    ] {
        for (method, path) in [("POST", "/auth/logout"), ("POST", "/auth/refresh"), ("GET", "/auth/session")] {
            let reply = rig.call(method, path, &rig.signed(&said(line, &ours))).await;
            assert_eq!(reply.verdict(), (403, "csrf".to_owned()), "{method} {path} {line}");
            assert_eq!(reply.header_all("set-cookie"), [""; 0]);
        }
    }
    assert_eq!(rig.get("/api/x", &[]).await.status, 200, "the session lives on");
    assert!(rig.gateway.metric("sidegate_csrf_refused_total", &[]) >= 12.0);
}
