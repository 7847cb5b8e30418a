//! What an operator sees of the configuration: files, variables, messages.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::needless_pass_by_value)]

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sidegate::config::{self, Config, Problem, Surroundings};
use sidegate::crypto::keyring::Key;
use sidegate::gateway::settings::{Token, UpstreamAddress};
use sidegate::net::ListenAddress;
use tempfile::TempDir;

const SECRET: &str = "a-client-secret-that-nobody-may-see";

const GOOD: &str = r#"
[server]
listen = "127.0.0.1:18080"
public_url = "https://app.example.test"

[provider]
issuer = "https://login.example.test/realms/acme"
client_id = "spa"
client_secret = "a-client-secret-that-nobody-may-see"

[session]
keys = ["KEY"]

[[route]]
path = "/api/"
upstream = "http://127.0.0.1:3000"

[[route]]
path = "/"
upstream = "http://127.0.0.1:8000"
access = "public"
"#;

/// A folder with configuration files, and an environment.
struct Desk {
    folder: TempDir,
    files: Vec<PathBuf>,
    variables: Vec<(OsString, OsString)>,
    key: String,
}

impl Desk {
    fn empty() -> Self {
        let key = Key::generate().to_base64url();
        Self { folder: tempfile::tempdir().unwrap(), files: Vec::new(), variables: Vec::new(), key }
    }

    fn good() -> Self {
        Self::empty().file("base.toml", GOOD)
    }

    /// The good file with `from` replaced.
    fn with(from: &str, to: &str) -> Self {
        assert!(GOOD.contains(from), "{from}");
        Self::empty().file("base.toml", &GOOD.replacen(from, to, 1))
    }

    fn file(mut self, name: &str, text: &str) -> Self {
        let path = self.path(name);
        fs::write(&path, text.replace("KEY", &self.key)).unwrap();
        self.files.push(path);
        self
    }

    fn secret(self, name: &str, text: &str, mode: u32) -> Self {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn load(&self) -> Result<Config, Vec<Problem>> {
        config::load_in(&self.files, &Surroundings { variables: self.variables.clone(), terminal: false, text: None })
    }

    fn config(&self) -> Config {
        self.load().unwrap_or_else(|problems| panic!("{}", lines(&problems)))
    }

    /// What an operator reads; must not hold a secret.
    fn complaint(&self) -> String {
        let Err(problems) = self.load() else { panic!("was accepted") };
        let text = lines(&problems);
        assert!(!text.contains(SECRET) && !text.contains(&self.key), "a secret in {text}");
        text
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("{problem}\n")).collect()
}

fn warnings(config: &Config) -> String {
    lines(&config.warnings)
}

// ---------------------------------------------------------------------------------------------------------------------
// Fine
// ---------------------------------------------------------------------------------------------------------------------

#[test]
fn a_small_file_becomes_settings_with_safe_defaults() {
    let config = Desk::good().config();
    assert_eq!(warnings(&config), "");
    assert_eq!(config.server.listen, [ListenAddress::Tcp("127.0.0.1:18080".parse().unwrap())]);
    assert_eq!(config.admin.listen, Some("127.0.0.1:9180".parse().unwrap()));
    assert_eq!(config.oidc.redirect_uri, "https://app.example.test/auth/callback");
    assert_eq!(
        config.oidc.discovery_url.as_ref().unwrap().as_str(),
        "https://login.example.test/realms/acme/.well-known/openid-configuration"
    );
    assert!(!config.keyring_is_random);
    assert_eq!(config.gateway.routes.len(), 2);
    assert!(config.gateway.routes[0].csrf);
    assert_eq!(config.gateway.logout.clear_site_data.as_ref().unwrap(), "\"cache\"");
}

#[test]
fn the_session_seals_the_claims_that_routes_and_endpoints_need() {
    let config = Desk::with(
        "upstream = \"http://127.0.0.1:3000\"",
        "upstream = \"http://127.0.0.1:3000\"\ntoken = \"id\"\nidentity_headers = { \"X-Dept\" = \"department\" }\nrequire = { groups = [\"staff\"] }",
    )
    .config();
    assert_eq!(
        config.session.claims,
        ["department", "email", "groups", "name", "picture", "preferred_username"].map(str::to_owned)
    );
    assert!(config.session.id_token_needed);
    assert_eq!(config.gateway.routes[0].token, Token::Id);
}

#[test]
fn several_upstreams_and_a_unix_socket_are_taken() {
    let config =
        Desk::with("\"http://127.0.0.1:3000\"", "[\"http://127.0.0.1:3000/base/\", \"unix:/run/app.sock\"]").config();
    let upstreams = &config.gateway.routes[0].upstreams;
    assert_eq!(upstreams[0].base_path, "/base");
    assert_eq!(upstreams[1].address, UpstreamAddress::Unix(PathBuf::from("/run/app.sock")));
}

/// COOKIE-19, CFG-03, ASVS-13.2.3
#[test]
fn only_on_loopback_a_key_may_be_made_up() {
    let local = Desk::with("https://app.example.test", "http://localhost:18080");
    fs::write(&local.files[0], fs::read_to_string(&local.files[0]).unwrap().replace("keys = ", "#")).unwrap();
    let config = local.config();
    assert!(config.keyring_is_random);
    assert!(warnings(&config).contains("session.keys"), "{}", warnings(&config));

    assert!(Desk::with("keys = ", "#").complaint().contains("session.keys: a session key is required"));
}

// ---------------------------------------------------------------------------------------------------------------------
// Messages
// ---------------------------------------------------------------------------------------------------------------------

/// CFG-01: all at once, each with its key, its place and how to mend it.
#[test]
fn every_mistake_is_reported_in_one_run() {
    let desk = Desk::empty()
        .file(
            "base.toml",
            r#"
[server]
public_url = "http://app.example.test"
shutdown_delay = 5
listn = "x"

[provider]
issuer = "https://login.example.test?x=1"
client_auth = "basic"
client_secret = 12345678

[session]
keys = ["QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo", "c2hvcnQ"]
same_site = "sometimes"

[sessions]
max_age = "1h"

[[route]]
path = "/x"
acces = "public"
upstream = "ftp://127.0.0.1"

[[route]]
path = "/x"
upstream = "http://127.0.0.1:1"
"#,
        )
        .env("SIDEGATE_LIMITS__HEADER_BYTES", "large");
    let text = desk.complaint().replace(&format!("{}/", desk.folder.path().display()), "");
    let expected = [
        "limits.header_bytes: must be a size in quotes such as \"7600B\", \"64KiB\" or \"1MiB\", not \"large\" (environment variable SIDEGATE_LIMITS__HEADER_BYTES)",
        "provider.client_auth: must be \"client_secret_basic\", \"client_secret_post\", \"client_secret_jwt\", \"private_key_jwt\", \"tls_client_auth\" or \"none\", not \"basic\" (base.toml line 9)",
        "provider.client_secret: must be a string in quotes, not a number (base.toml line 10)",
        "route[0].acces: unknown key; did you mean access? (base.toml line 21)",
        "server.listn: unknown key; did you mean listen? (base.toml line 5)",
        "server.shutdown_delay: must be a duration in quotes such as \"500ms\", \"60s\", \"10m\" or \"8h\", not 5 (base.toml line 4)",
        "session.same_site: must be \"strict\", \"lax\" or \"none\", not \"sometimes\" (base.toml line 14)",
        "sessions: unknown section; did you mean [session]? (base.toml line 16)",
        "server.public_url: must begin with https:// (http:// only on loopback), not \"http://app.example.test\" (base.toml line 3)",
        "provider.issuer: must not contain a query (base.toml line 8)",
        "provider.client_id: is required: the client id as registered at the provider",
        "session.keys[0]: the key is not base64url of 32 bytes; make one with `sidegate keygen` (base.toml line 13)",
        "session.keys[1]: the key is not base64url of 32 bytes; make one with `sidegate keygen` (base.toml line 13)",
        "route[0].upstream: must begin with http://, https://, h2c:// or unix:; got \"ftp://127.0.0.1\" (base.toml line 22)",
        "route[1].path: \"/x\" is also taken by route[0]: let them differ by path, methods or hosts (base.toml line 25)",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
}

/// CFG-01
#[test]
fn one_mistake_is_named_where_it_is() {
    for (from, to, key, word) in [
        ("https://app.example.test", "https://app.example.test/x", "server.public_url", "without path"),
        ("https://app.example.test", "https://u@app.example.test", "server.public_url", "user"),
        ("127.0.0.1:18080", "localhost", "server.listen", "0.0.0.0:8080"),
        ("https://login.example.test/realms/acme", "http://login.example.test", "provider.issuer", "https"),
        ("client_id = \"spa\"", "client_id = \" \"", "provider.client_id", "empty"),
        ("client_secret = ", "# ", "provider.client_secret", "required"),
        ("client_id = \"spa\"", "client_id = \"spa\"\nid_token_alg = \"none\"", "provider.id_token_alg", "RS256"),
        ("client_id = \"spa\"", "client_id = \"spa\"\npreset = \"keycloack\"", "provider.preset", "\"keycloak\""),
        ("client_id = \"spa\"", "client_id = \"spa\"\nprofile = \"fapi2\"", "provider.client_auth", "private_key_jwt"),
        (
            "client_id = \"spa\"",
            "client_id = \"spa\"\nauthorize_params = { state = \"x\" }",
            "provider.authorize_params.state",
            "itself",
        ),
        (
            "client_id = \"spa\"",
            "client_id = \"spa\"\nlogin_params = [\"redirect_uri\"]",
            "provider.login_params",
            "redirect_uri",
        ),
        ("[session]", "[session]\nsame_site = \"none\"", "session.same_site", "partitioned"),
        ("[session]", "[session]\ncookie_name = \"a b\"", "session.cookie_name", "letters"),
        ("[session]", "[session]\nstore = \"redis\"", "session.store", "[redis]"),
        (
            "[session]",
            "[csrf]\nallowed_origins = [\"https://partner.test/\"]\n[session]",
            "csrf.allowed_origins[0]",
            "\"https://partner.test\"",
        ),
        (
            "[session]",
            "[csrf]\nallowed_origins = [\"https://*.partner.test\"]\n[session]",
            "csrf.allowed_origins[0]",
            "*",
        ),
        ("[session]", "[csrf]\nheader = \"Sec-Fetch-Site\"\n[session]", "csrf.header", "proves nothing"),
        ("[session]", "[csrf]\nheader = \"accept\"\n[session]", "csrf.header", "proves nothing"),
        ("[session]", "[csrf]\nallowed_origins = [\"null\"]\n[session]", "csrf.allowed_origins[0]", "exact"),
        ("[session]", "[logout]\nreturn_to = \"//evil.test\"\n[session]", "logout.return_to", "path"),
        ("[session]", "[logout]\nbackchannel = true\n[session]", "logout.backchannel", "single_replica"),
        ("[session]", "[endpoints]\nprefix = \"/\"\n[session]", "endpoints.prefix", "/auth"),
        ("[session]", "[redis]\nurl = \"http://u:hidden@127.0.0.1\"\n[session]", "redis.url", "redis://"),
        ("[session]", "[admin]\nlisten = \"127.0.0.1:18080\"\n[session]", "admin.listen", "server.listen"),
        ("path = \"/api/\"", "path = \"/a/../b\"", "route[0].path", "dot"),
        ("path = \"/api/\"", "path = \"/api/\"\nhosts = [\"a.test\"]", "route[0].hosts", "public"),
        ("path = \"/api/\"", "path = \"/api/\"\nmethods = [\"GE T\"]", "route[0].methods[0]", "GET"),
        (
            "path = \"/api/\"",
            "path = \"/api/\"\nidentity_headers = { Host = \"sub\" }",
            "route[0].identity_headers.Host",
            "meaning",
        ),
        ("path = \"/api/\"", "path = \"/api/\"\nconnect_timeout = \"0s\"", "route[0].connect_timeout", "nothing"),
        ("path = \"/api/\"", "path = \"/api/\"\nstrip_prefix = \"/ap\"", "route[0].strip_prefix", "segments"),
        ("upstream = \"http://127.0.0.1:3000\"", "", "route[0].upstream", "required"),
        (
            "upstream = \"http://127.0.0.1:3000\"",
            "upstream = \"http://127.0.0.1:3000\"\nstatic_dir = \"/srv\"",
            "route[0].static_dir",
            "keep one",
        ),
        (
            "upstream = \"http://127.0.0.1:3000\"",
            "static_dir = \"/no/such/folder\"",
            "route[0].static_dir",
            "cannot read the folder",
        ),
        ("path = \"/api/\"", "path = \"/api/\"\nfallback = \"index.html\"", "route[0].fallback", "needs static_dir"),
        (
            "upstream = \"http://127.0.0.1:3000\"",
            "static_dir = \"/\"\nfallback = \"../x\"",
            "route[0].fallback",
            "below static_dir",
        ),
        (
            "upstream = \"http://127.0.0.1:3000\"",
            "static_dir = \"/\"\nmethods = [\"GET\", \"POST\"]",
            "route[0].methods[1]",
            "not for files",
        ),
    ] {
        let text = Desk::with(from, to).complaint();
        let start = format!("{key}: ");
        let told = text.lines().any(|line| line.starts_with(&start) && line.contains(word));
        assert!(told, "{to}: {text}");
        assert!(!text.contains("hidden"), "{text}");
    }
}

/// A mistake is told once: what is missing because of it is not told again.
#[test]
fn a_mistake_has_no_echo() {
    for (from, to) in [
        ("keys = [\"KEY\"]", "keys = \"KEY\""),
        ("upstream = \"http://127.0.0.1:3000\"", "upstream = 3000"),
        ("client_id = \"spa\"", "client_id = 7"),
        ("path = \"/api/\"", "path = 7"),
    ] {
        let text = Desk::with(from, to).complaint();
        assert_eq!(text.lines().count(), 1, "{to}: {text}");
    }
}

/// CFG-01: whatever stands at a key, it is refused by its name or makes sense; nothing falls over.
#[test]
fn every_key_survives_every_type() {
    let values =
        ["-7", "99999999999", "1.5", "true", "\"\\u0000?\"", "\"\"", "[]", "[-7]", "{}", "{ a = -7 }", "1979-05-27"];
    let schema = config::schema();
    for (section, content) in schema["properties"].as_object().unwrap() {
        let item = if content["items"].is_object() { &content["items"] } else { content };
        let item = item["anyOf"].as_array().map_or(item, |branches| &branches[0]);
        for (key, content) in item["properties"].as_object().into_iter().flatten() {
            for value in values {
                let header = if section == "route" { "[[route]]".to_owned() } else { format!("[{section}]") };
                let at = if section == "route" { format!("route[0].{key}") } else { format!("{section}.{key}") };
                let desk = Desk::empty().file("odd.toml", &format!("{header}\n{key} = {value}\n"));
                let text = lines(&desk.load().unwrap_err());
                let wrong = content["type"].as_str().is_some_and(|kind| kind != "object") && value.starts_with('{');
                assert!(!wrong || text.contains(&format!("{at}: must be ")), "{at} = {value}: {text}");
            }
        }
    }
}

/// ROUTE-06
#[test]
fn routes_that_could_both_win_are_refused() {
    let two = |one: &str, other: &str| {
        let route = |more: &str| {
            format!("[[route]]\npath = \"/x\"\nupstream = \"http://127.0.0.1:1\"\naccess = \"public\"\n{more}\n")
        };
        Desk::empty().file("base.toml", &format!("{GOOD}{}{}", route(one), route(other)))
    };
    for (one, other) in [
        ("", ""),
        ("methods = [\"GET\", \"POST\"]", "methods = [\"POST\"]"),
        ("hosts = [\"a.test\"]", "hosts = [\"A.test\"]"),
        ("hosts = [\"a.test\"]", ""),
    ] {
        assert!(
            two(one, other).complaint().contains("route[3].path: \"/x\" is also taken by route[2]"),
            "{one} {other}"
        );
    }
    for (one, other) in [
        ("methods = [\"GET\"]", "methods = [\"POST\"]"),
        ("hosts = [\"a.test\"]", "hosts = [\"b.test\"]"),
        ("hosts = [\"a.test\"]\nmethods = [\"GET\"]", "hosts = [\"a.test\"]\nmethods = [\"PUT\"]"),
    ] {
        two(one, other).config();
    }
}

/// CFG-01
#[test]
fn broken_files_are_named_with_their_line_and_not_quoted() {
    for text in ["[server\n", "\u{0}\u{1}", "key: value\n", "{}", "\u{feff}[server", "[a]\nx = 1\nx = 2\n"] {
        let complaint = Desk::empty().file("broken.toml", text).complaint();
        assert!(complaint.contains("broken.toml is not TOML: line "), "{text:?}: {complaint}");
    }
    let complaint = Desk::empty().file("broken.toml", &format!("\nclient_secret = \"{SECRET}\n")).complaint();
    assert!(complaint.contains("line 2") && !complaint.contains(SECRET), "{complaint}");

    let absent = Desk::empty();
    let problems = config::load_in(&[absent.path("absent.toml")], &Surroundings::default()).unwrap_err();
    assert!(lines(&problems).contains("absent.toml: No such file"), "{}", lines(&problems));

    let latin = Desk::empty();
    fs::write(latin.path("latin.toml"), b"# caf\xe9\n").unwrap();
    let problems = config::load_in(&[latin.path("latin.toml")], &Surroundings::default()).unwrap_err();
    assert!(lines(&problems).contains("latin.toml is not UTF-8"));
}

/// CFG-07: a certificate that nobody will trust is said aloud before a browser says it.
#[test]
fn a_certificate_that_has_expired_is_said_aloud() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tls");
    let said = |cert: &str| {
        let tls = format!("[server.tls]\ncert_file = \"{folder}/{cert}\"\nkey_file = \"{folder}/localhost.key\"\n");
        warnings(&Desk::with("[provider]", &format!("{tls}[provider]")).config())
    };
    let expired =
        |said: &str| said.lines().any(|line| line.starts_with("server.tls.cert_file: ") && line.contains("expired"));
    assert!(expired(&said("ended.pem")), "{}", said("ended.pem"));
    assert!(!expired(&said("localhost.pem")), "{}", said("localhost.pem"));
}

#[test]
fn a_file_that_begins_with_a_byte_order_mark_is_read() {
    Desk::empty().file("base.toml", &format!("\u{feff}{GOOD}")).config();
}

/// BFF-14, RFC9700-14, CFG-03, ASVS-12.3.3
#[test]
fn weakening_is_said_aloud() {
    for (from, to, key) in [
        ("[session]", "[session]\nsame_site = \"lax\"", "session.same_site"),
        ("[session]", "[session]\nsame_site = \"none\"\npartitioned = true", "session.same_site"),
        ("http://127.0.0.1:3000", "http://api.example.test:3000", "route[0].upstream"),
        ("path = \"/api/\"", "path = \"/api/\"\ncsrf = false", "route[0].csrf"),
        ("[session]", "[refresh]\nreuse = \"family\"\n[session]", "refresh.reuse"),
        ("listen =", "trusted_proxies = [\"0.0.0.0/0\"]\nlisten =", "server.trusted_proxies[0]"),
    ] {
        let said = warnings(&Desk::with(from, to).config());
        assert!(said.lines().any(|line| line.starts_with(&format!("{key}: "))), "{to}: {said:?}");
    }
    let alone = Desk::with("[session]", "[refresh]\nreuse = \"family\"\n[session]")
        .env("SIDEGATE_SERVER__SINGLE_REPLICA", "true");
    assert_eq!(warnings(&alone.config()), "");
    // Nobody can be harmed where replicas know of each other, or the provider forgives.
    for harmless in ["leeway = \"30s\"", "rotation = \"none\"", "[redis]\nurl = \"redis://127.0.0.1\""] {
        let desk = Desk::with("[session]", &format!("[refresh]\nreuse = \"family\"\n{harmless}\n[session]"));
        assert_eq!(warnings(&desk.config()), "", "{harmless}");
    }
}

/// CFG-08: plain http is for loopback only, and no key switches verification off.
#[test]
fn cfg_08_nothing_switches_tls_off() {
    for (from, to, told) in [
        ("https://login.example.test", "http://login.example.test", "provider.issuer: must begin with https://"),
        ("https://app.example.test", "http://app.example.test", "server.public_url: must begin with https://"),
        ("issuer =", "tls_verify = false\nissuer =", "provider.tls_verify: unknown key"),
        ("issuer =", "insecure_skip_verify = true\nissuer =", "provider.insecure_skip_verify: unknown key"),
        ("listen =", "insecure = true\nlisten =", "server.insecure: unknown key"),
        ("access =", "upstream_verify = false\naccess =", "route[1].upstream_verify: unknown key"),
    ] {
        let text = Desk::with(from, to).complaint();
        assert!(text.contains(told), "{to}: {text}");
    }
}

#[test]
fn a_token_in_the_query_is_placed_by_whole_sentences() {
    let placed = |text: &str| Desk::with("[session]", &format!("[provider.dialect.upstream]\n{text}\n[session]"));
    placed("placement = \"query\"\nparam = \"token\"\nextra = { openid = \"{openid}\" }").config();
    for (text, told) in [
        ("param = \"token\"", "provider.dialect.upstream.param: is for placement = \"query\""),
        ("placement = \"query\"\nparam = \"a b\"", "provider.dialect.upstream.param: must be the name of a parameter"),
        ("placement = \"query\"\n[verify]\nlisten = \"127.0.0.1:9181\"", "cannot be had together with [verify]"),
    ] {
        let text_ = placed(text).complaint();
        assert!(text_.contains(told), "{text}: {text_}");
    }
}

#[test]
fn a_callback_of_its_own_needs_a_name() {
    let with = |callback: &str| Desk::with("[provider]", &format!("[provider]\ncallback = \"own\"\n{callback}"));
    for (callback, told) in [
        ("", "needs a name"),
        ("name = \"a b\"", "needs a name of letters"),
        ("name = \"..\"", "needs a name of letters"),
    ] {
        let text = with(callback).complaint();
        assert!(text.contains("provider.callback: ") && text.contains(told), "{callback}: {text}");
    }
    let config = with("name = \"home\"").config();
    assert!(config.oidc.redirect_uri.ends_with("/auth/callback/home"));
}

#[test]
fn a_required_scope_must_be_asked_for() {
    let text = Desk::with("issuer =", "required_scopes = [\"openid\", \"api\"]\nissuer =").complaint();
    assert!(text.contains("provider.required_scopes: \"api\" is not among provider.scopes"), "{text}");
    assert!(!text.contains("\"openid\" is not among"), "{text}");
}

#[test]
fn a_token_of_its_own_and_a_step_up_that_cannot_be_had_are_refused() {
    for (line, told) in [
        ("token = { exchange = true }", "route[0].token: says nothing of the token"),
        (
            "token = { audience = \"x\", exchange = true, client_credentials = true }",
            "route[0].token.client_credentials: is set beside exchange",
        ),
        ("token = { resource = \"x\", exchange = true }", "route[0].token.resource: must be an absolute URI"),
        (
            "token = { scopes = [\"admin\"], exchange = true }",
            "route[0].token.scopes: \"admin\" is not among provider.scopes",
        ),
        ("max_auth_age = \"0s\"", "route[0].max_auth_age: must be at least \"1s\""),
        ("acr_values = []", "route[0].acr_values: is empty"),
    ] {
        let text = Desk::with("path = \"/api/\"", &format!("path = \"/api/\"\n{line}")).complaint();
        assert!(text.contains(told), "{line}: {text}");
    }
    let good = "path = \"/api/\"\nacr_values = \"gold\"\nmax_auth_age = \"5m\"\ntoken = { audience = \"x\", scopes = [\"a\"], exchange = true }";
    Desk::with("path = \"/api/\"", good).config();
    // By refresh: the refresh token has to be there, and the session's own token to survive it.
    let own = "path = \"/api/\"\ntoken = { audience = \"x\" }";
    Desk::with("path = \"/api/\"", own).config();
    for (more, told) in [
        ("[session]\nlayout = \"split\"", "route[0].token: needs the refresh token"),
        ("[refresh]\nkills_access_token = true", "route[0].token: cannot be had by refresh"),
    ] {
        let text = Desk::with("path = \"/api/\"", own).file("more.toml", more).complaint();
        assert!(text.contains(told), "{more}: {text}");
    }
}

/// A page's script must not be able to read a token: the listener for other proxies is never a public one.
#[test]
fn the_listener_for_other_proxies_is_its_own() {
    let verify = |listen: &str| Desk::with("[session]", &format!("[verify]\nlisten = \"{listen}\"\n[session]"));
    let config = verify("127.0.0.1:9181").config();
    assert_eq!((config.verify.is_some(), warnings(&config).as_str()), (true, ""));
    assert!(warnings(&verify("0.0.0.0:9181").config()).starts_with("verify.listen: answers carry access tokens"));
    let public = config.server.listen[0].to_string();
    for taken in [public.as_str(), "127.0.0.1:9180"] {
        assert!(verify(taken).complaint().contains("verify.listen: "), "{taken}");
    }
    assert!(verify("nowhere").complaint().contains("verify.listen: "));
    assert_eq!(verify("off").config().verify, None);
}

/// DOS-16
#[test]
fn a_rate_that_nothing_fits_is_refused() {
    for (rate, key) in [
        ("{ requests = 0 }", "route[0].rate_limit.requests: must be at least 1"),
        ("{ burst = 0 }", "route[0].rate_limit.burst: must be at least 1"),
        ("{ per = \"0s\" }", "route[0].rate_limit.per: must be longer than nothing"),
    ] {
        let to = format!("path = \"/api/\"\nrate_limit = {rate}");
        let text = Desk::with("path = \"/api/\"", &to).complaint();
        assert!(text.contains(key), "{rate}: {text}");
    }
    Desk::with("path = \"/api/\"", "path = \"/api/\"\nrate_limit = { requests = 5, per = \"1s\" }").config();
}

/// A preset fills in what nobody set; what it cannot is asked for by its key.
#[test]
fn presets_fill_in_and_give_way() {
    let with = |keys: &str| Desk::with("client_id = \"spa\"", &format!("client_id = \"spa\"\n{keys}"));
    let auth0 = with("preset = \"auth0\"").config();
    assert_eq!(auth0.oidc.client_auth.name(), "client_secret_post");
    assert!(auth0.effective().contains("reuse = \"family\""), "{}", auth0.effective());
    assert!(warnings(&auth0).contains("refresh.reuse: ") && warnings(&auth0).contains("(preset auth0)"));
    let own = with("preset = \"auth0\"\nclient_auth = \"client_secret_basic\"").config();
    assert_eq!(own.oidc.client_auth.name(), "client_secret_basic");

    let text = with("preset = \"pingone\"\nregion = \"eu\"\nenvironment_id = \"a/b\"").complaint();
    assert!(text.contains("provider.environment_id: must be a plain name"), "{text}");
    let text = with("preset = \"cognito\"").complaint();
    assert!(text.contains("provider.domain: is required with preset \"cognito\""), "{text}");
    let text = with("preset = \"smartcar-v3\"").complaint();
    assert!(text.contains("provider.login: has login = false"), "{text}");

    let zitadel = with("preset = \"zitadel\"\nproject_id = \"7\"\nscopes = [\"openid\"]").config();
    assert_eq!(zitadel.oidc.scopes, ["openid", "urn:zitadel:iam:org:project:id:7:aud"]);
    let google = with("preset = \"google\"\nauthorize_params = { prompt = \"\" }").config();
    assert_eq!(google.oidc.authorize_params, [("access_type".to_owned(), "offline".to_owned())]);
}

/// A scope and an endpoint can be said in two ways; the later layer counts, whichever way it takes.
#[test]
fn a_presets_layer_wins_over_the_one_below() {
    let with = |preset: &str, more: &str| {
        let said = format!("preset = \"{preset}\"\n# issuer =");
        Desk::with("issuer =", &said).file("more.toml", more).config().oidc
    };
    let wechat = with("wechat", "");
    assert_eq!(wechat.scopes, ["snsapi_login"], "not those of its base");
    assert_eq!(wechat.endpoints.token.unwrap().host_str(), Some("api.weixin.qq.com"));
    let own = "[presets.github.authorize]\nurl = \"https://ghe.example/a\"\nscope = \"repo user\"\n\
               [presets.github.token]\nurl = \"https://ghe.example/t\"\n";
    let github = with("github", own);
    assert_eq!(github.endpoints.token.as_ref().unwrap().as_str(), "https://ghe.example/t");
    assert_eq!(github.endpoints.authorization.as_ref().unwrap().as_str(), "https://ghe.example/a");
    assert_eq!(github.scopes, ["repo", "user"]);
    let app = with("acme", &format!("{own}[presets.acme]\nbase = \"github-app\""));
    assert_eq!(app.endpoints.token.as_ref().unwrap().as_str(), "https://ghe.example/t");
}

/// An OpenID provider has its document whatever is asked of it; another server may have either.
#[test]
fn the_preset_says_which_document_there_is() {
    let with = |preset: &str, scopes: &str| {
        let said = format!("preset = \"{preset}\"\nscopes = [\"{scopes}\"]\nissuer =");
        let settings = Desk::with("issuer =", &said).config().oidc;
        let path = |url: Option<url::Url>| url.map(|url| url.path().rsplit('/').next().unwrap().to_owned());
        (path(settings.discovery_url).unwrap(), path(settings.other_discovery_url))
    };
    let openid = "openid-configuration".to_owned();
    for (preset, scope) in [("auth0", "api"), ("salesforce", "api"), ("oidc", "openid")] {
        assert_eq!(with(preset, scope), (openid.clone(), None), "{preset}");
    }
    assert_eq!(with("oauth2", "api"), ("oauth-authorization-server".to_owned(), Some(openid)));
}

/// Unknown keys are errors in a preset too, whether anybody uses it or not.
#[test]
fn presets_take_known_keys_only() {
    let with = |keys: &str| Desk::good().file("more.toml", keys).complaint();
    for (keys, complaint) in [
        ("[presets.acme]\ntokn = 1", "presets.acme.tokn: unknown key; did you mean token?"),
        ("[presets.acme.token]\nmetod = \"GET\"", "presets.acme.token.metod: unknown key; did you mean method?"),
        (
            "[presets.acme]\nresponse = { eror = \"/e\" }",
            "presets.acme.response.eror: unknown key; did you mean error?",
        ),
        (
            "[presets.acme.refresh]\nroation = \"none\"",
            "presets.acme.refresh.roation: unknown key; did you mean rotation?",
        ),
        ("[presets.acme]\nbase = 7", "presets.acme.base: must be a string in quotes, not 7"),
        ("[provider.dialect.tokn]", "provider.dialect.tokn: unknown key; did you mean token?"),
    ] {
        let text = with(keys);
        assert!(text.contains(complaint), "{keys}: {text}");
        assert!(text.contains("more.toml line ") || keys.starts_with("[provider"), "{text}");
        assert_eq!(text.matches("unknown key").count() + text.matches("must be").count(), 1, "told once: {text}");
    }
    Desk::good()
        .file(
            "more.toml",
            "[presets.acme]\nbase = \"salesforce\"\nmore_scopes = [\"p:{project_id}\"]\n\
             [presets.acme.words.host]\nof = \"environment\"\nothers = true\nmap = { a = \"b\" }\n\
             [presets.acme.response]\nissued_at = { pointer = \"/issued_at\", unit = \"ms-string\" }\n\
             [presets.acme.refresh]\nscope_name = \"refresh_token\"\non_upstream_401 = true\nurl = \"https://h/r\"\n\
             [presets.acme.authorize]\nurl = \"https://{host}/a\"\nscope = \"a b\"",
        )
        .config();
}

/// LOG-09: nor of where traces go.
#[test]
fn a_credential_in_the_collectors_url_is_not_shown() {
    let with = |url: &str| Desk::good().file("more.toml", &format!("[tracing]\notlp_endpoint = \"{url}\""));
    let text = with(&format!("https://user:{SECRET}@otel.example/")).complaint();
    assert!(text.starts_with("tracing.otlp_endpoint: must not contain a user or password"), "{text}");
    let text = with(&format!("ftp://otel.example/?key={SECRET}")).complaint();
    assert!(text.starts_with("tracing.otlp_endpoint: must be an http:// or https:// URL"), "{text}");
    let config = with(&format!("https://otel.example/v1?key={SECRET}")).config();
    let text = config.effective();
    assert!(text.contains("https://otel.example/v1?***") && !text.contains(SECRET), "{text}");
    assert!(config.tracing.unwrap().endpoint.as_str().contains(SECRET), "it is still sent");
}

/// LOG-09: what may not be shown of a provider may not be shown of a preset.
#[test]
fn secrets_of_presets_are_masked() {
    let preset = format!(
        "[presets.acme]\nclient_secret = \"{SECRET}\"\ntoken_params = {{ key = \"{SECRET}\" }}\n\
         authorize_params = {{ hint = \"seen\" }}"
    );
    let text = Desk::good().file("more.toml", &preset).config().effective();
    assert!(text.contains("[presets.acme") && text.contains("hint = \"seen\""), "{text}");
    assert!(!text.contains(SECRET), "{text}");
}

/// A template leads only where the operator says, and only with a user.
#[test]
fn a_templated_upstream_needs_its_hosts() {
    let with = |upstream: &str| Desk::with("upstream = \"http://127.0.0.1:3000\"", upstream);
    let good = with("upstream = \"{account.base_uri}\"\nallow_hosts = [\".example.net\", \"a.example.net:8443\"]");
    assert!(good.config().session.claims.contains(&"account.base_uri".to_owned()));
    for (upstream, complaint) in [
        ("upstream = \"{account.base_uri}\"", "allow_hosts: is required with a template"),
        ("upstream = \"{a}\"\nallow_hosts = [\".net\"]", "allow_hosts[0]: must be a host"),
        ("upstream = \"{a}\"\nallow_hosts = [\"*\"]", "allow_hosts[0]: must be a host"),
        ("upstream = \"{a}\"\nallow_hosts = [\"a.net:0\"]", "allow_hosts[0]: must be a host"),
        ("upstream = \"{a}\"\nallow_hosts = [\"a.net:x\"]", "allow_hosts[0]: must be a host"),
        ("upstream = \"{a}{b}\"\nallow_hosts = [\".example.net\"]", "upstream: must hold one claim in braces"),
    ] {
        let text = with(upstream).complaint();
        assert!(text.contains(complaint), "{upstream}: {text}");
    }
}

/// With a tenant that is none the token says the tenant, and the list says who may come.
#[test]
fn tenants_are_listed_where_the_issuer_leaves_them_open() {
    let entra = |keys: &str| Desk::with("issuer =", &format!("preset = \"entra\"\n{keys}\n# issuer ="));
    let text = entra("").complaint();
    assert!(text.contains("provider.tenant: is required with preset \"entra\""), "{text}");
    let text = entra("tenant = \"organizations\"").complaint();
    assert!(text.contains("provider.allowed_tenants: is required"), "{text}");
    let settings = entra("tenant = \"organizations\"\nallowed_tenants = [\"t-1\"]").config().oidc;
    assert!(settings.discovery_url.as_ref().unwrap().as_str().contains("/organizations/v2.0/"));
    let iss = |tenant: &str| format!("https://login.microsoftonline.com/{tenant}/v2.0");
    assert!(settings.is_issuer(&iss("t-1"), Some("t-1")));
    assert!(!settings.is_issuer(&iss("t-2"), Some("t-2")), "not listed");
    assert!(!settings.is_issuer(&iss("t-1"), Some("t-2")), "iss and tid differ");
    assert!(!settings.is_issuer(&iss("t-1/x"), None) && !settings.is_issuer(&iss("{tenantid}"), None));
}

// ---------------------------------------------------------------------------------------------------------------------
// Layers
// ---------------------------------------------------------------------------------------------------------------------

/// CFG-01
#[test]
fn later_files_and_the_environment_win() {
    let config = Desk::good()
        .file("more.toml", "[session]\ncookie_name = \"second\"\n[limits]\nheader_count = 50\n")
        .env("SIDEGATE_LIMITS__HEADER_COUNT", "30")
        .env("SIDEGATE_SERVER__LISTEN", "[\"127.0.0.1:1\", \"unix:/run/x.sock\"]")
        .config();
    assert_eq!(config.session.cookie_name, "second");
    assert_eq!(config.server.net.header_count, 30);
    assert_eq!(config.server.listen.len(), 2);
    assert_eq!(config.oidc.client_id, "spa");
}

/// CFG-05: an address in brackets is text.
#[test]
fn an_address_of_ipv6_is_no_list() {
    let config = Desk::good().env("SIDEGATE_SERVER__LISTEN", "[::]:8080").config();
    assert_eq!(config.server.listen, [ListenAddress::Tcp("[::]:8080".parse().unwrap())]);
    let text = Desk::good().env("SIDEGATE_SERVER__LISTEN", "[\"127.0.0.1:1\"").complaint();
    assert!(text.starts_with("server.listen: must be ") && text.contains("SIDEGATE_SERVER__LISTEN"), "{text}");
}

#[test]
fn messages_name_the_layer() {
    let text = Desk::good().file("more.toml", "[limits]\nheader_bytes = \"large\"\n").complaint();
    assert!(text.contains("more.toml line 2"), "{text}");
    let text = Desk::good().file("more.toml", "[log]\nLEVEL = \"info\"\nFORMAT = \"json\"\n").complaint();
    assert!(text.contains("log.LEVEL: unknown key; did you mean level?"), "{text}");
    assert!(text.contains("log.FORMAT: unknown key; did you mean format?"), "{text}");
    let text = Desk::good().env("SIDEGATE_SERVER__LISTN", "x").complaint();
    assert!(text.contains("server.listn: unknown key; did you mean listen?"), "{text}");
    assert!(text.contains("environment variable SIDEGATE_SERVER__LISTN"), "{text}");
}

/// CFG-05: a variable is a value, whatever stands in it.
#[test]
fn variables_bring_no_structure_and_are_not_expanded() {
    for value in [
        "x\"\n[server]\nlisten = \"0.0.0.0:1\"",
        "${HOME}",
        "`id`",
        "a\\nb",
        "true",
        "[1, 2]",
        "{ a = 1 }",
        "1e3",
        "\"q\"",
    ] {
        let config = Desk::with("client_secret = ", "# ").env("SIDEGATE_PROVIDER__CLIENT_SECRET", value).config();
        let sidegate::oidc::settings::ClientAuth::Basic(secret) = &config.oidc.client_auth else { panic!("not basic") };
        assert_eq!(secret.expose(), value);
        assert_eq!(config.server.listen, [ListenAddress::Tcp("127.0.0.1:18080".parse().unwrap())]);
    }
    let text = Desk::good().env("SIDEGATE_LIMITS__HEADER_COUNT", "1\nuri_bytes = \"1B\"").complaint();
    assert!(text.starts_with("limits.header_count: must be a number"), "{text}");
}

/// K8S-01
#[test]
fn variables_that_kubernetes_injects_are_ignored() {
    let desk = Desk::good()
        .env("SIDEGATE_SERVICE_HOST", "10.96.0.7")
        .env("SIDEGATE_PORT", "tcp://10.96.0.7:8080")
        .env("SIDEGATE_PORT_8080_TCP_PROTO", "tcp");
    assert_eq!(warnings(&desk.config()), "");
}

#[test]
fn a_file_is_found_by_its_variable() {
    let desk = Desk::good();
    let variables = vec![("SIDEGATE_CONFIG".into(), desk.files[0].clone().into_os_string())];
    assert!(config::load_in(&[], &Surroundings { variables, terminal: false, text: None }).is_ok());
}

#[test]
fn a_secret_and_its_file_are_one_too_many() {
    let desk = Desk::good().secret("other", "other", 0o600);
    let path = desk.path("other").display().to_string();

    let one_layer = Desk::with("client_id", &format!("client_secret_file = \"{path}\"\nclient_id"));
    assert!(one_layer.complaint().contains("provider.client_secret_file: is set beside provider.client_secret"));

    let variable = Desk::good().env("SIDEGATE_PROVIDER__CLIENT_SECRET_FILE", &path);
    assert!(variable.complaint().contains("provider.client_secret_file"));

    let later_file = Desk::good().file("more.toml", &format!("[provider]\nclient_secret_file = \"{path}\"\n")).config();
    let sidegate::oidc::settings::ClientAuth::Basic(secret) = &later_file.oidc.client_auth else { panic!("not basic") };
    assert_eq!(secret.expose(), "other");

    let later_keys = Desk::good().secret("key", &Key::generate().to_base64url(), 0o600);
    let list = format!("[\"{}\"]", later_keys.path("key").display());
    later_keys.env("SIDEGATE_SESSION__KEY_FILES", &list).config();
}

// ---------------------------------------------------------------------------------------------------------------------
// Secret files
// ---------------------------------------------------------------------------------------------------------------------

fn with_secret_file(content: &str, mode: u32) -> Desk {
    let desk = Desk::empty().secret("secret", content, mode);
    let line = format!("client_secret_file = \"{}\"\n#", desk.path("secret").display());
    desk.file("base.toml", &GOOD.replacen("client_secret = ", &line, 1))
}

#[test]
fn one_trailing_newline_of_a_secret_file_is_dropped() {
    for (content, secret) in
        [("abc", "abc"), ("abc\n", "abc"), ("abc\r\n", "abc"), ("abc\n\n", "abc\n"), (" abc ", " abc ")]
    {
        let config = with_secret_file(content, 0o600).config();
        let sidegate::oidc::settings::ClientAuth::Basic(read) = &config.oidc.client_auth else { panic!("not basic") };
        assert_eq!(read.expose(), secret);
    }
}

/// CFG-01, ASVS-13.2.3
#[test]
fn a_blank_or_absent_secret_file_is_refused() {
    for content in ["", "\n", "\n\n", " "] {
        let text = with_secret_file(content, 0o600).complaint();
        assert!(text.contains("provider.client_secret_file: ") && text.contains("/secret is empty"), "{text}");
    }
    let text = Desk::with("client_secret = ", "client_secret_file = \"/nonexistent/secret\"\n#").complaint();
    assert!(text.contains("provider.client_secret_file: cannot read /nonexistent/secret: No such file"), "{text}");
    let text = Desk::with("client_secret = ", "client_secret_file = \"/\"\n#").complaint();
    assert!(text.contains("not a regular file"), "{text}");
}

/// K8S-09, ASVS-13.3.2
#[test]
fn a_secret_file_that_others_may_read_is_said_aloud() {
    assert_eq!(warnings(&with_secret_file("abc", 0o600).config()), "");
    let desk = with_secret_file("abc", 0o644);
    assert!(warnings(&desk.config()).contains(&desk.path("secret").display().to_string()));
}

/// K8S-08
#[test]
fn all_named_files_are_watched() {
    let desk = with_secret_file("abc", 0o600);
    assert_eq!(desk.config().watched_files, [desk.path("base.toml"), desk.path("secret")]);
}

/// CFG-07
#[test]
fn tls_files_are_judged_before_they_are_needed() {
    let with = |cert: &str, key: &str| {
        Desk::with("[provider]", &format!("[server.tls]\ncert_file = \"{cert}\"\nkey_file = \"{key}\"\n[provider]"))
    };
    let text = with("/nonexistent/tls.crt", "/nonexistent/tls.key").complaint();
    assert!(text.contains("server.tls.cert_file: cannot read /nonexistent/tls.crt"), "{text}");
    assert!(text.contains("server.tls.key_file: cannot read /nonexistent/tls.key"), "{text}");
    let desk = Desk::empty().secret("text", "no PEM", 0o600);
    let path = desk.path("text").display().to_string();
    let text = with(&path, &path).complaint();
    assert!(text.contains("holds no PEM certificate") && text.contains("holds no PEM private key"), "{text}");
    let text = Desk::with("[provider]", "[server.tls]\ncert_file = \"/nonexistent/tls.crt\"\n[provider]").complaint();
    assert!(text.contains("server.tls.key_file: is required"), "{text}");
    assert!(text.contains("server.tls.cert_file: cannot read /nonexistent/tls.crt"), "{text}");
}

// ---------------------------------------------------------------------------------------------------------------------
// What is shown
// ---------------------------------------------------------------------------------------------------------------------

/// LOG-09, ASVS-13.3.1
#[test]
fn the_effective_configuration_shows_defaults_and_no_secret() {
    let desk =
        Desk::with("[session]", "[redis]\nurl = \"redis://u:hidden@127.0.0.1\"\npassword = \"hidden\"\n[session]")
            .env("SIDEGATE_PROVIDER__TOKEN_PARAMS", "{ api_key = \"hidden\" }");
    let config = desk.config();
    for text in [config.effective(), format!("{:?}", config.raw), serde_json::to_string(&config.raw).unwrap()] {
        assert!(!text.contains(SECRET) && !text.contains(&desk.key) && !text.contains("hidden"), "{text}");
    }
    let printed = format!("{config:?}");
    assert!(!printed.contains(SECRET) && !printed.contains(&desk.key));
    let shown: toml::Table = config.effective().parse().unwrap();
    assert_eq!(shown["refresh"]["before_expiry"].as_str(), Some("60s"));
    assert_eq!(shown["limits"]["header_bytes"].as_str(), Some("32KiB"));
    assert_eq!(shown["provider"]["client_secret"].as_str(), Some("***"));
    assert_eq!(shown["log"]["format"].as_str(), Some("json"));
    assert_eq!(shown["route"][0]["path"].as_str(), Some("/api/"));
}

#[test]
fn check_prints_a_line_per_finding_and_a_verdict() {
    let report = config::check::report(&Desk::good().load());
    assert_eq!(report, "The configuration is fine.\n");
    let report = config::check::report(&Desk::with("[session]", "[session]\nsame_site = \"sometimes\"").load());
    assert!(report.starts_with("error: session.same_site: "), "{report}");
    assert!(report.ends_with("The configuration is refused: 1 problem.\n"), "{report}");
}

// ---------------------------------------------------------------------------------------------------------------------
// What the repository ships
// ---------------------------------------------------------------------------------------------------------------------

fn examples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    assert!(files.len() >= 3, "{files:?}");
    files
}

#[test]
fn the_examples_lack_nothing_but_files_of_their_container() {
    for path in examples() {
        let outcome = config::load_in(std::slice::from_ref(&path), &Surroundings::default());
        for problem in outcome.err().into_iter().flatten() {
            assert!(problem.text.contains("No such file"), "{}: {problem}", path.display());
        }
    }
}

/// Every key of the schema stands in the reference file and in the documentation.
#[test]
fn the_reference_and_the_documentation_name_every_key() {
    fn keys(schema: &serde_json::Value, found: &mut Vec<String>) {
        for (key, value) in schema["properties"].as_object().into_iter().flatten() {
            found.push(key.clone());
            keys(value, found);
        }
        keys_of_parts(schema, found);
    }
    fn keys_of_parts(schema: &serde_json::Value, found: &mut Vec<String>) {
        if schema["items"].is_object() {
            keys(&schema["items"], found);
        }
        for branch in schema["anyOf"].as_array().into_iter().flatten() {
            keys(branch, found);
        }
    }
    let mut all = Vec::new();
    keys(config::schema(), &mut all);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (file, more) in [("config/sidegate.toml", None), ("docs/configuration.md", Some("docs/providers.md"))] {
        let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();
        let text = read(file) + &more.map(read).unwrap_or_default();
        let words: std::collections::BTreeSet<_> =
            text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
        let absent: Vec<_> = all.iter().filter(|key| !words.contains(key.as_str())).collect();
        assert!(absent.is_empty(), "{file} does not name {absent:?}");
    }
}

/// ASVS-13.2.6: what the reference shows as default is the default.
#[test]
fn the_reference_shows_true_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/sidegate.toml");
    let shown: toml::Table = fs::read_to_string(path).unwrap().parse().unwrap();
    let defaults = serde_json::to_value(config::raw::RawConfig::default()).unwrap();
    for section in [
        "server",
        "limits",
        "admin",
        "session",
        "refresh",
        "csrf",
        "logout",
        "claims",
        "endpoints",
        "verify",
        "log",
        "tracing",
    ] {
        for (key, value) in shown[section].as_table().unwrap() {
            // Said beside them: the default of these is another, or none.
            if matches!(key.as_str(), "listen" | "public_url" | "key_files" | "format") {
                continue;
            }
            assert_eq!(serde_json::to_value(value).unwrap(), defaults[section][key], "{section}.{key}");
        }
    }
}
