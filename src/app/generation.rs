//! From a configuration to what requests are decided by: the first time, and again at every reload.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::HeaderValue;

use super::replicas;
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::crypto::random;
use crate::gateway::attempts::Attempts;
use crate::gateway::ends::Ends;
use crate::gateway::state::{Parts, Shared, State};
use crate::metrics::{EndReason, Metrics, ProviderEndpoint, RefreshOutcome};
use crate::oidc::{self, Provider, Providers};
use crate::refresh::coordinator::{Coordinator, Handles, Observer, Terms};
use crate::refresh::policy;
use crate::session::jar::Jar;
use crate::session::model::{Handle, Session};
use crate::session::vault::{Keeping, Vault};
use crate::spans::{self, Kind, Span, Tracer};
use crate::store::Store;
use crate::telemetry::{SubHasher, audit};

/// The first generation, with all that lives as long as the process.
///
/// # Errors
/// A sentence that names the file that cannot be used.
pub(super) fn first(
    config: &Config,
    clock: &Clock,
    metrics: Arc<Metrics>,
    store: Option<&Arc<Store>>,
) -> Result<State, String> {
    let providers = providers(config, clock, &metrics, None)?;
    let vault = vault(Jar::new(config.session.clone(), config.keyring.clone()), clock, store);
    let sub_hasher = Arc::new(SubHasher::new(random::bytes()));
    let first = terms(config, &providers, &vault, &metrics, &sub_hasher, clock, store);
    let refresh = Coordinator::with_terms(first, clock.clone());
    let ends = Ends::new(
        Arc::clone(vault.jar()),
        Arc::clone(&refresh),
        Arc::clone(&metrics),
        Arc::clone(&sub_hasher),
        clock.clone(),
    );
    if let Some(store) = store {
        ends.share(Arc::clone(store) as _);
    }
    let via = format!("1.1 sidegate-{}", random::base64url::<6>());
    let shared = Shared {
        refresh,
        ends: Arc::new(ends),
        attempts: Arc::new(Attempts::among_replicas(store.map(|store| Arc::clone(store) as _))),
        nonces: Arc::default(),
        brought: Arc::default(),
        own_tokens: Arc::default(),
        metrics,
        clock: clock.clone(),
        sub_hasher,
        tracer: Tracer::new(clock.clone()),
        streams: Arc::default(),
        uses: Arc::default(),
        leaving: Arc::default(),
        names: Arc::default(),
        spares: Arc::default(),
        limiters: Arc::default(),
        via: HeaderValue::try_from(via).unwrap_or(HeaderValue::from_static("1.1 sidegate")),
    };
    State::new(config.gateway.clone(), Parts { vault, providers }, shared)
}

/// A generation that is ready to be put in place of another one.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) state: State,
    pub(super) terms: Terms,
}

/// The generation after `old`. Changes nothing yet, and calls nobody.
///
/// # Errors
/// As [`first`].
pub(super) fn next(config: &Config, old: &State, store: Option<&Arc<Store>>) -> Result<Next, String> {
    let providers = providers(config, &old.clock, &old.metrics, Some(&old.providers))?;
    let vault = vault(old.jar.renewed(config.session.clone(), config.keyring.clone()), &old.clock, store);
    let terms = terms(config, &providers, &vault, &old.metrics, &old.sub_hasher, &old.clock, store);
    let parts = Parts { vault, providers };
    Ok(Next { state: State::new(config.gateway.clone(), parts, old.shared.clone())?, terms })
}

/// All providers; those that were there before go on with what they know.
fn providers(
    config: &Config,
    clock: &Clock,
    metrics: &Arc<Metrics>,
    old: Option<&Arc<Providers>>,
) -> Result<Arc<Providers>, String> {
    let made = |settings: &oidc::Settings, known: Option<&Arc<Provider>>| {
        let provider = match known {
            Some(known) => known.renewed(settings.clone()),
            None => Provider::new(settings.clone(), clock.clone(), observer(metrics, clock)),
        };
        provider.map_err(|error| error.to_string())
    };
    let one = |settings: &oidc::Settings| made(settings, old.and_then(|old| old.of_key(settings.key())));
    let service = |(name, settings): &(String, oidc::Settings)| {
        let known = old.and_then(|old| old.service(name));
        made(settings, known).map(|provider| (name.clone(), provider))
    };
    let services = config.services.iter().map(service).collect::<Result<Vec<_>, _>>()?;
    let more = config.more_oidc.iter().map(one).collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(Providers::new(one(&config.oidc)?, more).with_services(services)))
}

/// Hears of every call to a provider.
fn observer(metrics: &Arc<Metrics>, clock: &Clock) -> oidc::Observer {
    let (metrics, timer) = (Arc::clone(metrics), clock.clone());
    Box::new(move |endpoint: &'static str, took| {
        if let Some(caller) = spans::current() {
            let began = timer.now() - took;
            Span::new(&caller.child(), format!("provider {endpoint}"), Kind::Client, began, took).end();
        }
        if let Some(known) = ProviderEndpoint::ALL.iter().find(|known| known.as_str() == endpoint) {
            metrics.observe_provider(*known, took);
        }
    })
}

/// Where sessions are kept.
fn vault(jar: Jar, clock: &Clock, store: Option<&Arc<Store>>) -> Arc<Vault> {
    Arc::new(Vault::new(Arc::new(jar), store.map(|store| Arc::clone(store) as _), clock.clone()))
}

fn terms(
    config: &Config,
    providers: &Arc<Providers>,
    vault: &Arc<Vault>,
    metrics: &Arc<Metrics>,
    sub_hasher: &Arc<SubHasher>,
    clock: &Clock,
    store: Option<&Arc<Store>>,
) -> Terms {
    let told = Told {
        metrics: Arc::clone(metrics),
        sub_hasher: Arc::clone(sub_hasher),
        session: config.session.clone(),
        clock: clock.clone(),
    };
    Terms {
        settings: config.refresh.clone(),
        grant: Arc::clone(providers) as _,
        handles: Arc::clone(vault) as _,
        observer: Arc::new(told),
        shared: replicas::shared(config, store),
    }
}

impl Handles for Vault {
    fn handle(&self, session: &Session) -> Option<Handle> {
        self.jar().handle(session)
    }

    fn index_key(&self, now: Timestamp) -> u16 {
        self.jar().sealing_key_id(now)
    }

    fn seal_result(&self, spent: &Session, handle: Handle, next: &Session) -> Option<Vec<u8>> {
        self.jar().seal_result(spent, handle, next)
    }

    fn open_result(&self, spent: &Session, handle: Handle, sealed: &[u8]) -> Option<Session> {
        self.jar().open_result(spent, handle, sealed)
    }

    fn keep(&self, next: Session) -> BoxFuture<'_, Keeping> {
        Box::pin(Self::keep(self, next))
    }
}

/// Hears of refreshes, for metrics and audit.
struct Told {
    metrics: Arc<Metrics>,
    sub_hasher: Arc<SubHasher>,
    session: crate::session::Settings,
    clock: Clock,
}

impl Told {
    fn origin(&self, session: &Session) -> audit::Origin<'static> {
        audit::Origin {
            sub_hash: Some(
                self.sub_hasher.hash(self.session.issuer_of(session.provider).unwrap_or_default(), &session.subject),
            ),
            ..audit::Origin::default()
        }
    }
}

impl Observer for Told {
    fn refreshed(&self, session: &Session, outcome: &'static str, reason: &'static str, took: Duration) {
        if let Some(known) = RefreshOutcome::ALL.iter().find(|known| known.as_str() == outcome) {
            self.metrics.observe_refresh(*known, took);
        }
        if let Some(context) = spans::current() {
            Span::new(&context, "refresh", Kind::Internal, self.clock.now() - took, took)
                .with("sidegate.outcome", outcome)
                .failed(outcome != RefreshOutcome::Ok.as_str())
                .end();
        }
        let reason = (outcome != RefreshOutcome::Ok.as_str()).then_some(reason);
        audit::refresh(&self.origin(session), outcome, reason);
    }

    fn accompany(&self, flight: BoxFuture<'static, ()>) -> BoxFuture<'static, ()> {
        match spans::current() {
            Some(request) => Box::pin(spans::within(Some(request.child()), flight)),
            None => flight,
        }
    }

    fn joined(&self) {
        self.metrics.observe_refresh_joined();
    }

    fn stale_cookie(&self) {
        self.metrics.observe_stale_cookie();
    }

    fn cookie_reuse(&self) {
        self.metrics.observe_cookie_reuse();
    }

    fn session_ended(&self, session: &Session, reason: policy::EndReason) {
        if let Some(known) = EndReason::ALL.iter().find(|known| known.as_str() == reason.word()) {
            self.metrics.observe_session_ended(*known);
        }
        audit::session_ended(&self.origin(session), reason.word());
    }

    fn spared(&self, spared: bool) {
        if spared {
            tracing::warn!(target: "sidegate", event = "provider_spared", "five sessions in a row had no answer");
        } else {
            tracing::info!(target: "sidegate", event = "provider_answers");
        }
    }
}
