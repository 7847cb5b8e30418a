use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64};

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::super::engine::tests::{secs, session, settings};
use super::*;
use crate::oidc::types::AccessToken;

const T0: Timestamp = Timestamp::from_secs(1_700_000_000);
const ID: SessionId = SessionId([7; 16]);
/// At this age the rig's token is over.
const OVER: Duration = secs(300);
/// At this age it is good for half a minute more.
const EARLY: Duration = secs(270);

/// What the provider does next.
enum Act {
    Answer,
    /// Rotates at once, answers so much later.
    Late(Duration),
    Fail(ProviderError),
    /// Answers, a second later, without another refresh token: the one that came stays.
    Keep,
    /// Rotates, and the answer is lost.
    Lose,
    /// Never answers.
    Hang,
    /// Answers when told.
    Held(Arc<Notify>),
    Panic,
}

/// A provider that rotates strictly: a spent token is dead.
struct Rotating {
    current: AtomicU64,
    calls: AtomicUsize,
    script: Mutex<VecDeque<Act>>,
    clock: Clock,
}

#[async_trait]
impl Grant for Rotating {
    async fn refresh(&self, request: RefreshRequest<'_>) -> Result<TokenSet, ProviderError> {
        assert_eq!(request.expect.subject, "alice");
        self.calls.fetch_add(1, Ordering::SeqCst);
        let act = self.script.lock().pop_front().unwrap_or(Act::Answer);
        match act {
            Act::Fail(error) => return Err(error),
            Act::Hang => std::future::pending().await,
            Act::Panic => panic!("a bug in the client"),
            _ => {}
        }
        let current = self.current.load(Ordering::SeqCst);
        if request.token.expose() != format!("rt-{current}") {
            return Err(ProviderError::Dead { reason: "invalid_grant" });
        }
        let keeps = matches!(act, Act::Keep);
        if !keeps {
            self.current.store(current + 1, Ordering::SeqCst);
        }
        match act {
            Act::Late(by) => sleep(by).await,
            Act::Keep => sleep(secs(1)).await,
            Act::Lose => return Err(ProviderError::Ambiguous { reason: "connection_lost" }),
            Act::Held(gate) => gate.notified().await,
            _ => {}
        }
        let name = request.target.map_or("at", |_| "other");
        Ok(TokenSet {
            access_token: AccessToken::new(format!("{name}-{}", current + 1)),
            access_expires: Some(self.clock.now() + secs(300)),
            refresh_token: (!keeps).then(|| RefreshToken::new(format!("rt-{}", current + 1))),
            refresh_expires: None,
            id_token: None,
            scope: None,
        })
    }
}

struct Names;

impl Handles for Names {
    fn handle(&self, session: &Session) -> Option<Handle> {
        Some(super::super::engine::tests::name(session.id, session.generation))
    }

    fn index_key(&self, _: Timestamp) -> u16 {
        0
    }

    fn seal_result(&self, _: &Session, _: Handle, _: &Session) -> Option<Vec<u8>> {
        Some(vec![1])
    }
}

/// A store that takes no result until it is back.
#[derive(Default)]
struct Forgetful {
    back: AtomicBool,
    settled: AtomicUsize,
}

#[async_trait]
impl Shared for Forgetful {
    async fn read(&self, _: Handle) -> Result<Rung, Away> {
        Ok(Rung::Absent)
    }
    async fn lock(&self, _: Handle, _: Owner, _: Duration) -> Result<Rung, Away> {
        Ok(Rung::Absent)
    }
    async fn renew(&self, _: Handle, _: Owner, _: Duration) -> Result<bool, Away> {
        Ok(true)
    }
    async fn settle(&self, _: Handle, _: Rung, _: Duration) -> Result<(), Away> {
        if !self.back.load(Ordering::SeqCst) {
            return Err(Away);
        }
        self.settled.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    async fn unlock(&self, _: Handle, _: Owner) {}
    fn acknowledge(&self, _: Handle, _: Duration) {}
}

#[derive(Default)]
struct Told {
    refreshes: Mutex<Vec<&'static str>>,
    ended: Mutex<Vec<EndReason>>,
    joined: AtomicUsize,
    stale: AtomicUsize,
    spared: Mutex<Vec<bool>>,
}

impl Observer for Told {
    fn refreshed(&self, _: &Session, outcome: &'static str, _: &'static str, _: Duration) {
        self.refreshes.lock().push(outcome);
    }
    fn joined(&self) {
        self.joined.fetch_add(1, Ordering::SeqCst);
    }
    fn stale_cookie(&self) {
        self.stale.fetch_add(1, Ordering::SeqCst);
    }
    fn session_ended(&self, _: &Session, reason: EndReason) {
        self.ended.lock().push(reason);
    }
    fn spared(&self, spared: bool) {
        self.spared.lock().push(spared);
    }
}

struct Rig {
    grant: Arc<Rotating>,
    told: Arc<Told>,
    clock: Clock,
    coordinator: Arc<Coordinator>,
    /// The cookie that the browser has.
    session: Arc<Session>,
}

fn rig(age: Duration, script: impl IntoIterator<Item = Act>) -> Rig {
    rig_with(settings(), age, script)
}

fn rig_with(settings: Settings, age: Duration, script: impl IntoIterator<Item = Act>) -> Rig {
    let clock = Clock::manual(T0 + age);
    let grant = Arc::new(Rotating {
        current: AtomicU64::new(0),
        calls: AtomicUsize::new(0),
        script: Mutex::new(script.into_iter().collect()),
        clock: clock.clone(),
    });
    let told = Arc::new(Told::default());
    let coordinator = Coordinator::new(settings, grant.clone(), Arc::new(Names), clock.clone(), told.clone());
    Rig { grant, told, clock, coordinator, session: session(ID, 0, T0) }
}

impl Rig {
    fn calls(&self) -> usize {
        self.grant.calls.load(Ordering::SeqCst)
    }

    async fn ask(&self, session: &Arc<Session>, demand: Demand) -> Freshened {
        self.coordinator.freshen(session.clone(), demand).await
    }

    async fn get(&self) -> Freshened {
        self.ask(&self.session, Demand::IfDue).await
    }

    async fn obtain(&self) -> Obtained {
        self.coordinator.obtain(self.session.clone(), &elsewhere("a")).await
    }

    /// The access token that goes upstream, and whether the browser gets a cookie.
    async fn token(&self) -> (String, bool) {
        used(&self.get().await)
    }
}

fn elsewhere(audience: &str) -> TokenTarget {
    TokenTarget { audience: Some(audience.to_owned()), ..TokenTarget::default() }
}

fn given(obtained: &Obtained) -> String {
    match obtained {
        Obtained::Token(token, Some(_)) => token.expose().to_owned(),
        other => panic!("no token, but {other:?}"),
    }
}

fn used(freshened: &Freshened) -> (String, bool) {
    match freshened {
        Freshened::Use { session, changed } => (session.access_token.expose().to_owned(), *changed),
        other => panic!("no token, but {other:?}"),
    }
}

fn new() -> (String, bool) {
    ("at-1".to_owned(), true)
}

fn old() -> (String, bool) {
    ("at-0".to_owned(), false)
}

fn down() -> Act {
    Act::Fail(ProviderError::Unavailable { reason: "http_503", retry_after: None })
}

async fn stampede(rig: &Rig, demand: Demand) {
    let mut requests = JoinSet::new();
    for _ in 0..50 {
        let (coordinator, session) = (rig.coordinator.clone(), rig.session.clone());
        requests.spawn(async move { coordinator.freshen(session, demand).await });
    }
    let answers = requests.join_all().await;
    assert_eq!(answers.iter().map(used).filter(|answer| *answer == new()).count(), 50);
    assert_eq!(rig.calls(), 1);
    assert_eq!(rig.told.joined.load(Ordering::SeqCst), 49);

    // The session is alive at the next expiry, whichever of the cookies the browser kept.
    rig.clock.advance(OVER);
    assert_eq!(rig.token().await, ("at-2".to_owned(), true));
    assert_eq!(rig.calls(), 2);
}

/// RFR-01.
#[tokio::test(start_paused = true)]
async fn fifty_requests_at_once_share_one_refresh() {
    stampede(&rig(OVER, []), Demand::IfDue).await;
}

/// RFR-01.
#[tokio::test(start_paused = true)]
async fn fifty_demands_for_a_newer_token_share_one_refresh() {
    stampede(&rig(secs(10), []), Demand::Now).await;
}

/// RFR-01: a provider that rotates at once and answers late.
#[tokio::test(start_paused = true)]
async fn fifty_requests_wait_for_a_provider_that_is_three_seconds_late() {
    stampede(&rig(OVER, [Act::Late(secs(3))]), Demand::IfDue).await;
}

/// RFR-01: the same with threads that do meet.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn requests_on_many_threads_share_one_refresh() {
    for _ in 0..20 {
        let rig = rig(OVER, []);
        let mut requests = JoinSet::new();
        for _ in 0..200 {
            let (coordinator, session) = (rig.coordinator.clone(), rig.session.clone());
            requests.spawn(async move { coordinator.freshen(session, Demand::IfDue).await });
        }
        assert!(requests.join_all().await.iter().all(|answer| used(answer) == new()));
        assert_eq!(rig.calls(), 1);
    }
}

/// RFR-03: the browser leaves after the provider rotated, and comes back with the cookie that it has.
#[tokio::test(start_paused = true)]
async fn a_refresh_survives_the_browser_that_left() {
    let gate = Arc::new(Notify::new());
    let rig = rig(OVER, [Act::Held(gate.clone())]);
    assert!(timeout(secs(1), rig.get()).await.is_err(), "the request is dropped while it waits");
    assert_eq!(rig.coordinator.stats().flights, 1);
    gate.notify_one();
    rig.coordinator.drain().await;
    assert_eq!(rig.token().await, new());
    assert_eq!(rig.calls(), 1);
    assert_eq!(rig.told.stale.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn drain_waits_for_what_is_in_the_air() {
    let gate = Arc::new(Notify::new());
    let rig = rig(OVER, [Act::Held(gate.clone())]);
    rig.coordinator.drain().await;
    let _ = timeout(secs(1), rig.get()).await;
    assert!(timeout(secs(1), rig.coordinator.drain()).await.is_err());
    gate.notify_one();
    rig.coordinator.drain().await;
    assert!(rig.coordinator.newest(ID).is_some());
}

/// A result that the store did not take is told as soon as it does, and the process stays for it.
#[tokio::test(start_paused = true)]
async fn drain_waits_for_results_that_are_yet_to_be_told() {
    let rig = rig(OVER, []);
    let store = Arc::new(Forgetful::default());
    rig.coordinator.replace_terms(Terms {
        settings: settings(),
        grant: rig.grant.clone(),
        handles: Arc::new(Names),
        observer: rig.told.clone(),
        shared: Some((store.clone(), OnError::Local)),
    });
    assert_eq!(rig.token().await, new());
    assert!(timeout(secs(5), rig.coordinator.drain()).await.is_err(), "the others know nothing yet");
    store.back.store(true, Ordering::SeqCst);
    rig.coordinator.drain().await;
    assert_eq!(store.settled.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_good_token_is_forwarded_without_a_trace() {
    let rig = rig(secs(10), []);
    assert_eq!(rig.token().await, old());
    assert_eq!((rig.calls(), rig.coordinator.stats()), (0, Stats::default()));
}

/// RFR-09: one request fetches the next token, the others go on with the good one.
#[tokio::test(start_paused = true)]
async fn an_early_refresh_holds_up_one_request_only() {
    let gate = Arc::new(Notify::new());
    let rig = rig(EARLY, [Act::Held(gate.clone())]);
    let (coordinator, session) = (rig.coordinator.clone(), rig.session.clone());
    let first = tokio::spawn(async move { coordinator.freshen(session, Demand::IfDue).await });
    while rig.calls() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.token().await, old());
    gate.notify_one();
    assert_eq!(used(&first.await.unwrap()), new());
    assert_eq!(rig.token().await, new());
    assert_eq!(rig.calls(), 1);
}

/// RFR-06: an outage never ends a session, however long.
#[tokio::test(start_paused = true)]
async fn an_outage_uses_the_good_token_and_then_says_so() {
    let rig = rig(EARLY, std::iter::repeat_with(down).take(9));
    assert_eq!(rig.token().await, old());
    assert_eq!(rig.calls(), 3, "one try and two more");
    assert_eq!(rig.token().await, old());
    assert_eq!(rig.calls(), 3, "not again within the pause");

    rig.clock.advance(secs(30));
    for _ in 0..2 {
        assert!(matches!(rig.get().await, Freshened::Unavailable { retry_after } if retry_after == secs(1)));
        assert!(matches!(rig.get().await, Freshened::Unavailable { .. }));
        rig.clock.advance(secs(1));
    }
    assert_eq!(rig.calls(), 9);
    assert_eq!(rig.token().await, new());
    assert_eq!(*rig.told.refreshes.lock(), ["retry", "retry", "retry", "ok"]);
    assert!(rig.told.ended.lock().is_empty());
}

/// RFR-06.
#[tokio::test(start_paused = true)]
async fn a_short_outage_is_bridged() {
    let rig = rig(OVER, [down(), down()]);
    assert_eq!(rig.token().await, new());
    assert_eq!((rig.calls(), rig.told.refreshes.lock().as_slice()), (3, ["ok"].as_slice()));
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_honoured_up_to_ten_seconds() {
    let busy = |secs| {
        let retry_after = Some(Duration::from_secs(secs));
        Act::Fail(ProviderError::Unavailable { reason: "http_429", retry_after })
    };
    let short = rig(OVER, [busy(4)]);
    let began = Instant::now();
    assert_eq!(short.token().await, new());
    assert_eq!(began.elapsed(), secs(4));

    let long = rig(OVER, [busy(3600)]);
    assert!(matches!(long.get().await, Freshened::Unavailable { retry_after } if retry_after == secs(10)));
    long.clock.advance(secs(9));
    assert!(matches!(long.get().await, Freshened::Unavailable { retry_after } if retry_after == secs(1)));
    assert_eq!(long.calls(), 1);
    long.clock.advance(secs(1));
    assert_eq!(long.token().await, new());

    let patient = rig_with(Settings { wait: secs(60), ..settings() }, OVER, [busy(30)]);
    let began = Instant::now();
    assert_eq!(patient.token().await, new());
    assert_eq!(began.elapsed(), secs(10));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_tried_once_more_with_the_same_token() {
    let lost = || Act::Fail(ProviderError::Ambiguous { reason: "connection_lost" });
    let once = rig(OVER, [lost()]);
    assert_eq!(once.token().await, new());
    assert_eq!(once.calls(), 2);

    let twice = rig(OVER, [lost(), lost()]);
    assert!(matches!(twice.get().await, Freshened::Unavailable { .. }));
    assert_eq!(twice.calls(), 2);
    assert_eq!(*twice.told.refreshes.lock(), ["ambiguous"]);

    // The provider did rotate, and forgives nothing: then, and only then, the session is over.
    let rotated = rig(OVER, [Act::Lose]);
    assert!(matches!(rotated.get().await, Freshened::Over { reason: EndReason::Dead("invalid_grant") }));
}

/// Found by the simulation: two lost answers in a row, and the next request after the leeway. The flight goes on by itself.
#[tokio::test(start_paused = true)]
async fn while_a_leeway_runs_an_unknown_outcome_is_tried_until_it_is_known() {
    let lost = || Act::Fail(ProviderError::Ambiguous { reason: "connection_lost" });
    let lenient = || Settings { leeway: secs(30), ..settings() };
    let rig = rig_with(lenient(), OVER, [lost(), lost(), lost()]);
    assert_eq!(rig.token().await, new());
    assert_eq!(rig.calls(), 4);

    let rig = rig_with(Settings { leeway: secs(20), ..settings() }, OVER, [Act::Hang, Act::Hang, Act::Answer]);
    assert!(matches!(rig.get().await, Freshened::Unavailable { .. }), "nobody waits for so long");
    rig.coordinator.drain().await;
    rig.clock.advance(secs(60));
    assert_eq!((rig.token().await, rig.calls()), (new(), 3));

    let rig = rig_with(lenient(), OVER, std::iter::repeat_with(lost).take(9));
    assert!(matches!(rig.get().await, Freshened::Unavailable { .. }));
    rig.coordinator.drain().await;
    assert_eq!(rig.calls(), 6, "but not for ever");
}

/// ASVS-15.4.3, ASVS-15.4.4.
#[tokio::test(start_paused = true)]
async fn a_provider_that_never_answers_holds_a_request_for_no_longer_than_wait() {
    let over = rig(OVER, [Act::Hang, Act::Hang]);
    let began = Instant::now();
    assert!(matches!(over.get().await, Freshened::Unavailable { .. }));
    assert_eq!(began.elapsed(), secs(10));
    over.coordinator.drain().await;
    assert_eq!((began.elapsed(), over.calls()), (secs(16), 2));

    let early = rig(EARLY, [Act::Hang, Act::Hang]);
    assert_eq!(early.token().await, old());
}

#[tokio::test(start_paused = true)]
async fn a_dead_token_is_remembered_and_told_once() {
    let dead = || Act::Fail(ProviderError::Dead { reason: "invalid_grant" });
    let rig = rig(OVER, [dead(), dead()]);
    for _ in 0..3 {
        assert!(matches!(rig.get().await, Freshened::Over { reason: EndReason::Dead("invalid_grant") }));
    }
    assert_eq!(rig.calls(), 1);
    rig.clock.advance(secs(10));
    assert!(matches!(rig.get().await, Freshened::Over { .. }));
    assert_eq!(rig.calls(), 2);
    assert_eq!(*rig.told.ended.lock(), [EndReason::Dead("invalid_grant")]);
}

/// RFR-04: an answer of somebody else ends the session; its tokens are not used.
#[tokio::test(start_paused = true)]
async fn a_mismatch_ends_the_session() {
    let rig = rig(EARLY, [Act::Fail(ProviderError::Invalid { reason: "sub" })]);
    assert!(matches!(rig.get().await, Freshened::Over { reason: EndReason::Mismatch("sub") }));
    assert!(rig.coordinator.is_ended(ID));
    rig.clock.advance(secs(3600));
    assert!(matches!(rig.get().await, Freshened::Over { reason: EndReason::Ended }));
    assert_eq!((rig.calls(), rig.told.ended.lock().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_refused_client_ends_no_session() {
    let refused = || Act::Fail(ProviderError::Refused { reason: "invalid_client" });
    let over = rig(OVER, [refused()]);
    for _ in 0..2 {
        assert!(matches!(over.get().await, Freshened::Refused));
    }
    assert_eq!(over.calls(), 1);
    over.clock.advance(secs(1));
    assert_eq!(over.token().await, new());

    let early = rig(EARLY, [refused()]);
    assert_eq!(early.token().await, old());
}

#[tokio::test(start_paused = true)]
async fn a_demand_for_a_newer_token_is_not_met_by_the_old_one() {
    let rig = rig(secs(10), [down(), down(), down()]);
    assert!(matches!(rig.ask(&rig.session, Demand::Now).await, Freshened::Unavailable { .. }));
    assert_eq!(rig.token().await, old());
}

#[tokio::test(start_paused = true)]
async fn a_logout_while_a_refresh_is_in_the_air_stops_its_cookie() {
    let gate = Arc::new(Notify::new());
    let rig = rig(OVER, [Act::Held(gate.clone())]);
    let (coordinator, session) = (rig.coordinator.clone(), rig.session.clone());
    let request = tokio::spawn(async move { coordinator.freshen(session, Demand::IfDue).await });
    while rig.calls() == 0 {
        tokio::task::yield_now().await;
    }
    rig.coordinator.end(ID, rig.clock.now() + secs(3600));
    gate.notify_one();
    assert!(matches!(request.await.unwrap(), Freshened::Over { reason: EndReason::Ended }));
    assert!(matches!(rig.get().await, Freshened::Over { reason: EndReason::Ended }));
    assert_eq!(rig.coordinator.newest(ID), None);
    assert!(rig.told.ended.lock().is_empty(), "the logout told it");
}

/// The same where the old token would still be good and the provider says nothing.
#[tokio::test(start_paused = true)]
async fn a_logout_while_a_refresh_is_waited_for_stops_the_good_token_too() {
    let impatient = Settings { wait: secs(1), ..settings() };
    let rig = rig_with(impatient, EARLY, [Act::Held(Arc::new(Notify::new()))]);
    let (coordinator, session) = (rig.coordinator.clone(), rig.session.clone());
    let request = tokio::spawn(async move { coordinator.freshen(session, Demand::IfDue).await });
    while rig.calls() == 0 {
        tokio::task::yield_now().await;
    }
    rig.coordinator.end(ID, rig.clock.now() + secs(3600));
    assert!(matches!(request.await.unwrap(), Freshened::Over { reason: EndReason::Ended }));
}

/// ASVS-15.4.3.
#[tokio::test(start_paused = true)]
async fn a_panic_in_a_flight_leaves_nobody_waiting() {
    let rig = rig(OVER, [Act::Panic]);
    assert!(matches!(rig.get().await, Freshened::Unavailable { .. }));
    rig.coordinator.drain().await;
    rig.clock.advance(secs(1));
    assert_eq!(rig.token().await, new());
}

#[tokio::test(start_paused = true)]
async fn a_session_without_a_refresh_token_ends_with_its_access_token() {
    let rig = rig(EARLY, []);
    let session = Arc::new(Session { refresh_token: None, ..Session::clone(&rig.session) });
    assert_eq!(used(&rig.ask(&session, Demand::IfDue).await), old());
    assert!(matches!(rig.ask(&session, Demand::Now).await, Freshened::Exhausted { .. }));
    rig.clock.advance(secs(30));
    for _ in 0..2 {
        assert!(matches!(rig.ask(&session, Demand::IfDue).await, Freshened::Over { reason: EndReason::Expired }));
    }
    assert_eq!((rig.calls(), rig.told.ended.lock().as_slice()), (0, [EndReason::Expired].as_slice()));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_asks_for_any_more_is_swept() {
    let rig = rig(OVER, []);
    rig.token().await;
    assert_eq!(rig.coordinator.stats().entries, 1);
    rig.clock.advance(settings().recovery);
    rig.coordinator.sweep();
    assert_eq!(rig.coordinator.stats(), Stats::default());
}

/// A provider that is gone is left alone, one that is back is found; and nothing of it ends a session.
#[tokio::test(start_paused = true)]
async fn a_provider_that_answers_nobody_is_spared() {
    let rig = rig(OVER, std::iter::repeat_with(down).take(15));
    let sessions: Vec<_> = (0..20).map(|n| session(SessionId([n; 16]), 0, T0)).collect();
    for session in &sessions {
        assert!(matches!(rig.ask(session, Demand::IfDue).await, Freshened::Unavailable { .. }));
    }
    assert_eq!(rig.calls(), 13, "four sessions tried three times each, the fifth opened it");
    assert_eq!(*rig.told.spared.lock(), [true]);
    let early = Arc::new(Session { access_expires: Some(rig.clock.now() + secs(20)), ..Session::clone(&sessions[0]) });
    assert_eq!(used(&rig.ask(&early, Demand::IfDue).await), old(), "a good token is used");

    // Two probes more fail; the pause doubles.
    for (pause, calls) in [(1, 14), (2, 15)] {
        tokio::time::advance(secs(pause)).await;
        rig.clock.advance(secs(30));
        assert!(matches!(rig.ask(&sessions[0], Demand::IfDue).await, Freshened::Unavailable { .. }));
        assert!(matches!(rig.ask(&sessions[1], Demand::IfDue).await, Freshened::Unavailable { .. }));
        assert_eq!(rig.calls(), calls);
    }
    tokio::time::advance(secs(4)).await;
    rig.clock.advance(secs(30));
    assert_eq!(used(&rig.ask(&sessions[2], Demand::IfDue).await), new());
    assert_eq!(*rig.told.spared.lock(), [true, false]);
    assert!(rig.told.ended.lock().is_empty());
}

/// DOS-13, ASVS-15.4.4: ten thousand wait, the next ones are told to come again, and nothing is started for them.
#[tokio::test(start_paused = true)]
async fn ten_thousand_wait_and_no_more() {
    let rig = rig(OVER, std::iter::repeat_with(|| Act::Hang).take(WAITERS));
    let id = |n: usize| SessionId((n as u128).to_be_bytes());
    let mut waiting = JoinSet::new();
    for n in 0..WAITERS {
        let (coordinator, session) = (rig.coordinator.clone(), session(id(n), 0, T0));
        waiting.spawn(async move { coordinator.freshen(session, Demand::IfDue).await });
    }
    while rig.coordinator.stats().flights < WAITERS || rig.calls() < TRIES_AT_ONCE {
        tokio::task::yield_now().await;
    }
    for n in WAITERS..WAITERS + 50 {
        let answer = rig.ask(&session(id(n), 0, T0), Demand::IfDue).await;
        assert!(matches!(answer, Freshened::Unavailable { retry_after } if retry_after == secs(1)));
    }
    // One more that would join is turned away as well; one whose token is good goes on.
    assert!(matches!(rig.ask(&session(id(0), 0, T0), Demand::IfDue).await, Freshened::Unavailable { .. }));
    let good = Arc::new(Session { access_expires: Some(rig.clock.now() + secs(9)), ..Session::clone(&rig.session) });
    assert_eq!(used(&rig.ask(&good, Demand::IfDue).await), old());
    assert_eq!(rig.coordinator.stats().flights, WAITERS);
    assert_eq!(rig.calls(), TRIES_AT_ONCE, "so many calls at once");
    waiting.shutdown().await;
}

// -- Tokens that are not the session's -----------------------------------------------------------------------------

/// What a token for something else costs stays in the family: the session has the next refresh token, and its access token
/// as before.
#[tokio::test(start_paused = true)]
async fn a_token_for_something_else_leaves_the_session_its_own() {
    let rig = rig(secs(10), []);
    assert_eq!(given(&rig.obtain().await), "other-1");
    // The cookie of before still works, and is replaced.
    assert_eq!(rig.token().await, ("at-0".to_owned(), true));
    let newest = rig.coordinator.outgoing(&rig.session, secs(0)).unwrap();
    assert_eq!((newest.generation, newest.refresh_token.as_ref().unwrap().unpack().unwrap().as_str()), (1, "rt-1"));
    assert!(newest.shares_access(&rig.session));
    // Nobody is told of a refresh that was none.
    assert!(rig.told.refreshes.lock().is_empty());

    rig.clock.advance(OVER);
    assert_eq!(rig.token().await, ("at-2".to_owned(), true));
    assert_eq!((rig.calls(), rig.told.ended.lock().len()), (2, 0));
}

/// RFR-01: a provider that rotates strictly is never shown a token twice, whatever it is asked for.
#[tokio::test(start_paused = true)]
async fn whatever_spends_the_refresh_token_stands_in_one_line() {
    let rig = rig(OVER, [Act::Late(secs(1)), Act::Late(secs(1)), Act::Answer, Act::Late(secs(1))]);
    let mut tasks = JoinSet::new();
    for n in 0..40 {
        let (coordinator, session) = (rig.coordinator.clone(), rig.session.clone());
        tasks.spawn(async move {
            match n % 4 {
                0 => given(&coordinator.obtain(session, &elsewhere("a")).await),
                1 if n < 10 => given(&coordinator.obtain(session, &elsewhere("b")).await),
                2 => used(&coordinator.freshen(session, Demand::Now).await).0,
                _ => used(&coordinator.freshen(session, Demand::IfDue).await).0,
            }
        });
    }
    let tokens = tasks.join_all().await;
    let fresh = tokens.iter().filter(|token| token.starts_with("at-") && *token != "at-0").count();
    assert_eq!((fresh, tokens.iter().filter(|token| token.starts_with("other-")).count()), (27, 13));
    assert!(rig.told.ended.lock().is_empty());
    assert_eq!(rig.told.refreshes.lock().as_slice(), ["ok"], "one refresh for the session");
}

/// Who wants a newer token and met a flight for something else gets one all the same.
#[tokio::test(start_paused = true)]
async fn a_demand_for_a_newer_token_is_not_met_by_another_one_s_flight() {
    for act in [Act::Late(secs(1)), Act::Keep] {
        let rig = rig(secs(10), [act]);
        let (coordinator, session) = (rig.coordinator.clone(), rig.session.clone());
        let other = tokio::spawn(async move { coordinator.obtain(session, &elsewhere("a")).await });
        while rig.coordinator.stats().flights == 0 {
            tokio::task::yield_now().await;
        }
        let (token, changed) = used(&rig.ask(&rig.session, Demand::Now).await);
        assert!(changed && token.starts_with("at-") && token != "at-0", "{token}");
        assert_eq!(given(&other.await.unwrap()), "other-1");
        assert_eq!(rig.calls(), 2);
    }
}

/// A provider that does not rotate: no new generation, so no cookie.
#[tokio::test(start_paused = true)]
async fn a_token_that_costs_nothing_changes_nothing() {
    let rig = rig(secs(10), [Act::Keep, Act::Keep]);
    assert_eq!((given(&rig.obtain().await), given(&rig.obtain().await)), ("other-1".into(), "other-1".into()));
    assert_eq!(rig.token().await, old());
    assert_eq!((rig.coordinator.newest(ID), rig.coordinator.stats()), (None, Stats::default()));
}

/// What the provider says of another token is not said of the session.
#[tokio::test(start_paused = true)]
async fn a_token_that_is_not_to_be_had_ends_no_session() {
    for error in [
        ProviderError::Dead { reason: "invalid_grant" },
        ProviderError::Refused { reason: "invalid_target" },
        ProviderError::Unavailable { reason: "server_error", retry_after: Some(secs(9)) },
    ] {
        let tries = if matches!(error, ProviderError::Unavailable { .. }) { 3 } else { 1 };
        let rig = rig(OVER, std::iter::repeat_with(|| Act::Fail(error.clone())).take(tries));
        let failed = rig.obtain().await;
        assert!(matches!(&failed, Obtained::Failed(told) if told.reason() == error.reason()), "{failed:?}");
        // At once, without a pause for what was not its failure.
        assert_eq!(rig.token().await, new());
        assert!(rig.told.ended.lock().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_somebody_else_ends_the_session_whatever_it_was_for() {
    let rig = rig(secs(10), [Act::Fail(ProviderError::Invalid { reason: "sub" })]);
    assert!(matches!(rig.obtain().await, Obtained::Over(EndReason::Mismatch("sub"))));
    assert!(rig.coordinator.is_ended(ID));
}

/// The session is ended while the token is on its way: nobody gets it.
#[tokio::test(start_paused = true)]
async fn a_logout_stops_a_token_for_something_else() {
    let gate = Arc::new(Notify::new());
    let rig = rig(secs(10), [Act::Held(gate.clone())]);
    let (coordinator, session) = (rig.coordinator.clone(), rig.session.clone());
    let asked = tokio::spawn(async move { coordinator.obtain(session, &elsewhere("a")).await });
    while rig.calls() == 0 {
        tokio::task::yield_now().await;
    }
    rig.coordinator.end(ID, rig.clock.now() + secs(3600));
    gate.notify_one();
    assert!(matches!(asked.await.unwrap(), Obtained::Over(EndReason::Ended)));
}

/// RFR-03: the browser leaves; what the token cost is not lost.
#[tokio::test(start_paused = true)]
async fn a_token_for_something_else_survives_the_browser_that_left() {
    let gate = Arc::new(Notify::new());
    let rig = rig(secs(10), [Act::Held(gate.clone())]);
    assert!(timeout(secs(1), rig.obtain()).await.is_err(), "the request is dropped while it waits");
    gate.notify_one();
    rig.coordinator.drain().await;
    rig.clock.advance(OVER);
    assert_eq!(rig.token().await, ("at-2".to_owned(), true));
}

#[tokio::test(start_paused = true)]
async fn without_a_refresh_token_there_is_no_other_token() {
    let rig = rig(secs(10), []);
    let session = Arc::new(Session { refresh_token: None, ..Session::clone(&rig.session) });
    assert!(matches!(rig.coordinator.obtain(session, &elsewhere("a")).await, Obtained::Exhausted));
    assert_eq!(rig.calls(), 0);
}
