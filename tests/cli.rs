//! The command line of the real program.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use support::client::Browser;
use support::gateway::{config, set};
use support::provider::{Endpoint, ProviderDouble};
use support::text::unb64u;
use support::upstream::Upstream;
use support::wait::until;
use toml::Table;

fn sidegate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidegate"));
    command.env_clear().stdin(Stdio::null());
    if let Some(profile) = std::env::var_os("LLVM_PROFILE_FILE") {
        command.env("LLVM_PROFILE_FILE", profile);
    }
    command
}

fn run(args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    sidegate().args(args).current_dir(dir.path()).output().unwrap()
}

/// A subcommand with `-c` and this configuration. Off the runtime's thread, which serves the doubles.
async fn with(table: &Table, args: &[&str]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sidegate.toml");
    std::fs::write(&file, table.to_string()).unwrap();
    let mut command = sidegate();
    command.arg(args[0]).arg("-c").arg(&file).args(&args[1..]).current_dir(dir.path());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    (output.status.code(), text)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn keygen_prints_32_random_bytes() {
    let (one, two) = (text(&run(&["keygen"])), text(&run(&["keygen"])));
    assert_ne!(one, two);
    for key in [one, two] {
        assert_eq!(unb64u(key.strip_suffix('\n').unwrap()).unwrap().len(), 32, "{key}");
    }
}

/// A key that is not there must not look like one.
#[test]
fn what_cannot_be_written_is_told() {
    for args in [&["keygen"][..], &["schema"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = sidegate().args(args).stdout(full).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(74), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write"), "{args:?}");
    }
}

#[test]
fn version_help_and_wrong_usage() {
    let version = run(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert_eq!(text(&version), format!("sidegate {}\n", env!("CARGO_PKG_VERSION")));
    let help = run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for command in ["run", "check", "explain", "schema", "keygen", "demo"] {
        assert!(text(&help).contains(command), "{command}");
        assert_eq!(run(&[command, "--help"]).status.code(), Some(0), "{command}");
    }
    for wrong in [&[][..], &["frobnicate"], &["run", "--frobnicate"], &["explain", "GET"], &["keygen", "x"]] {
        let output = run(wrong);
        assert_eq!(output.status.code(), Some(64), "{wrong:?}");
        assert!(!output.stderr.is_empty());
        assert!(output.stdout.is_empty(), "{wrong:?}");
    }
}

#[test]
fn the_schema_is_one() {
    let output = run(&["schema"]);
    assert_eq!(output.status.code(), Some(0));
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(schema["additionalProperties"], false);
    for section in ["server", "provider", "session", "refresh", "route", "log", "admin", "limits", "csrf", "logout"] {
        assert!(schema["properties"][section].is_object(), "{section}");
    }
}

/// A reader that has gone is no reason to fall over.
#[test]
fn a_closed_pipe_is_no_panic() {
    for args in [&["keygen"][..], &["schema"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = sidegate().args(args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code().is_some_and(|code| code != 101), "{args:?}: {:?} {complaint}", output.status);
        assert!(!complaint.contains("panicked"), "{args:?}: {complaint}");
    }
}

#[test]
fn without_a_file_the_places_are_named() {
    let output = run(&["check"]);
    assert_eq!(output.status.code(), Some(78));
    let said = text(&output) + &String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("sidegate.toml"), "{said}");
}

/// CFG-01, CFG-02
#[tokio::test]
async fn check_judges_the_configuration() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let good = config(&provider, &upstream);
    let (code, said) = with(&good, &["check"]).await;
    assert_eq!((code, said.as_str()), (Some(0), "The configuration is fine.\n"));

    let mut lax = good.clone();
    set(&mut lax, "session.same_site", "\"lax\"");
    let (code, said) = with(&lax, &["check"]).await;
    assert_eq!(code, Some(0));
    assert!(said.contains("warning: ") && said.contains("session.same_site"), "{said}");

    let mut bad = good.clone();
    set(&mut bad, "provider.isuer", "\"x\"");
    set(&mut bad, "session.keys", "[\"AAAA\"]");
    set(&mut bad, "limits.keepalive", "\"a while\"");
    let (code, said) = with(&bad, &["check"]).await;
    assert_eq!(code, Some(78));
    for word in ["provider.isuer", "issuer", "session.keys", "limits.keepalive", "3 problems"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!said.contains("AAAA") && !said.contains(&provider.client_secret()), "{said}");
    assert!(provider.calls().is_empty(), "offline");
}

/// CFG-02, KEY-01: `--online` has one verdict over configuration and provider.
#[tokio::test]
async fn check_online_asks_the_provider() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let table = config(&provider, &upstream);
    let (code, said) = with(&table, &["check", "--online"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("fine"), "{said}");
    assert!(!provider.calls_to(Endpoint::Discovery).is_empty() && !provider.calls_to(Endpoint::Jwks).is_empty());
    assert!(provider.calls_to(Endpoint::Token).is_empty());

    let mut more = table.clone();
    set(&mut more, "provider.scopes", "[\"openid\", \"gold\"]");
    provider.set(|s| drop(s.document.insert("scopes_supported".to_owned(), serde_json::json!(["openid"]))));
    let (code, said) = with(&more, &["check", "--online"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("warning: ") && said.contains("gold"), "{said}");

    provider.set(|s| s.document_issuer = Some("http://127.0.0.1:1/other".to_owned()));
    let (code, said) = with(&table, &["check", "--online"]).await;
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("provider.issuer") && !said.contains("fine"), "{said}");

    provider.go_down().await;
    let (code, said) = with(&table, &["check", "--online"]).await;
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("provider.issuer") && !said.contains("fine"), "{said}");
}

/// `explain` says what would happen.
#[tokio::test]
async fn explain_tells_route_and_decision() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let mut table = config(&provider, &upstream);
    let routes = table["route"].as_array_mut().unwrap();
    routes[0].as_table_mut().unwrap().insert("methods".to_owned(), vec!["GET".to_owned(), "POST".to_owned()].into());
    let sensitive = "acr_values = \"gold\"\nmax_auth_age = \"5m\"\ntoken = { audience = \"orders\", exchange = true }";
    routes[1].as_table_mut().unwrap().extend(sensitive.parse::<Table>().unwrap());
    for (args, words) in [
        (
            &["explain", "GET", "/opt/x"][..],
            &["step_up_required", "acr_values=gold&max_age=300", "audience orders"][..],
        ),
        (&["explain", "GET", "/opt/x", "--navigate"], &["302", "acr_values=gold&max_age=300"]),
        (&["explain", "GET", "/api/x"][..], &["/api/", "session", "401", "access"][..]),
        (&["explain", "GET", "/api/x?a=b", "--navigate"], &["/api/", "302"]),
        (&["explain", "GET", "/opt/x"], &["/opt/", "optional"]),
        (&["explain", "GET", "/index.html"], &["public", "none"]),
        (&["explain", "DELETE", "/api/x"], &["405", "method_not_allowed", "GET"]),
        (&["explain", "GET", "/a%2fb"], &["400", "bad_path"]),
        (&["explain", "POST", "/auth/refresh"], &["answered by sidegate itself", "POST"]),
        (&["explain", "DELETE", "/auth/session"], &["405 method_not_allowed", "GET, HEAD"]),
        // Switched off.
        (&["explain", "POST", "/auth/logout/backchannel"], &["404", "no_route", "[logout]"]),
        (&["explain", "GET", "/auth/logout/frontchannel"], &["404", "no_route", "[logout]"]),
    ] {
        let (code, said) = with(&table, args).await;
        assert_eq!(code, Some(0), "{said}");
        for word in words {
            assert!(said.contains(word), "{args:?}: {word}\n{said}");
        }
    }
    table["route"].as_array_mut().unwrap().truncate(2);
    let (code, said) = with(&table, &["explain", "GET", "/elsewhere"]).await;
    assert_eq!(code, Some(0));
    assert!(said.contains("404") && said.contains("no_route"), "{said}");
    let (code, _) = with(&table, &["explain", "G\u{1}ET", "/"]).await;
    assert_eq!(code, Some(64));
}

/// Ends the child when the test is over.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The demo starts, says where it is and who its users are, and stops by a signal.
#[cfg(feature = "demo")]
#[tokio::test]
async fn the_demo_runs() {
    // Any that is free: the message names the one that was found.
    let mut child =
        Child(sidegate().args(["demo", "--port", "0"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let out = child.0.stdout.take().unwrap();
    let said = tokio::task::spawn_blocking(move || {
        let mut said = String::new();
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            said.push_str(&line);
            said.push('\n');
            if line.contains("Ctrl-C") {
                break;
            }
        }
        said
    })
    .await
    .unwrap();
    let url = said.split_whitespace().find(|word| word.starts_with("http://localhost:")).unwrap();
    assert!(!url.ends_with(":0") && said.contains('@'), "{said}");
    let browser = Browser::new(url);
    until("the page is there", async || browser.navigate("/").await.status == 200).await;
    assert_eq!(browser.session().await["authenticated"], false);
    assert_eq!(browser.fetch("/api/x").await.status, 401);
    let id = i32::try_from(child.0.id()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    let status = tokio::task::spawn_blocking(move || child.0.wait().unwrap()).await.unwrap();
    assert_eq!(status.code(), Some(0));
}

#[cfg(feature = "demo")]
#[test]
fn the_demo_names_a_taken_port() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut child =
        Child(sidegate().args(["demo", "--port", &port]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    let mut said = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains(&port), "{said}");
    assert_ne!(child.0.wait().unwrap().code(), Some(0));
}
