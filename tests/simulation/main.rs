//! The refresh engine under a virtual clock: thousands of runs, each decided by its seed.
//!
//! The code that ships (coordinator, engine, the conversation with the shared store, the verify redirect) meets a
//! simulated provider, browser, network and store, with the faults that real ones have. Every case of the table in
//! `docs/sessions.md` is a test here, by many seeds; one that does what the table does not say fails, and prints its seed
//! and what happened.
//!
//! To see one run again: `SIDEGATE_SIM_SEED=17 cargo test --test simulation NAME -- --nocapture`. For more of them:
//! `SIDEGATE_SIM_SEEDS=10000`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod dice;
mod provider;
mod store;
mod world;

use std::sync::Arc;
use std::time::Duration;

use sidegate::refresh::shared::OnError;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::provider::{Rules, Weather};
use crate::store::Faults;
use crate::world::{Browser, Kind, Plan, Report, Status, World, run, under_paused_time};

const SEEDS: u64 = 40;
/// Of the plans with many bursts.
const FEW: u64 = 8;

#[expect(clippy::disallowed_methods, reason = "of the test run, not of the program")]
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs the plan by many seeds; `judge` says what is wrong with one.
fn all(case: &str, plan: Plan, judge: impl Fn(&Report) -> Option<&'static str>) -> Report {
    by(SEEDS, case, plan, judge)
}

fn by(seeds: u64, case: &str, plan: Plan, judge: impl Fn(&Report) -> Option<&'static str>) -> Report {
    let mut sum = Report::default();
    let seeds = match number("SIDEGATE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIDEGATE_SIM_SEEDS").unwrap_or(seeds),
    };
    let shown = seeds.end - seeds.start == 1;
    for seed in seeds {
        let report = run(seed, plan, shown);
        if shown {
            println!("{}{report:?}", report.trace);
        }
        if let Some(wrong) = judge(&report) {
            let Report { trace, .. } = run(seed, plan, true);
            panic!("case {case:?}, seed {seed}: {wrong}\nagain: SIDEGATE_SIM_SEED={seed}\n{plan:?}\n{trace}{report:?}");
        }
        sum.add(&report);
    }
    println!(
        "{case}: {} bursts, {} forced logins, {} failed, {:.2} token calls per burst, slowest {:?}",
        sum.bursts,
        sum.logins,
        sum.failed(),
        sum.calls as f64 / sum.bursts as f64,
        sum.slowest
    );
    sum
}

/// The user sees nothing: no login, no error.
fn nothing(report: &Report) -> Option<&'static str> {
    if report.logins > 0 {
        return Some("the user was logged out");
    }
    (report.failed() > 0).then_some("a request failed")
}

/// The user sees nothing, and the provider one call for each expiry.
fn nothing_by_one_call(report: &Report) -> Option<&'static str> {
    nothing(report).or_else(|| (report.calls != report.bursts).then_some("not one token call for each expiry"))
}

/// Errors that go away, but no login.
fn no_login(report: &Report) -> Option<&'static str> {
    (report.logins > 0).then_some("the user was logged out")
}

const A: Plan = Plan::CALM;
const A3: Plan = Plan { replicas: 3, ..A };
const B: Plan = Plan { replicas: 3, store: Some(Plan::STORE), ..A };

/// RFR-01.
#[test]
fn ten_calls_of_one_tab_with_an_expired_token() {
    all("A, 1 replica", A, nothing_by_one_call);
    all("B, 3 replicas", B, nothing_by_one_call);
}

/// RFR-01.
#[test]
fn several_tabs() {
    all("A, 1 replica", Plan { spread: 5000, requests: 20, ..A }, nothing_by_one_call);
    all("B, 3 replicas", Plan { spread: 5000, requests: 20, ..B }, nothing_by_one_call);
}

/// RFR-01, RFR-02: whatever the refresh token is spent for, it is spent once.
#[test]
fn tokens_for_something_else_in_between() {
    // Nothing is kept here, so that every request asks: where all do, some wait in vain, and are told to come again.
    type Fault = fn(&Report) -> Option<&'static str>;
    let cases: [(&str, f64, Fault); 2] = [("a few", 0.2, nothing), ("all", 1.0, no_login)];
    for (case, own, judge) in cases {
        let plan = |plan| Plan { own, ..plan };
        all(&format!("A, 1 replica, {case}"), plan(A), judge);
        all(&format!("A, 1 replica, no rotation, {case}"), Plan { rules: Rules::NO_ROTATION, ..plan(A) }, judge);
        all(&format!("B, 3 replicas, {case}"), plan(B), judge);
        all(&format!("A, 1 replica, the tab is closed, {case}"), Plan { aborts: 0.7, ..plan(A) }, judge);
        all(&format!("B, 3 replicas, the tab is closed, {case}"), Plan { aborts: 0.7, ..plan(B) }, judge);
        all(&format!("A, 1 replica, lost responses, {case}"), Plan { lost: 0.6, requests: 4, ..plan(A) }, judge);
        all(&format!("B, 3 replicas, lost responses, {case}"), Plan { lost: 0.6, requests: 4, ..plan(B) }, judge);
        all(&format!("B, 3 replicas, early, {case}"), Plan { gap: (30, 400), bursts: 12, ..plan(B) }, judge);
    }
}

/// RFR-09: the token is still good when it is refreshed.
#[test]
fn early_refreshes_in_between() {
    all("A, 1 replica", Plan { gap: (30, 400), bursts: 12, ..A }, nothing);
    all("B, 3 replicas", Plan { gap: (30, 400), bursts: 12, ..B }, nothing);
}

/// RFR-02.
#[test]
fn replicas_without_a_store_at_a_provider_that_forgives() {
    all("A, 3 replicas, leeway", Plan { rules: Rules::LEEWAY, ..A3 }, nothing);
    all("A, 3 replicas, no rotation", Plan { rules: Rules::NO_ROTATION, ..A3 }, nothing);
    all("A, 8 replicas, no rotation", Plan { rules: Rules::NO_ROTATION, replicas: 8, ..A }, nothing);
}

/// RFR-02: the losers find the winner's cookie by the verify redirect.
#[test]
fn replicas_without_a_store_at_a_provider_that_refuses_a_spent_token() {
    let prompt = Plan { rules: Rules::TOKEN, weather: Weather::default(), ..A3 };
    let sum = all("A, 3 replicas, token only", prompt, nothing);
    assert!(sum.slowest > Duration::from_millis(600), "somebody went round");
    // Whose answer takes longer than both rounds together comes too late.
    let weather = Weather { stalls: 0.05, ..Weather::default() };
    let sum = all("A, 3 replicas, token only, a winner that stalls", Plan { weather, ..prompt }, |_| None);
    assert!(sum.logins * 8 < sum.bursts);
}

/// The table says it: the simulation can lose.
#[test]
fn replicas_without_a_store_lose_at_a_provider_that_ends_families() {
    let sum = all("A, 3 replicas, family", A3, |_| None);
    assert!(sum.logins * 10 > sum.bursts * 3, "{} of {}", sum.logins, sum.bursts);
}

/// RFR-03.
#[test]
fn the_tab_is_closed_during_the_refresh() {
    let plan = |plan| Plan { aborts: 0.7, ..plan };
    all("A, 1 replica", plan(A), nothing_by_one_call);
    all("B, 3 replicas", plan(B), nothing_by_one_call);
    all("A, 1 replica, hours later", Plan { away: 20 * 3600, bursts: 3, ..plan(A) }, nothing);
    all("B, 3 replicas, hours later", Plan { away: 20 * 3600, bursts: 3, ..plan(B) }, nothing);
}

/// RFR-03.
#[test]
fn responses_are_lost() {
    let plan = |plan| Plan { lost: 0.6, requests: 4, bursts: 8, ..plan };
    all("A, 1 replica", plan(A), nothing_by_one_call);
    all("B, 3 replicas", plan(B), nothing_by_one_call);
    all("B, 8 replicas", Plan { replicas: 8, ..plan(B) }, nothing_by_one_call);
}

#[test]
fn a_visit_after_recovery_is_over_needs_a_login() {
    let late = Plan { lost: 1.0, recovery: 60, requests: 2, bursts: 2, ..A };
    for plan in [late, Plan { store: Some(Plan::STORE), replicas: 3, ..late }] {
        all("the second visit", plan, |report| (report.logins != 0 && report.broken == 0).then_some("not the answer"));
    }
    // Nothing arrives in the first burst; later everything does, and the token is spent.
    let status = under_paused_time(async {
        let world = World::new(1, Plan { recovery: 60, ..A }, false);
        let browser = Arc::new(Browser::default());
        world.log_in(&browser);
        let old = browser.cookie.lock().clone();
        sleep(Duration::from_secs(310)).await;
        assert_eq!(Arc::clone(&world).visit(Arc::clone(&browser), Kind::Replayable).await, Status::Forwarded);
        *browser.cookie.lock() = old;
        sleep(Duration::from_secs(400)).await;
        world.sweep();
        world.visit(browser, Kind::Replayable).await
    });
    assert_eq!(status, Status::Login);
}

/// A new token that dies with its process is lost; a provider with a leeway gives another.
#[test]
fn a_process_dies_between_the_provider_and_us() {
    let crashing = |plan| Plan { crashes: 0.7, requests: 6, ..plan };
    let forgiving = |plan| Plan { rules: Rules::LEEWAY, ..crashing(plan) };
    all("A, 1 replica, no rotation", Plan { rules: Rules::NO_ROTATION, ..crashing(A) }, no_login);
    all("B, 3 replicas, no rotation", Plan { rules: Rules::NO_ROTATION, ..crashing(B) }, no_login);
    all("B, 3 replicas, leeway", forgiving(B), no_login);
    let sum = all("A, 1 replica, family", crashing(A), |_| None);
    assert!(sum.logins > 0 && sum.logins < sum.bursts, "login is possible here, and not the rule");
    let sum = all("B, 3 replicas, family", crashing(B), |_| None);
    assert!(sum.logins < sum.bursts / 2);
}

/// RFR-06.
#[test]
fn the_answer_is_lost_after_the_provider_rotated() {
    let weather = Weather { lost_answer: 0.1, lost_request: 0.1, ..Weather::default() };
    for plan in [A, B] {
        all("leeway", Plan { rules: Rules::LEEWAY, weather, ..plan }, no_login);
        all("no rotation", Plan { rules: Rules::NO_ROTATION, weather, ..plan }, no_login);
        let lost = Weather { lost_request: 0.3, ..Weather::default() };
        all("never sent", Plan { weather: lost, ..plan }, no_login);
    }
}

/// RFR-06: slower than our patience, more than once.
#[test]
fn the_provider_hangs() {
    let weather = Weather { hangs: 0.08, stalls: 0.2, ..Weather::default() };
    all("A, leeway", Plan { rules: Rules::LEEWAY, weather, ..A }, no_login);
    all("A, no rotation", Plan { rules: Rules::NO_ROTATION, weather, ..A }, no_login);
    all("B, no rotation", Plan { rules: Rules::NO_ROTATION, weather, ..B }, no_login);
}

/// RFR-06.
#[test]
fn the_provider_fails_while_the_token_is_good() {
    let weather = Weather { down: Some((0, 295)), ..Weather::default() };
    for plan in [A, B] {
        let early = Plan { weather, gap: (20, 40), bursts: 6, ..plan };
        all("down", early, nothing);
    }
}

/// RFR-06.
#[test]
fn the_provider_fails_and_the_token_is_over() {
    let weather = Weather { down: Some((280, 900)), ..Weather::default() };
    for plan in [A, B, Plan { rules: Rules::NO_ROTATION, ..A3 }] {
        let sum = all("down for ten minutes", Plan { weather, gap: (100, 200), bursts: 10, ..plan }, no_login);
        assert!(sum.unavailable > 0, "they were told so");
        assert!(sum.forwarded * 4 > sum.bursts * 10, "and it went on afterwards");
    }
    let weather = Weather { server_error: 0.4, rate_limited: 0.3, ..Weather::default() };
    for plan in [A, B] {
        all("5xx and 429", Plan { weather, ..plan }, no_login);
    }
}

#[test]
fn the_client_secret_is_wrong_for_a_while() {
    let weather = Weather { refuses: Some((250, 1000)), ..Weather::default() };
    for plan in [A, B] {
        let sum = all("invalid_client", Plan { weather, bursts: 6, ..plan }, no_login);
        assert!(sum.refused > 0 && sum.forwarded > 0);
    }
}

#[test]
fn responses_overtake_each_other() {
    for plan in [A, B] {
        all("same generation", Plan { down: 5000, ..plan }, nothing_by_one_call);
    }
}

/// R4: the newest generation goes out, however old the request.
#[test]
fn an_answer_arrives_after_the_next_generation() {
    for plan in [A, B] {
        all("slow upstream", Plan { slow: 1.0, down: 3000, bursts: 8, ..plan }, nothing);
        all("slow upstream, many generations", Plan { slow: 1.0, bursts: 12, gap: (240, 310), ..plan }, nothing);
    }
}

#[test]
fn clocks_jump() {
    for hours in [1, -1] {
        for plan in [A, B] {
            let jumping = Plan { jump: hours * 3600, aborts: 0.3, lost: 0.1, bursts: 6, ..plan };
            all("there and back", jumping, no_login);
        }
    }
}

#[test]
fn keys_are_changed_during_a_burst() {
    all("A, 1 replica", Plan { new_keys: true, aborts: 0.3, ..A }, nothing_by_one_call);
    all("B, 3 replicas", Plan { new_keys: true, aborts: 0.3, ..B }, nothing_by_one_call);
}

#[test]
fn a_refresh_that_kills_the_access_token() {
    let rules = Rules { kills_access_token: true, ..Rules::FAMILY };
    for plan in [A, B] {
        all("kills the access token", Plan { rules, gap: (200, 360), ..plan }, no_login);
    }
}

/// D of the table; its faults.
#[test]
fn the_store_fails() {
    let with = |faults, rules| Plan { rules, store: Some(faults), bursts: 8, ..B };
    let flaky = Faults { failing: 0.02, ..Plan::STORE };
    all("2 % of operations fail, token only", with(flaky, Rules::TOKEN), nothing);
    let away = Faults { away: Some((200, 1500)), ..Plan::STORE };
    all("away, token only", with(away, Rules::TOKEN), nothing);
    all("away, leeway", with(away, Rules::LEEWAY), nothing);
    let wait = Plan { on_error: OnError::Wait, ..with(away, Rules::FAMILY) };
    let sum = all("away, family, on_error = wait", wait, no_login);
    assert!(sum.unavailable > 0 && sum.forwarded > 0);
    let restarted = Faults { loses_all_at: Some(700), ..Plan::STORE };
    all("restarted empty", with(restarted, Rules::FAMILY), nothing);
    // Nobody spends a token that somebody else may be spending, only because the store is busy for a moment.
    let hiccups = Faults { hiccups: Some((1100, 400)), ..Plan::STORE };
    all("hiccups, family", with(hiccups, Rules::FAMILY), nothing_by_one_call);
    let slow = Faults { slow: 45, ..Plan::STORE };
    all("slow", with(slow, Rules::FAMILY), nothing_by_one_call);
}

/// The rows C2 and D: bursts of ten with an expired token, 5 % of them given up and resumed up to two minutes later.
#[test]
fn rows_c2_and_d_hold() {
    let row = |plan| Plan { aborts: 0.05, bursts: 30, ..plan };
    for rules in [Rules::FAMILY, Rules::TOKEN, Rules::LEEWAY, Rules::NO_ROTATION] {
        by(FEW, "C2, 1 replica", row(Plan { rules, ..A }), nothing_by_one_call);
    }
    for replicas in [1, 3, 8] {
        for rules in [Rules::FAMILY, Rules::NO_ROTATION] {
            by(FEW, "D", row(Plan { replicas, rules, ..B }), nothing_by_one_call);
        }
    }
}

/// What is not C2 loses, here as in the table: the simulation would show a fault of the engine.
#[test]
fn rows_that_lose_lose() {
    let row = |plan| Plan { aborts: 0.05, bursts: 30, ..plan };
    let forgets = by(FEW, "B, 1 replica: forgets at once", row(Plan { recovery: 0, grace: 0, ..A }), |_| None);
    assert!(forgets.logins * 100 > forgets.bursts);
    let given_up = Plan { aborts: 0.3, bursts: 30, recovery: 60, ..A };
    let minute = by(FEW, "C, 1 replica: forgets after a minute", given_up, |_| None);
    assert!(minute.logins > 0 && minute.logins * 5 < minute.bursts);
    let family = by(FEW, "C2, 3 replicas, family", row(A3), |_| None);
    assert!(family.logins * 10 > family.bursts * 3);
}

/// All faults at once, where the table says that none of them ends a session.
#[test]
fn everything_at_once() {
    let weather = Weather {
        stalls: 0.05,
        hangs: 0.02,
        server_error: 0.1,
        rate_limited: 0.05,
        lost_answer: 0.05,
        lost_request: 0.05,
        down: Some((900, 1300)),
        refuses: Some((1900, 2100)),
    };
    let faults = Faults { failing: 0.01, away: None, loses_all_at: None, hiccups: None, slow: 10 };
    let chaos = Plan {
        weather,
        bursts: 10,
        spread: 2000,
        gap: (60, 400),
        aborts: 0.3,
        lost: 0.1,
        down: 1500,
        slow: 0.3,
        crashes: 0.2,
        new_keys: true,
        ..A
    };
    all("A, 1 replica, no rotation", Plan { rules: Rules::NO_ROTATION, ..chaos }, no_login);
    let b = Plan { replicas: 3, store: Some(faults), ..chaos };
    all("B, 3 replicas, no rotation", Plan { rules: Rules::NO_ROTATION, ..b }, no_login);
    // Without what a strict provider punishes, not even there.
    let weather = Weather { hangs: 0.0, lost_answer: 0.0, ..weather };
    let strict = Plan { weather, crashes: 0.0, ..chaos };
    all("A, 1 replica, family", strict, no_login);
    all("B, 3 replicas, family", Plan { replicas: 3, store: Some(Plan::STORE), ..strict }, no_login);
}

/// Logout while responses are in flight; a logout that the provider tells of does the same.
#[test]
fn a_logout_during_a_burst_is_final() {
    for plan in [A, B] {
        for seed in 0..SEEDS {
            under_paused_time(async {
                let world = World::new(seed, Plan { slow: 0.5, down: 1500, ..plan }, true);
                let browser = Arc::new(Browser::default());
                world.log_in(&browser);
                let before = browser.cookie.lock().clone().unwrap();
                sleep(Duration::from_secs(310)).await;
                let mut visits = JoinSet::new();
                for _ in 0..10 {
                    visits.spawn(Arc::clone(&world).visit(Arc::clone(&browser), Kind::Replayable));
                }
                sleep(world.dice.between(0, 1500)).await;
                let during = browser.cookie.lock().clone();
                world.end(before.id);
                let left = browser.cookie.lock().take();
                visits.join_all().await;
                // Whatever cookie of it anybody has: before, during or after.
                let after = browser.cookie.lock().clone();
                for kept in [Some(before), during, left, after].into_iter().flatten() {
                    let copy = Arc::new(Browser::default());
                    *copy.cookie.lock() = Some(kept);
                    let status = Arc::clone(&world).visit(Arc::clone(&copy), Kind::Replayable).await;
                    let trace = world.report.lock().trace.clone();
                    assert_eq!(status, Status::Login, "seed {seed}\n{trace}");
                    assert!(copy.cookie.lock().is_none(), "seed {seed}\n{trace}");
                }
            });
        }
    }
}

/// A copied cookie works, as with any session; left behind for longer than `grace` it is refused, and the owner notices
/// nothing.
#[test]
fn a_copied_cookie_is_refused_once_it_is_behind() {
    for plan in [A, Plan { store: Some(Plan::STORE), ..A }] {
        for seed in 0..SEEDS {
            under_paused_time(async {
                let world = World::new(seed, plan, true);
                let (owner, thief) = (Arc::new(Browser::default()), Arc::new(Browser::default()));
                world.log_in(&owner);
                *thief.cookie.lock() = owner.cookie.lock().clone();
                let visit = |browser: &Arc<Browser>| Arc::clone(&world).visit(Arc::clone(browser), Kind::Replayable);
                sleep(Duration::from_secs(310)).await;
                assert_eq!(visit(&owner).await, Status::Forwarded, "seed {seed}");
                assert_eq!(visit(&thief).await, Status::Forwarded, "seed {seed}: within grace");
                let stale = thief.cookie.lock().clone();
                for _ in 0..2 {
                    sleep(Duration::from_secs(310)).await;
                    assert_eq!(visit(&owner).await, Status::Forwarded, "seed {seed}");
                    assert_eq!(visit(&owner).await, Status::Forwarded, "seed {seed}");
                }
                sleep(Duration::from_secs(61)).await;
                *thief.cookie.lock() = stale;
                assert_eq!(visit(&thief).await, Status::Login, "seed {seed}");
                assert_eq!(visit(&owner).await, Status::Forwarded, "seed {seed}: the owner goes on");
            });
        }
    }
}

/// What cannot be sent again is refused, and clears nothing.
#[test]
fn a_stream_at_a_dead_token_clears_nothing() {
    under_paused_time(async {
        let world = World::new(3, Plan { rules: Rules::TOKEN, ..A3 }, false);
        let browser = Arc::new(Browser::default());
        world.log_in(&browser);
        let old = browser.cookie.lock().clone();
        sleep(Duration::from_secs(310)).await;
        assert_eq!(Arc::clone(&world).visit(Arc::clone(&browser), Kind::Replayable).await, Status::Forwarded);
        // Behind by one generation at a replica that does not know it.
        let mut doubted = 0;
        for _ in 0..20 {
            *browser.cookie.lock() = old.clone();
            let status = Arc::clone(&world).visit(Arc::clone(&browser), Kind::Stream).await;
            assert!(browser.cookie.lock().is_some());
            doubted += usize::from(status == Status::Doubted);
        }
        assert!(doubted > 0);
    });
}

/// A run depends on nothing but its seed.
#[test]
fn a_seed_is_a_run() {
    let plan = Plan { aborts: 0.5, lost: 0.2, crashes: 0.3, slow: 0.5, ..B };
    for seed in 0..10 {
        assert_eq!(run(seed, plan, true).trace, run(seed, plan, true).trace, "seed {seed}");
    }
}
