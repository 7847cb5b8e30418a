//! Arguments, configuration, telemetry, [`sidegate::app`]. The only place that ends the process.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use sidegate::config::cli::{Cli, Command};
use sidegate::config::{self, Config, Problem, Surroundings};
use sidegate::crypto::keyring::Key;
use sidegate::{app, gateway, oidc, telemetry};

/// Worth a tenth of a request's cost over the system's allocator (`docs/performance.md`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `EX_OSERR` of sysexits.h: an address that cannot be bound, or another failure at the start.
const CANNOT_START: u8 = 71;
/// `EX_IOERR`.
const CANNOT_WRITE: u8 = 74;
/// `EX_CONFIG`.
const REFUSED: u8 = 78;

/// A line on stdout. `println!` panics when the reader has gone; here the exit code still tells.
macro_rules! say {
    ($($text:tt)*) => { drop(writeln!(std::io::stdout(), $($text)*)) };
}

/// The same on stderr.
macro_rules! complain {
    ($($text:tt)*) => { drop(writeln!(std::io::stderr(), $($text)*)) };
}

fn main() -> ExitCode {
    match Cli::parse_args() {
        Ok(command) => obey(command),
        Err(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
    }
}

fn obey(command: Command) -> ExitCode {
    match command {
        Command::Run(files) => run(files.files),
        Command::Check { config, online } => check(&config.files, online),
        Command::Explain { config, method, path, navigate } => explain(&config.files, &method, &path, navigate),
        Command::Schema => print(&format!("{:#}", config::schema())),
        Command::Keygen => print(&Key::generate().to_base64url()),
        #[cfg(feature = "demo")]
        Command::Demo { port } => demo(port),
    }
}

/// What somebody else goes on with: a file with half of it, or nothing, must not look like success.
fn print(text: &str) -> ExitCode {
    let mut out = std::io::stdout();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain!("sidegate: cannot write: {error}");
            ExitCode::from(CANNOT_WRITE)
        }
    }
}

fn run(files: Vec<std::path::PathBuf>) -> ExitCode {
    match config::load(&files) {
        Ok(config) => serve(config, Arc::new(move || config::read_in(&files, &Surroundings::of_process()))),
        Err(problems) => refuse(&problems),
    }
}

fn serve(config: Config, reload: app::Reload) -> ExitCode {
    telemetry::init(&app::log_settings(&config));
    if let Err(error) = sidegate::shutdown::harden_process() {
        tracing::warn!(target: "sidegate", event = "not_hardened", problem = %error);
    }
    for warning in &config.warnings {
        tracing::warn!(target: "sidegate", event = "config_warning", problem = %warning);
    }
    let outcome = app::run(config, reload);
    if let Err(error) = &outcome {
        tracing::error!(target: "sidegate", event = "start_failed", problem = %error);
        complain!("sidegate: {error}");
    }
    telemetry::flush();
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(CANNOT_START) }
}

fn refuse(problems: &[Problem]) -> ExitCode {
    for problem in problems {
        complain!("error: {problem}");
    }
    complain!("The configuration is refused; `sidegate check` judges it without starting.");
    ExitCode::from(REFUSED)
}

fn check(files: &[std::path::PathBuf], online: bool) -> ExitCode {
    if !online {
        let fine = config::check::run(files, &mut std::io::stdout()).is_ok();
        return if fine { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) };
    }
    // One verdict, over both: a file that is fine is no good with a provider that is not.
    let Ok(config) = config::check::run_without_verdict(files, &mut std::io::stdout()) else {
        return ExitCode::from(REFUSED);
    };
    let findings = tokio::runtime::Builder::new_current_thread().enable_all().build().map(|runtime| {
        runtime.block_on(async {
            let mut all = Vec::new();
            let services = config.services.iter().map(|(_, settings)| settings);
            for settings in std::iter::once(&config.oidc).chain(&config.more_oidc).chain(services) {
                match oidc::Provider::new(settings.clone(), sidegate::clock::Clock::System, Box::new(|_, _| {})) {
                    Ok(provider) => {
                        let findings = provider.judge_online().await;
                        if !findings.iter().any(|finding| finding.fatal) {
                            provider.advice().iter().for_each(|advice| say!("note: {advice}"));
                        }
                        all.extend(findings);
                    }
                    Err(error) => {
                        all.push(oidc::provider::Finding { fatal: true, key: "provider", text: error.to_string() });
                    }
                }
            }
            all
        })
    });
    let findings = match findings {
        Ok(findings) => findings,
        Err(error) => {
            complain!("sidegate: {error}");
            return ExitCode::from(CANNOT_START);
        }
    };
    for finding in &findings {
        say!("{}: {}: {}", if finding.fatal { "error" } else { "warning" }, finding.key, finding.text);
    }
    let fatal = findings.iter().filter(|finding| finding.fatal).count();
    if fatal > 0 {
        say!("The provider cannot be used as configured.");
        return ExitCode::from(REFUSED);
    }
    match config.warnings.len() + findings.len() {
        0 => say!("The configuration is fine, and the provider offers all that it asks for."),
        1 => say!("The configuration works with this provider, with 1 warning."),
        count => say!("The configuration works with this provider, with {count} warnings."),
    }
    ExitCode::SUCCESS
}

fn explain(files: &[std::path::PathBuf], method: &str, path: &str, navigate: bool) -> ExitCode {
    let config = match config::load(files) {
        Ok(config) => config,
        Err(problems) => return refuse(&problems),
    };
    let Ok(method) = http::Method::from_bytes(method.as_bytes()) else {
        complain!("error: {method} is not an HTTP method");
        return ExitCode::from(64);
    };
    let embedded = config.session.same_site == sidegate::session::settings::SameSite::None;
    let text = gateway::explain::explain(&config.gateway, embedded, &method, path, navigate);
    say!("{}", text.trim_end());
    ExitCode::SUCCESS
}

#[cfg(feature = "demo")]
fn demo(port: u16) -> ExitCode {
    // Before anything is announced: the message names the port, for 0 the one that was found.
    let free = std::net::TcpListener::bind(("127.0.0.1", port)).and_then(|listener| listener.local_addr());
    let port = match free {
        Ok(address) => address.port(),
        Err(error) => {
            complain!("sidegate demo: port {port} cannot be had: {error}; choose another one with --port");
            return ExitCode::from(CANNOT_START);
        }
    };
    let demo = match sidegate::demo::start(port) {
        Ok(demo) => demo,
        Err(error) => {
            complain!("sidegate demo: {error}");
            return ExitCode::from(CANNOT_START);
        }
    };
    let config = match config::load_in(&[], &demo.config) {
        Ok(config) => config,
        Err(problems) => return refuse(&problems),
    };
    say!("{}", demo.banner);
    let surroundings = demo.config;
    serve(config, Arc::new(move || config::read_in(&[], &surroundings)))
}
