use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::super::Rotation;
use super::*;
use crate::memo::Memo;
use crate::oidc::types::AccessToken;
use crate::session::codec::PackedToken;

const T0: Timestamp = Timestamp::from_secs(1_700_000_000);
const ID: SessionId = SessionId([7; 16]);

pub(crate) fn settings() -> Settings {
    Settings {
        before_expiry: secs(60),
        after: None,
        timeout: secs(8),
        wait: secs(10),
        grace: secs(60),
        recovery: secs(24 * 3600),
        memory: 64 * 1024 * 1024,
        max_refreshes: 0,
        on_reuse: OnReuse::Reauthenticate,
        rotation: None,
        leeway: Duration::ZERO,
        kills_access_token: false,
        replica: None,
    }
}

pub(crate) const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(crate) fn name(id: SessionId, generation: u64) -> Handle {
    let mut bytes = id.0;
    bytes[8..].copy_from_slice(&generation.to_be_bytes());
    Handle(bytes)
}

/// A generation whose token lives for 300 s from `issued`.
pub(crate) fn session(id: SessionId, generation: u64, issued: Timestamp) -> Arc<Session> {
    Arc::new(Session {
        provider: None,
        id,
        generation,
        created: T0,
        last_used: issued,
        issued,
        index_key: 0,
        previous: generation.checked_sub(1).map(|before| name(id, before)),
        access_token: AccessToken::new(format!("at-{generation}")),
        access_expires: Some(issued + secs(300)),
        refresh_token: Some(PackedToken::pack(&format!("rt-{generation}"))),
        refresh_expires: None,
        id_token: None,
        elsewhere: None,
        ticket: None,
        scope: None,
        subject: "alice".into(),
        provider_sid: None,
        auth_time: None,
        acr: None,
        nonce_hash: None,
        claims: BTreeMap::new(),
        dpop: None,
        pseudonym: Memo::default(),
    })
}

fn renewed(next: &Arc<Session>) -> Outcome {
    Outcome::Renewed { next: next.clone(), handle: name(next.id, next.generation), weight: 1024, fresh: true }
}

fn present(engine: &mut Engine, session: &Session, demand: Demand, now: Timestamp) -> Advice {
    engine.present(&Facts::of(session), name(session.id, session.generation), demand, true, now)
}

fn step(engine: &mut Engine, session: &Session, now: Timestamp) -> Step {
    present(engine, session, Demand::IfDue, now).step
}

fn start(engine: &mut Engine, session: &Session, now: Timestamp) -> FlightId {
    match present(engine, session, Demand::IfDue, now).step {
        Step::Start(flight) => flight,
        other => panic!("expected to start a flight, was told {other:?}"),
    }
}

/// One more generation, the usual way: its predecessor is over, and is refreshed.
fn renew(engine: &mut Engine, old: &Session, now: Timestamp) -> Arc<Session> {
    let flight = start(engine, old, now);
    let next = session(old.id, old.generation + 1, now);
    assert!(matches!(engine.settled(flight, renewed(&next), now), Landing::Renewed(_)));
    next
}

/// Every state of a token against what a request may want of it. `early`: the token is good for 30 s more.
#[test]
fn every_state_says_what_a_request_may_do() {
    #[derive(Clone, Copy, Debug)]
    enum Be {
        Nothing,
        Flying,
        Renewed,
        Dead,
        Mismatch,
        BackOff,
        Config,
        Ended,
    }
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Do {
        Forward,
        Successor,
        Start,
        Join,
        BackOff,
        Config,
        Dead,
        Ended,
    }
    let cases = [
        // state, a good token, an early one, one that is over, a demand for a newer one
        (Be::Nothing, [Do::Forward, Do::Start, Do::Start, Do::Start]),
        (Be::Flying, [Do::Forward, Do::Forward, Do::Join, Do::Join]),
        (Be::Renewed, [Do::Successor, Do::Successor, Do::Successor, Do::Successor]),
        (Be::Dead, [Do::Forward, Do::Dead, Do::Dead, Do::Dead]),
        (Be::Mismatch, [Do::Ended, Do::Ended, Do::Ended, Do::Ended]),
        (Be::BackOff, [Do::Forward, Do::Forward, Do::BackOff, Do::BackOff]),
        (Be::Config, [Do::Forward, Do::Forward, Do::Config, Do::Config]),
        (Be::Ended, [Do::Ended, Do::Ended, Do::Ended, Do::Ended]),
    ];
    for (state, expected) in cases {
        for (column, expected) in expected.into_iter().enumerate() {
            let (age, demand) =
                [(10, Demand::IfDue), (270, Demand::IfDue), (300, Demand::IfDue), (10, Demand::Now)][column];
            let now = T0 + secs(age);
            let mut engine = Engine::new(settings());
            let old = session(ID, 4, T0);
            let next = session(ID, 5, now);
            if !matches!(state, Be::Nothing) {
                let flight = match present(&mut engine, &old, Demand::Now, now).step {
                    Step::Start(flight) => flight,
                    other => panic!("{other:?}"),
                };
                let outcome = match state {
                    Be::Renewed => Some(renewed(&next)),
                    Be::Dead => Some(Outcome::Dead("invalid_grant")),
                    Be::Mismatch => Some(Outcome::Mismatch("sub")),
                    Be::BackOff => Some(Outcome::Retry { after: None }),
                    Be::Config => Some(Outcome::Config),
                    Be::Nothing | Be::Flying | Be::Ended => None,
                };
                if let Some(outcome) = outcome {
                    engine.settled(flight, outcome, now);
                }
            }
            if matches!(state, Be::Ended) {
                engine.tombstone(ID, now + secs(60));
            }
            let advice = present(&mut engine, &old, demand, now);
            let what = match (&advice.successor, advice.step) {
                (Some(found), Step::Forward) if *found == next => Do::Successor,
                (None, Step::Forward) => Do::Forward,
                (None, Step::Start(_)) => Do::Start,
                (None, Step::Join(_)) => Do::Join,
                (None, Step::BackOff { until }) if until == now + secs(1) => Do::BackOff,
                (None, Step::Config) => Do::Config,
                (None, Step::Over(EndReason::Dead("invalid_grant"))) => Do::Dead,
                (None, Step::Over(EndReason::Ended)) => Do::Ended,
                other => panic!("{state:?}, column {column}: {other:?}"),
            };
            assert_eq!(what, expected, "{state:?}, column {column}");
        }
    }
}

/// RFR-06: what is known of a failure is known for a while only.
#[test]
fn failures_are_forgotten() {
    for (outcome, held, free) in [
        (Outcome::Dead("invalid_grant"), 9_999, 10_000),
        (Outcome::Config, 999, 1000),
        (Outcome::Retry { after: None }, 999, 1000),
        (Outcome::Ambiguous, 999, 1000),
        (Outcome::Retry { after: Some(secs(4)) }, 3999, 4000),
        (Outcome::Retry { after: Some(secs(3600)) }, 9_999, 10_000),
    ] {
        let mut engine = Engine::new(settings());
        let old = session(ID, 0, T0);
        let now = T0 + secs(300);
        let flight = start(&mut engine, &old, now);
        engine.settled(flight, outcome.clone(), now);
        let at = |millis| now + Duration::from_millis(millis);
        assert!(!matches!(step(&mut engine, &old, at(held)), Step::Start(_)), "{outcome:?}");
        assert!(matches!(step(&mut engine, &old, at(free)), Step::Start(_)), "{outcome:?}");
    }
}

/// RFR-06: while the token is good the provider is asked ever more seldom, but as soon as it is over at once.
#[test]
fn early_tries_back_off_further_than_those_that_are_needed() {
    let mut engine = Engine::new(settings());
    let old = session(ID, 0, T0);
    let mut now = T0 + secs(240);
    for pause in [1, 2, 4, 8, 16] {
        let flight = start(&mut engine, &old, now);
        engine.settled(flight, Outcome::Ambiguous, now);
        assert_eq!(step(&mut engine, &old, now + secs(pause) - Duration::from_millis(1)), Step::Forward);
        now = now + secs(pause);
    }
    let flight = start(&mut engine, &old, now);
    engine.settled(flight, Outcome::Ambiguous, now);
    let over = T0 + secs(300);
    assert!(over.since(now) < secs(30));
    assert!(matches!(step(&mut engine, &old, over), Step::Start(_)));
}

/// RFR-02: three refreshes happened, the browser saw none of them.
#[test]
fn an_old_cookie_is_led_over_three_generations() {
    let mut engine = Engine::new(settings());
    let first = session(ID, 0, T0);
    let mut last = first.clone();
    for turn in 1..=3 {
        let now = T0 + secs(300 * turn);
        let flight = start(&mut engine, &first, now);
        last = session(ID, turn, now);
        engine.settled(flight, renewed(&last), now);
    }
    let now = T0 + secs(901);
    let advice = present(&mut engine, &first, Demand::IfDue, now);
    assert_eq!((advice.successor, advice.step, advice.forked), (Some(last.clone()), Step::Forward, false));
    assert_eq!(engine.newest(ID, now), Some(last.clone()));

    // When that one is over too, it is the one to be spent, and once only.
    let now = T0 + secs(1200);
    let advice = present(&mut engine, &first, Demand::IfDue, now);
    assert_eq!(advice.successor, Some(last.clone()));
    let Step::Start(flight) = advice.step else { panic!("{advice:?}") };
    assert_eq!(flight.handle(), name(ID, 3));
    assert_eq!(step(&mut engine, &last, now), Step::Join(flight));
}

#[test]
fn a_demand_for_a_newer_token_is_met_by_the_one_that_a_stale_cookie_leads_to() {
    let mut engine = Engine::new(settings());
    let old = session(ID, 0, T0);
    let now = T0 + secs(300);
    let next = renew(&mut engine, &old, now);
    assert_eq!(present(&mut engine, &old, Demand::Now, now).step, Step::Forward);
    let later = now + secs(20);
    assert_eq!(present(&mut engine, &old, Demand::OlderThan(secs(20)), later).step, Step::Forward);
    let advice = present(&mut engine, &old, Demand::OlderThan(secs(19)), later);
    assert_eq!(advice.successor, Some(next));
    assert!(matches!(advice.step, Step::Start(flight) if flight.handle() == name(ID, 1)));
}

/// RFR-02, RFR-03: a result waits for the browser for `recovery`, and once it was seen for `grace`.
#[test]
fn a_result_is_kept_until_its_cookie_was_seen_and_a_moment_longer() {
    let now = T0 + secs(300);
    let old = session(ID, 0, T0);

    let mut engine = Engine::new(settings());
    renew(&mut engine, &old, now);
    let late = now + settings().recovery;
    assert!(present(&mut engine, &old, Demand::IfDue, late - secs(1)).successor.is_some());
    assert!(matches!(step(&mut engine, &old, late), Step::Start(_)));

    let mut engine = Engine::new(settings());
    let next = renew(&mut engine, &old, now);
    let seen = now + secs(100);
    assert_eq!(step(&mut engine, &next, seen), Step::Forward);
    step(&mut engine, &next, seen + secs(30)); // does not begin the grace anew
    assert!(present(&mut engine, &old, Demand::IfDue, seen + secs(59)).successor.is_some());
    assert_eq!(step(&mut engine, &old, seen + secs(60)), Step::Over(EndReason::Reuse));
}

#[test]
fn a_token_that_is_unknown_but_behind_is_not_spent() {
    let mut engine = Engine::new(settings());
    let now = T0 + secs(300);
    let next = renew(&mut engine, &session(ID, 5, T0), now);
    let advice = present(&mut engine, &session(ID, 2, T0), Demand::IfDue, now);
    assert_eq!((advice.successor, advice.step, advice.forked), (Some(next), Step::Forward, true));
    // One of the same generation, from another replica, is as good as ours; one that is ahead is better.
    for generation in [6, 7] {
        let other = session(ID, generation, now);
        let mut named = name(ID, generation);
        named.0[0] ^= 1;
        let advice = engine.present(&Facts::of(&other), named, Demand::IfDue, true, now);
        assert_eq!((advice.successor, advice.step), (None, Step::Forward));
    }
}

/// Two replicas renewed one generation, the browser kept the cookie of the other one, and the provider has ended it.
#[test]
fn a_dead_token_that_is_behind_leads_to_the_newest_one() {
    let mut engine = Engine::new(settings());
    let now = T0 + secs(300);
    let ours = session(ID, 1, T0);
    let theirs = Handle([9; 16]);
    let Step::Start(flight) = engine.present(&Facts::of(&ours), theirs, Demand::IfDue, true, now).step else {
        panic!()
    };
    engine.settled(flight, Outcome::Dead("invalid_grant"), now);
    let next = renew(&mut engine, &ours, now);
    assert_eq!(engine.present(&Facts::of(&ours), theirs, Demand::IfDue, true, now).successor, Some(next));
}

/// Told nothing of use, and meanwhile a cookie came that another replica had made of the same token.
#[test]
fn a_flight_that_was_overtaken_lands_where_the_session_is() {
    for outcome in [Outcome::Dead("invalid_grant"), Outcome::Ambiguous, Outcome::Retry { after: None }] {
        let mut engine = Engine::new(settings());
        let now = T0 + secs(300);
        let flight = start(&mut engine, &session(ID, 0, T0), now);
        let newest = renew(&mut engine, &session(ID, 1, T0), now);
        assert!(matches!(engine.settled(flight, outcome, now), Landing::Renewed(landed) if landed == newest));
    }
}

/// 3.6: with one process and a provider that forgives nothing, two tokens of one generation are two copies of a cookie.
#[test]
fn a_fork_is_counted_and_only_where_it_proves_something_more() {
    let now = T0 + secs(300);
    let fork = |settings: Settings| {
        let mut engine = Engine::new(settings);
        let ours = renew(&mut engine, &session(ID, 0, T0), now);
        let mut theirs = name(ID, 1);
        theirs.0[0] ^= 1;
        let advice = engine.present(&Facts::of(&ours), theirs, Demand::IfDue, true, now + secs(300));
        let over = matches!(advice.step, Step::Over(EndReason::Reuse));
        assert!(over || matches!(advice.step, Step::Start(_)));
        (advice.forked, over, engine.is_ended(ID, now))
    };
    let strict = Settings { rotation: Some(Rotation::Single), ..settings() };
    assert_eq!(fork(strict.clone()), (true, true, false));
    assert_eq!(fork(Settings { on_reuse: OnReuse::Revoke, ..strict }), (true, true, true));
    assert_eq!(fork(Settings { on_reuse: OnReuse::Ignore, ..strict }), (true, false, false));
    assert_eq!(fork(Settings { leeway: secs(30), ..strict }), (true, false, false));
    assert_eq!(fork(Settings { replica: Some(7), ..strict }), (true, false, false));
    assert_eq!(fork(settings()), (true, false, false));
}

/// A flight takes the old access token with it: who could go on with it would run into a 401.
#[test]
fn nobody_goes_on_with_a_token_that_its_refresh_is_killing() {
    let settings = Settings { kills_access_token: true, after: Some(secs(100)), ..settings() };
    let mut engine = Engine::new(settings);
    let old = session(ID, 0, T0);
    let flight = start(&mut engine, &old, T0 + secs(100));
    assert_eq!(step(&mut engine, &old, T0 + secs(100)), Step::Join(flight));
}

/// R4: a slow answer is about to leave just when the grace of the generation after its own is over, and nobody has asked
/// since. Nothing newer is known any more, but its own cookie must not be set either.
#[test]
fn a_slow_answer_does_not_bring_back_what_was_given_up_a_moment_ago() {
    let mut engine = Engine::new(settings());
    let mut now = T0 + secs(300);
    let first = renew(&mut engine, &session(ID, 0, T0), now);
    now = now + secs(300);
    let second = renew(&mut engine, &first, now);
    step(&mut engine, &second, now);
    now = now + secs(60);
    assert_eq!(engine.newest(ID, now), None);
    assert!(engine.is_behind(&Facts::of(&first), now));
    assert!(!engine.is_behind(&Facts::of(&second), now));
}

#[test]
fn a_full_house_starts_nothing() {
    let mut engine = Engine::new(settings());
    let old = session(ID, 0, T0);
    let mut ask = |at| engine.present(&Facts::of(&old), name(ID, 0), Demand::IfDue, false, T0 + secs(at)).step;
    assert_eq!(ask(270), Step::Forward, "its token is good");
    assert_eq!(ask(300), Step::BackOff { until: T0 + secs(301) });
}

/// An hour that the clock jumps over is no hour that a cookie was out of use, and one that it gains is none either.
#[test]
fn a_clock_that_is_set_makes_no_cookie_a_reused_one() {
    for hours in [1_i64, -1] {
        let mut engine = Engine::new(settings());
        let old = session(ID, 0, T0);
        let mut now = T0 + secs(300);
        let next = renew(&mut engine, &old, now);
        now = now + secs(10);
        step(&mut engine, &next, now);
        let set_by = hours * 3_600_000;
        engine.follow(set_by);
        now = now.shifted(set_by);
        assert!(present(&mut engine, &old, Demand::IfDue, now + secs(59)).successor.is_some(), "{hours}");
        let late = present(&mut engine, &old, Demand::IfDue, now + secs(61));
        assert_eq!(late.step, Step::Over(EndReason::Reuse), "{hours}: but its grace is not prolonged either");
    }
}

/// RFR-09.
#[test]
fn a_clock_that_is_set_back_does_not_prolong_a_failure() {
    for outcome in [Outcome::Dead("invalid_grant"), Outcome::Config, Outcome::Ambiguous] {
        let mut engine = Engine::new(settings());
        let old = session(ID, 0, T0);
        let flight = start(&mut engine, &old, T0 + secs(4000));
        engine.settled(flight, outcome, T0 + secs(4000));
        assert!(matches!(step(&mut engine, &old, T0 + secs(400)), Step::Start(_)));
    }
}

#[test]
fn a_tombstone_outlasts_results_when_memory_is_short() {
    let mut engine = Engine::new(Settings { memory: 2 * (1024 + ENTRY), ..settings() });
    let now = T0 + secs(300);
    engine.tombstone(ID, now + secs(3600));
    for n in 10..20 {
        renew(&mut engine, &session(SessionId([n; 16]), 0, T0), now);
    }
    assert!(engine.is_ended(ID, now));
    assert_eq!(engine.load().entries, 2);
}

/// A logout is not forgotten because a large session was refreshed, however small the memory.
#[test]
fn tombstones_are_bounded_apart_from_results() {
    let mut engine = Engine::new(Settings { memory: 1, ..settings() }).with_tombstones(3);
    let now = T0 + secs(300);
    for n in 10..15 {
        engine.tombstone(SessionId([n; 16]), now + secs(3600));
        renew(&mut engine, &session(ID, u64::from(n), T0), now);
    }
    let ended: Vec<u8> = (10..15).filter(|n| engine.is_ended(SessionId([*n; 16]), now)).collect();
    assert_eq!(ended, [12, 13, 14], "the oldest make room");
    engine.sweep(now + secs(3600));
    assert_eq!((engine.ledger.tombstones, engine.load().bytes), (0, engine.load().entries * (1024 + ENTRY)));
}

#[test]
fn a_logout_drops_the_result_of_a_flight_in_the_air() {
    let mut engine = Engine::new(settings());
    let now = T0 + secs(300);
    let old = session(ID, 0, T0);
    let flight = start(&mut engine, &old, now);
    engine.tombstone(ID, now + secs(100));
    let next = session(ID, 1, now);
    let landing = engine.settled(flight, renewed(&next), now);
    assert!(matches!(landing, Landing::Over(EndReason::Ended)));
    assert_eq!(engine.newest(ID, now), None);
    assert_eq!(step(&mut engine, &next, now + secs(99)), Step::Over(EndReason::Ended));
    assert!(!engine.is_ended(ID, now + secs(100)));
}

#[test]
fn a_session_that_cannot_be_renewed_lives_to_the_end_of_its_token() {
    let limited = || Engine::new(Settings { max_refreshes: 2, ..settings() });
    let session = |edit: fn(&mut Session)| {
        let mut session = Session::clone(&session(ID, 2, T0));
        edit(&mut session);
        session
    };
    for (session, mut engine, reason) in [
        (session(|_| {}), limited(), EndReason::RefreshLimit),
        (session(|session| session.refresh_token = None), Engine::new(settings()), EndReason::Expired),
        (
            session(|session| session.refresh_expires = Some(T0 + secs(200))),
            Engine::new(settings()),
            EndReason::Expired,
        ),
    ] {
        assert_eq!(step(&mut engine, &session, T0 + secs(299)), Step::Forward);
        let advice = present(&mut engine, &session, Demand::Now, T0 + secs(299));
        assert_eq!(advice.step, Step::Exhausted(reason));
        assert_eq!(step(&mut engine, &session, T0 + secs(300)), Step::Over(reason));
        assert_eq!(engine.load(), Load::default());
    }
}

#[test]
fn the_end_of_a_session_is_told_once() {
    let mut engine = Engine::new(settings());
    assert!(engine.tell(ID, T0));
    assert!(!engine.tell(ID, T0 + secs(60)));
    let other = SessionId([8; 16]);
    engine.tombstone(other, T0 + secs(60));
    assert!(!engine.tell(other, T0), "a logout tells it itself");
}

#[test]
fn when_memory_is_short_acknowledged_results_go_first_then_the_oldest() {
    let each = 1024 + ENTRY;
    let mut engine = Engine::new(Settings { memory: 3 * each, ..settings() });
    let now = T0 + secs(300);
    let id = |n| SessionId([n; 16]);
    let next: Vec<_> = (0..3).map(|n| renew(&mut engine, &session(id(n), 0, T0), now)).collect();
    step(&mut engine, &next[1], now);
    let kept = |engine: &Engine| (0..6).filter(|n| engine.newest(id(*n), now).is_some()).collect::<Vec<_>>();

    // A flight takes its place before its result is there: that already costs the acknowledged one.
    renew(&mut engine, &session(id(3), 0, T0), now);
    assert_eq!(kept(&engine), [0, 2, 3]);
    renew(&mut engine, &session(id(4), 0, T0), now);
    assert_eq!(kept(&engine), [2, 3, 4]);
    assert!(engine.load().bytes <= 3 * each);

    // Whoever waits for a result gets it, however large.
    let flight = start(&mut engine, &session(id(5), 0, T0), now);
    let large = session(id(5), 1, now);
    engine.settled(
        flight,
        Outcome::Renewed { next: large, handle: name(id(5), 1), weight: 100 * each, fresh: true },
        now,
    );
    assert_eq!(kept(&engine), [5]);
}

#[test]
fn a_sweep_leaves_nothing_of_the_past() {
    let mut engine = Engine::new(settings());
    let now = T0 + secs(300);
    renew(&mut engine, &session(ID, 0, T0), now);
    engine.tombstone(SessionId([8; 16]), now + secs(100));
    engine.tell(SessionId([9; 16]), now);
    engine.sweep(now + secs(101));
    assert_eq!(engine.load(), Load { entries: 1, bytes: 1024 + 2 * ENTRY, flights: 0 });
    engine.sweep(now + secs(24 * 3600));
    assert_eq!(engine.load(), Load::default());
    assert!(engine.lines.is_empty() && engine.ledger.order.is_empty());
}

#[derive(Clone, Debug)]
enum Event {
    Present { who: u8, back: u8, demand: Demand },
    Settle { which: usize, how: u8 },
    Pass(u64),
    End { who: u8 },
    Sweep,
}

fn event() -> impl Strategy<Value = Event> {
    let demand = prop_oneof![
        4 => Just(Demand::IfDue),
        1 => Just(Demand::Now),
        1 => (0u64..400).prop_map(|age| Demand::OlderThan(secs(age))),
    ];
    prop_oneof![
        8 => (0u8..3, 0u8..5, demand).prop_map(|(who, back, demand)| Event::Present { who, back, demand }),
        6 => (any::<usize>(), 0u8..10).prop_map(|(which, how)| Event::Settle { which, how }),
        4 => (0u64..200).prop_map(Event::Pass),
        1 => (20_000u64..100_000).prop_map(Event::Pass),
        1 => (0u8..3).prop_map(|who| Event::End { who }),
        1 => Just(Event::Sweep),
    ]
}

proptest! {
    /// RFR-01: whatever happens, no token is in two flights or spent again, and nobody is led to an older generation.
    #[test]
    fn no_token_is_in_two_flights_and_no_generation_goes_back(
        events in prop::collection::vec(event(), 1..200),
        memory in prop_oneof![Just(64 * 1024 * 1024usize), Just(8 * 1024usize)],
    ) {
        let mut engine = Engine::new(Settings { memory, ..settings() });
        let mut now = T0;
        let mut cookies: Vec<Vec<Arc<Session>>> = (0..3).map(|n| vec![session(SessionId([n; 16]), 0, T0)]).collect();
        let mut flights: Vec<(FlightId, Arc<Session>)> = Vec::new();
        let mut spent_at: HashMap<Handle, Timestamp> = HashMap::new();
        for event in events {
            match event {
                Event::Present { who, back, demand } => {
                    let known = &cookies[usize::from(who)];
                    let shown = known[known.len().saturating_sub(1 + usize::from(back))].clone();
                    let advice = present(&mut engine, &shown, demand, now);
                    if let Some(next) = &advice.successor {
                        prop_assert!(next.generation > shown.generation && next.id == shown.id);
                    }
                    let used = advice.successor.unwrap_or(shown);
                    match advice.step {
                        Step::Start(flight) => {
                            prop_assert!(flights.iter().all(|(other, _)| other.handle != flight.handle));
                            prop_assert_eq!(flight.handle, name(used.id, used.generation));
                            if let Some(at) = spent_at.get(&flight.handle).filter(|_| memory > 1 << 20) {
                                prop_assert!(now.since(*at) >= settings().grace, "a spent token is spent again");
                            }
                            flights.push((flight, used));
                        }
                        Step::Join(flight) => prop_assert!(flights.iter().any(|(other, _)| *other == flight)),
                        Step::Forward => prop_assert!(!engine.is_ended(used.id, now)),
                        _ => {}
                    }
                }
                Event::Settle { which, how } if !flights.is_empty() => {
                    let (flight, spent) = flights.remove(which % flights.len());
                    let next = session(spent.id, spent.generation + 1, now);
                    let before = engine.newest(spent.id, now).map_or(0, |session| session.generation);
                    let outcome = match how {
                        0 => Outcome::Dead("invalid_grant"),
                        1 => Outcome::Retry { after: None },
                        2 => Outcome::Ambiguous,
                        3 => Outcome::Config,
                        4 => Outcome::Renewed { next: spent.clone(), handle: flight.handle, weight: 1, fresh: true },
                        _ => renewed(&next),
                    };
                    let failed = !matches!(outcome, Outcome::Renewed { .. });
                    let landing = engine.settled(flight, outcome, now);
                    if let (Landing::Renewed(landed), true) = (&landing, failed) {
                        // Overtaken by a request that brought a newer cookie.
                        prop_assert_eq!(Some(landed.clone()), engine.newest(spent.id, now));
                        prop_assert!(landed.generation > spent.generation);
                    } else if let Landing::Renewed(landed) = landing {
                        prop_assert_eq!(&landed, &next);
                        spent_at.insert(flight.handle, now);
                        let kept = engine.newest(spent.id, now).map_or(0, |session| session.generation);
                        prop_assert!(kept >= next.generation && (kept >= before || memory < 1 << 20));
                        let known = &mut cookies[usize::from(spent.id.0[0])];
                        if known.iter().all(|session| session.generation != next.generation) {
                            known.push(next);
                        }
                    }
                }
                Event::Settle { .. } => {}
                Event::Pass(secs) => now = now + Duration::from_secs(secs),
                Event::End { who } => engine.tombstone(SessionId([who; 16]), now + secs(3600)),
                Event::Sweep => engine.sweep(now),
            }
            prop_assert_eq!(engine.load().flights, flights.len());
            let entries = || engine.lines.values().flat_map(|line| &line.entries);
            let marks = engine.lines.values().filter(|line| line.mark.is_some()).count();
            let graves = engine.lines.values().filter(|line| line.is_ended()).count();
            prop_assert_eq!(engine.ledger.tombstones, graves);
            let bytes = entries().map(|entry| entry.weight).sum::<usize>() + (marks - graves) * ENTRY;
            prop_assert_eq!(engine.load().bytes, bytes);
            prop_assert_eq!(engine.load().entries, entries().filter(|entry| entry.result().is_some()).count());
            prop_assert_eq!(engine.ledger.order.len(), entries().filter(|entry| !entry.is_flying()).count() + marks);
        }
        for (flight, _) in flights {
            engine.settled(flight, Outcome::Ambiguous, now);
        }
        engine.sweep(now + secs(10 * 24 * 3600));
        prop_assert_eq!(engine.load(), Load::default());
        prop_assert!(engine.lines.is_empty() && engine.ledger.order.is_empty());
    }
}

/// COOKIE-28: past the grace a spent cookie is known for what it is, and `on_reuse` says what it gets.
#[test]
fn an_old_cookie_that_comes_back_after_the_grace_is_a_reuse() {
    for policy in [OnReuse::Ignore, OnReuse::Reauthenticate, OnReuse::Revoke] {
        let mut engine = Engine::new(Settings { on_reuse: policy, ..settings() });
        let first = session(ID, 0, T0);
        let second = renew(&mut engine, &first, T0 + secs(300));
        // Delivered, and the grace is over.
        step(&mut engine, &second, T0 + secs(301));
        let later = T0 + secs(400);
        engine.sweep(later);
        assert!(engine.newest(second.id, later).is_none(), "the tokens are no longer kept");
        match (policy, engine.recognise(&Facts::of(&first), later)) {
            (OnReuse::Ignore, Recognised::Forgiven)
            | (OnReuse::Reauthenticate, Recognised::Reused { ends: false })
            | (OnReuse::Revoke, Recognised::Reused { ends: true }) => {}
            (policy, other) => panic!("{policy:?}: {other:?}"),
        }
        let current = engine.recognise(&Facts::of(&second), later);
        match policy {
            OnReuse::Revoke => assert!(matches!(current, Recognised::Ended)),
            _ => assert!(matches!(current, Recognised::Current), "{current:?}"),
        }
    }
}

/// The `split` layout: a request without the refresh token does what it can without, and never spends what it has not.
#[test]
fn a_token_that_is_elsewhere_is_brought_only_when_it_is_needed() {
    let id = SessionId([1; 16]);
    let first = session(id, 0, T0);
    let alone = Arc::new(Session { refresh_token: None, elsewhere: Some(name(id, 0)), ..Session::clone(&first) });
    let mut engine = Engine::new(settings());
    assert_eq!(step(&mut engine, &alone, T0 + secs(10)), Step::Forward);
    assert_eq!(step(&mut engine, &alone, T0 + secs(270)), Step::Forward, "early is not needed");
    assert_eq!(step(&mut engine, &alone, T0 + secs(300)), Step::Bring);
    assert_eq!(present(&mut engine, &alone, Demand::Now, T0 + secs(10)).step, Step::Bring);
    let flight = start(&mut engine, &first, T0 + secs(300));
    assert_eq!(step(&mut engine, &alone, T0 + secs(300)), Step::Join(flight), "somebody has brought it");
    let next = session(id, 1, T0 + secs(300));
    engine.settled(flight, renewed(&next), T0 + secs(300));
    let advice = present(&mut engine, &alone, Demand::IfDue, T0 + secs(301));
    assert_eq!((advice.step, advice.successor.unwrap().generation), (Step::Forward, 1));
    // Known to be of no use: nobody is led round for it.
    let mut engine = Engine::new(settings());
    let spent = Session { refresh_expires: Some(T0 + secs(200)), ..Session::clone(&alone) };
    assert_eq!(step(&mut engine, &spent, T0 + secs(300)), Step::Over(EndReason::Expired));
}
