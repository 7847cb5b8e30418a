//! Who is logged out by a race, how many requests fail, how often the provider is asked: one row for each layout and each
//! mishap, one column for each kind of provider.
//!
//! `cargo bench --bench burst` takes some minutes; `-- --help` tells the options. The method, and what the figures mean,
//! is in `docs/performance.md`. It ends with an error when a cell does not reach what is required of it.

use std::process::ExitCode;

use clap::Parser;
use futures_util::future::join_all;

#[path = "../tests/support/mod.rs"]
mod support;

use support::burst::{Health, Plan, Reuse, Share, Tally, run};

/// Bursts of requests on tokens that are over, before real processes.
#[derive(Clone, Debug, Parser)]
#[command(name = "burst")]
struct Options {
    /// Users at once in each cell.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    users: u16,
    /// Bursts of each user.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    rounds: u16,
    /// What the provider says of its access tokens, in seconds.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=600))]
    life: u32,
    /// Only rows whose name has this in it.
    #[arg(long, default_value = "")]
    row: String,
    /// Only this column: family, token, leeway or none.
    #[arg(long, default_value = "")]
    column: String,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a cell must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Must {
    /// No login, no failed request, each token spent once.
    All,
    /// No login, no failed request.
    NobodyOut,
    /// No login.
    NoLogin,
    /// Shown, and nothing required.
    Nothing,
}

struct Row {
    name: &'static str,
    /// Of each column, in the order of [`COLUMNS`].
    must: [Must; 4],
    plan: fn(Plan) -> Plan,
}

const COLUMNS: [(&str, Reuse); 4] =
    [("family", Reuse::Family), ("token", Reuse::Token), ("leeway", Reuse::Leeway), ("none", Reuse::None)];

fn rows() -> Vec<Row> {
    use Must::{All, NoLogin, NobodyOut, Nothing};
    vec![
        Row { name: "1 process", must: [All; 4], plan: |plan| plan },
        Row {
            name: "1 process, provider stalls",
            must: [All; 4],
            plan: |plan| Plan { health: Health::Stalls, ..plan },
        },
        Row { name: "1 process, provider 5xx", must: [All; 4], plan: |plan| Plan { health: Health::Errors, ..plan } },
        Row {
            name: "1 process, provider 429",
            must: [All; 4],
            plan: |plan| Plan { health: Health::RateLimit, ..plan },
        },
        // What it only had in memory is lost with it; a leeway makes up for that.
        Row {
            name: "1 process, kill -9",
            must: [Nothing, Nothing, NoLogin, NobodyOut],
            plan: |plan| Plan { kills: true, ..plan },
        },
        Row {
            name: "3 processes",
            must: [Nothing, NobodyOut, NobodyOut, NobodyOut],
            plan: |plan| Plan { replicas: 3, ..plan },
        },
        Row { name: "1 process, Redis", must: [All; 4], plan: |plan| Plan { share: Share::Redis, ..plan } },
        Row { name: "3 processes, Redis", must: [All; 4], plan: with_redis },
        Row {
            name: "3 processes, Redis, provider stalls",
            must: [All; 4],
            plan: |plan| Plan { health: Health::Stalls, ..with_redis(plan) },
        },
        Row {
            name: "3 processes, Redis, provider 5xx",
            must: [All; 4],
            plan: |plan| Plan { health: Health::Errors, ..with_redis(plan) },
        },
        Row {
            name: "3 processes, Redis, provider 429",
            must: [All; 4],
            plan: |plan| Plan { health: Health::RateLimit, ..with_redis(plan) },
        },
        Row {
            name: "3 processes, Redis, kill -9",
            must: [Nothing, Nothing, NoLogin, NobodyOut],
            plan: |plan| Plan { kills: true, ..with_redis(plan) },
        },
        // Without Redis three processes are three processes: a family is lost.
        Row {
            name: "3 processes, Redis absent",
            must: [Nothing, NobodyOut, NobodyOut, NobodyOut],
            plan: |plan| Plan { share: Share::Absent, ..with_redis(plan) },
        },
        Row {
            name: "3 processes, Redis killed",
            must: [Nothing, NobodyOut, NobodyOut, NobodyOut],
            plan: |plan| Plan { share: Share::Killed, ..with_redis(plan) },
        },
        Row {
            name: "3 processes, Redis restarted",
            must: [Nothing, NobodyOut, NobodyOut, NobodyOut],
            plan: |plan| Plan { share: Share::Restarted, ..with_redis(plan) },
        },
        Row {
            name: "3 processes, Redis paused",
            must: [Nothing, NobodyOut, NobodyOut, NobodyOut],
            plan: |plan| Plan { share: Share::Paused, ..with_redis(plan) },
        },
        Row {
            name: "3 processes, Redis slow",
            must: [NobodyOut; 4],
            plan: |plan| Plan { share: Share::Slow, ..with_redis(plan) },
        },
        // What is over waits for Redis: slower, and nobody is lost.
        Row {
            name: "3 processes, Redis restarted, on_error wait",
            must: [NobodyOut; 4],
            plan: |plan| Plan { share: Share::Restarted, waits_for_redis: true, ..with_redis(plan) },
        },
        Row {
            name: "3 processes, Redis paused, on_error wait",
            must: [NobodyOut; 4],
            plan: |plan| Plan { share: Share::Paused, waits_for_redis: true, ..with_redis(plan) },
        },
    ]
}

fn with_redis(plan: Plan) -> Plan {
    Plan { replicas: 3, share: Share::Redis, ..plan }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let missed = runtime.block_on(table(&options));
    for miss in &missed {
        println!("MISSED {miss}");
    }
    if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints the table row by row; gives back what was missed.
async fn table(options: &Options) -> Vec<String> {
    println!("logins per 1000 expiries / failed requests per 1000 / token requests per expiry (expiries)");
    println!("bold: required and met. (w): so many per 1000 requests were told to come back later, and did.");
    println!();
    let columns: Vec<_> = COLUMNS.iter().enumerate().filter(|(_, (name, _))| name.contains(&options.column)).collect();
    let heads: Vec<&str> = columns.iter().map(|(_, (name, _))| *name).collect();
    println!("| | {} |", heads.join(" | "));
    println!("|{}", " --- |".repeat(columns.len() + 1));
    let (mut missed, mut remarks) = (Vec::new(), Vec::new());
    for row in rows().iter().filter(|row| row.name.contains(&options.row)) {
        print!("| {} |", row.name);
        let _ = std::io::Write::flush(&mut std::io::stdout());
        let plan = |reuse| Plan {
            life: options.life,
            users: options.users.into(),
            rounds: options.rounds.into(),
            ..Plan::new(reuse)
        };
        // The cells of a row run at once: most of the time they wait.
        let cells = columns.iter().map(|(_, (_, reuse))| run((row.plan)(plan(*reuse))));
        for ((number, (column, _)), tally) in columns.iter().zip(join_all(cells).await) {
            let must = row.must.get(*number).copied().unwrap_or(Must::All);
            let text = cell(&tally);
            match (must, objection(&tally, must)) {
                (Must::Nothing, _) => print!(" {text} |"),
                (_, None) => print!(" **{text}** |"),
                (_, Some(why)) => {
                    print!(" {text} MISSED |");
                    missed.push(format!("{}, {column}: {why}: {tally:?}", row.name));
                }
            }
            remarks.extend(
                tally.remarks.iter().map(|(remark, times)| format!("{}, {column}: {remark}: {times}", row.name)),
            );
        }
        println!();
    }
    println!();
    remarks.iter().for_each(|remark| println!("{remark}"));
    missed
}

fn cell(tally: &Tally) -> String {
    let mut text = format!(
        "{} / {} / {} ({})",
        short(tally.logins_per_1000()),
        short(tally.failed_per_1000()),
        ratio(tally.spent_per_expiry()),
        tally.expiries
    );
    if tally.waited > 0 {
        text += &format!(" w {}", short(tally.waited_per_1000()));
    }
    text
}

/// Without a fraction that says nothing, but never 0 for what is not 0.
fn short(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:.1}") }
}

/// Exactly 1 is written `1`.
fn ratio(value: f64) -> String {
    if value == 1.0 { "1".to_owned() } else { format!("{value:.3}") }
}

fn objection(tally: &Tally, must: Must) -> Option<&'static str> {
    if !tally.leaks.is_empty() {
        return Some("secrets stand in Redis");
    }
    let nobody_out = matches!(must, Must::All | Must::NobodyOut);
    if must == Must::Nothing {
        None
    } else if tally.expiries == 0 {
        Some("nothing happened")
    } else if tally.logins > 0 {
        Some("users had to log in again")
    } else if nobody_out && tally.failed > 0 {
        Some("requests failed")
    } else if must == Must::All && (tally.spent != tally.expiries || tally.alarms > 0) {
        Some("tokens were not spent exactly once")
    } else {
        None
    }
}
