//! Many requests at once on a token that has ended, at a provider that takes each refresh token once and ends the session
//! when one comes again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use futures_util::future::join_all;
use tokio::time::sleep;

use crate::Rig;
use crate::report::Table;
use crate::support::client::{Ask, Browser};
use crate::support::provider::Moment;
use crate::support::provider::switches::{Endpoint, ExpiresIn, Grants, Outage, Rotation};
use crate::support::upstream::{Script, Upstream};
use crate::targets::{self, Contender, Credentials, Program, World, sidegate};

/// Of access tokens, in seconds.
const LIFE: u64 = 4;

/// How many.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Requests at once.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    requests: u32,
    /// Tries of each.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    tries: u32,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mishap {
    None,
    /// The provider does its work at once and answers 3 s late.
    Late,
    /// One request, whose client leaves before the provider answers; then the requests with the old cookie.
    ClientLeaves,
}

/// What came of one try.
#[derive(Debug)]
struct Outcome {
    /// Requests that reached the application with a live token.
    live: usize,
    /// Token requests.
    calls: usize,
    /// Whether the session was good when the next token had ended.
    alive: bool,
    /// What the others got, and how often.
    others: BTreeMap<String, usize>,
}

pub(crate) async fn run(rig: &Rig, options: &Options) {
    let own: std::path::PathBuf = sidegate::PROGRAM.into();
    let mut contenders = vec![
        Contender::new("sidegate, cookie", Program::Sidegate(own.clone(), Vec::new()), Credentials::Login),
        Contender::new("sidegate, Redis", Program::SidegateRedis(own), Credentials::Login),
    ];
    contenders.extend(targets::with_sessions());
    contenders.retain(|contender| rig.wants(&contender.name));
    let mishaps = [Mishap::None, Mishap::Late, Mishap::ClientLeaves];
    let mut table = Table::new(&["target", "at once", "provider 3 s late", "client leaves"]);
    for contender in &contenders {
        eprintln!("{} …", contender.name);
        // Each try has a provider of its own, so that all can be made at once.
        let tries = mishaps
            .map(|mishap| join_all((0..options.tries).map(move |_| attempt(contender, mishap, options.requests))));
        let mut row = vec![contender.name.clone()];
        for outcomes in join_all(tries).await {
            match outcomes.into_iter().collect::<Result<Vec<Outcome>, String>>() {
                Ok(outcomes) => row.push(cell(&outcomes)),
                Err(error) => {
                    println!("{} is left out: {error}", contender.name);
                    break;
                }
            }
        }
        table.row(row);
    }
    println!(
        "live answers of {} / token requests; what the others got; the session afterwards. Each figure once per try",
        options.requests
    );
    table.print();
}

fn cell(outcomes: &[Outcome]) -> String {
    let list =
        |of: fn(&Outcome) -> usize| outcomes.iter().map(|one| of(one).to_string()).collect::<Vec<_>>().join(", ");
    let alive = outcomes.iter().filter(|one| one.alive).count();
    let session = match alive {
        0 => "dead".to_owned(),
        all if all == outcomes.len() => "alive".to_owned(),
        some => format!("alive in {some} of {}", outcomes.len()),
    };
    let others: Vec<&str> = outcomes.iter().flat_map(|one| one.others.keys()).map(String::as_str).collect();
    let others: BTreeSet<&str> = others.into_iter().collect();
    let others = if others.is_empty() { String::new() } else { Vec::from_iter(others).join(", ") + "; " };
    format!("{} / {}; {others}{session}", list(|one| one.live), list(|one| one.calls))
}

async fn attempt(contender: &Contender, mishap: Mishap, requests: u32) -> Result<Outcome, String> {
    let app = Upstream::start().await;
    let mut world = World::start(address(&app), None).await;
    world.short_lived = true;
    let provider = Arc::clone(&world.provider);
    provider.set(|switches| {
        switches.rotation = Rotation::Family;
        switches.leeway = Duration::ZERO;
        // It really ends a little later than it says: who asks with the last of it has a live one.
        switches.access_lifetime = LIFE as i64 + 1;
        switches.expires_in = ExpiresIn::Json(LIFE.to_string());
    });
    let judge = Arc::clone(&provider);
    app.otherwise(Script::by(move |request| {
        if request.path() == "/readyz" || token(request).is_some_and(|token| judge.is_active(&token)) {
            Script::text(200, "live")
        } else {
            Script::text(200, "dead")
        }
    }));
    let proxy = contender.launch(&world).await?.start(&world.under).await?;
    let browser = contender.sign_in(&proxy).await?;
    sleep(Duration::from_secs(LIFE + 2)).await;
    let calls = provider.refreshes();
    let browsers = match mishap {
        Mishap::None => vec![browser.clone(); requests as usize],
        Mishap::Late => {
            provider.set(|switches| switches.fail_refresh(Outage::Late(Duration::from_secs(3))));
            vec![browser.clone(); requests as usize]
        }
        Mishap::ClientLeaves => {
            let held = provider.hold(Endpoint::Token, Grants::Refresh, Moment::After);
            let flight = browser.launch(&Ask::fetch("/api/orders")).await;
            held.wait_for(1).await;
            flight.abort();
            // Time for the proxy to notice.
            sleep(Duration::from_millis(300)).await;
            held.release();
            vec![browser.clone()]
        }
    };
    let (mut live, mut others) = (0, BTreeMap::new());
    for answer in join_all(browsers.iter().map(ask)).await {
        match answer {
            Ok(()) => live += 1,
            Err(answer) => *others.entry(answer).or_default() += 1,
        }
    }
    let calls = provider.refreshes() - calls;
    provider.set(|switches| switches.heal(Endpoint::Token));
    sleep(Duration::from_secs(LIFE + 2)).await;
    Ok(Outcome { live, calls, alive: ask(&browser).await.is_ok(), others })
}

fn address(app: &Upstream) -> SocketAddr {
    app.url().strip_prefix("http://").and_then(|addr| addr.parse().ok()).expect("the address of a double")
}

/// Asks the application; what came when it was not reached with a live token.
async fn ask(browser: &Browser) -> Result<(), String> {
    let answer = browser.send(Ask::fetch("/api/orders").stay()).await;
    match (answer.status, answer.text().as_str()) {
        (200, "live") => Ok(()),
        (200, "dead") => Err("forwarded with a dead token".to_owned()),
        (302, _) => Err("302 to the login".to_owned()),
        (status, _) => Err(format!("{status} {}", answer.code())),
    }
}

/// The access token, wherever the proxy puts it.
fn token(request: &crate::support::wire::Request) -> Option<String> {
    let own = request.header("x-forwarded-access-token").map(str::to_owned);
    own.or_else(|| request.bearer().map(|token| token.to_owned()))
}
