//! The command line.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

/// Exit code of wrong usage (`EX_USAGE` of sysexits.h).
pub const WRONG_USAGE: i32 = 64;

/// A reverse-proxy sidecar that gives a browser single-page app the backend-for-frontend pattern.
#[derive(Debug, Parser)]
#[command(name = "sidegate", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Serve
    #[command(after_help = "Exit code: 0 after a graceful stop, 78 configuration refused, 71 cannot start.")]
    Run(ConfigArgs),
    /// Judge the configuration and print every problem
    #[command(after_help = "Exit code: 0 when it is fine (warnings allowed), 78 otherwise.")]
    Check {
        /// Files.
        #[command(flatten)]
        config: ConfigArgs,
        /// Also ask the provider what it supports
        #[arg(long)]
        online: bool,
    },
    /// Tell which route takes a request, and what happens to it
    Explain {
        /// Files.
        #[command(flatten)]
        config: ConfigArgs,
        /// GET, POST, …
        method: String,
        /// Path of the request, such as /api/orders?page=2
        path: String,
        /// The request is a navigation, not a script's call
        #[arg(long)]
        navigate: bool,
    },
    /// Print the JSON Schema of the configuration file
    Schema,
    /// Print a fresh cookie key for session.key_files
    Keygen,
    /// Try it out: gateway, provider, app and API in one process; never for production
    #[cfg(feature = "demo")]
    Demo {
        /// Port on 127.0.0.1
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
}

/// Which configuration.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigArgs {
    /// Configuration file; several are merged in order [default: $SIDEGATE_CONFIG, else ./sidegate.toml, else
    /// /etc/sidegate/sidegate.toml]
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

impl Cli {
    /// Reads the arguments of this process. Help, version and complaints are printed here.
    ///
    /// # Errors
    /// The exit code, when there is nothing left to do: 0 after `--help` or `--version`, 64 after wrong usage.
    pub fn parse_args() -> Result<Command, i32> {
        Self::parse_from_args(std::env::args_os()).map_err(|error| {
            // Nobody may be listening; the exit code still tells.
            drop(error.print());
            exit_code(&error)
        })
    }

    fn parse_from_args<T: Into<std::ffi::OsString> + Clone>(
        arguments: impl IntoIterator<Item = T>,
    ) -> Result<Command, clap::Error> {
        Self::try_parse_from(arguments).map(|cli| cli.command)
    }
}

fn exit_code(error: &clap::Error) -> i32 {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
        _ => WRONG_USAGE,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Command, i32> {
        Cli::parse_from_args(line.split(' ')).map_err(|error| exit_code(&error))
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn files_are_kept_in_order() {
        let files = ["b.toml", "a.toml"].map(PathBuf::from).to_vec();
        assert_eq!(parse("sidegate run -c b.toml -c a.toml"), Ok(Command::Run(ConfigArgs { files })));
    }

    #[test]
    fn explain_takes_method_and_path() {
        let Ok(Command::Explain { method, path, navigate, .. }) = parse("sidegate explain -c x GET /a%00 --navigate")
        else {
            panic!("not understood")
        };
        assert_eq!((method.as_str(), path.as_str(), navigate), ("GET", "/a%00", true));
    }

    #[test]
    fn wrong_usage_is_64_and_help_is_0() {
        for line in [
            "sidegate",
            "sidegate frobnicate",
            "sidegate run --x",
            "sidegate explain GET",
            "sidegate keygen extra words",
        ] {
            assert_eq!(parse(line), Err(WRONG_USAGE), "{line}");
        }
        for line in ["sidegate --help", "sidegate --version", "sidegate run --help"] {
            assert_eq!(parse(line), Err(0), "{line}");
        }
    }
}
