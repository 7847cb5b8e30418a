//! From a configuration to what requests are decided by: the first time, and again at every reload.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::crypto::random;
use crate::gateway::attempts::Attempts;
use crate::gateway::ends::Ends;
use crate::gateway::state::{Parts, Shared, State};
use crate::metrics::{EndReason, Metrics, ProviderEndpoint, RefreshOutcome};
use crate::oidc::Provider;
use crate::refresh::coordinator::{Coordinator, Handles, Observer, Terms};
use crate::refresh::policy;
use crate::session::jar::Jar;
use crate::session::model::{Handle, Session};
use crate::telemetry::{SubHasher, audit};

/// The first generation, with all that lives as long as the process.
///
/// # Errors
/// A sentence that names the file that cannot be used.
pub(super) fn first(config: &Config, clock: &Clock) -> Result<State, String> {
    let metrics = Metrics::new();
    let provider = {
        let metrics = Arc::clone(&metrics);
        let observer = move |endpoint: &'static str, took| {
            if let Some(known) = ProviderEndpoint::ALL.iter().find(|known| known.as_str() == endpoint) {
                metrics.observe_provider(*known, took);
            }
        };
        Provider::new(config.oidc.clone(), clock.clone(), Box::new(observer)).map_err(|error| error.to_string())?
    };
    let jar = Arc::new(Jar::new(config.session.clone(), config.keyring.clone()));
    let sub_hasher = Arc::new(SubHasher::new(random::bytes()));
    let refresh = Coordinator::with_terms(terms(config, &provider, &jar, &metrics, &sub_hasher), clock.clone());
    let ends =
        Ends::new(Arc::clone(&jar), Arc::clone(&refresh), Arc::clone(&metrics), Arc::clone(&sub_hasher), clock.clone());
    let via = format!("1.1 sidegate-{}", random::base64url::<6>());
    let shared = Shared {
        refresh,
        ends: Arc::new(ends),
        attempts: Arc::new(Attempts::default()),
        nonces: Arc::default(),
        brought: Arc::default(),
        metrics,
        clock: clock.clone(),
        sub_hasher,
        via: HeaderValue::try_from(via).unwrap_or(HeaderValue::from_static("1.1 sidegate")),
    };
    State::new(config.gateway.clone(), Parts { jar, provider, names: Vec::new() }, shared)
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
pub(super) fn next(config: &Config, old: &State) -> Result<Next, String> {
    let provider = old.provider.renewed(config.oidc.clone()).map_err(|error| error.to_string())?;
    let jar = Arc::new(old.jar.renewed(config.session.clone(), config.keyring.clone()));
    let terms = terms(config, &provider, &jar, &old.metrics, &old.sub_hasher);
    let parts = Parts { jar, provider, names: old.names() };
    Ok(Next { state: State::new(config.gateway.clone(), parts, old.shared.clone())?, terms })
}

fn terms(
    config: &Config,
    provider: &Arc<Provider>,
    jar: &Arc<Jar>,
    metrics: &Arc<Metrics>,
    sub_hasher: &Arc<SubHasher>,
) -> Terms {
    let told =
        Told { metrics: Arc::clone(metrics), sub_hasher: Arc::clone(sub_hasher), issuer: config.oidc.issuer.clone() };
    Terms {
        settings: config.refresh.clone(),
        grant: Arc::clone(provider) as _,
        handles: Arc::clone(jar) as _,
        observer: Arc::new(told),
        shared: None,
    }
}

impl Handles for Jar {
    fn handle(&self, session: &Session) -> Option<Handle> {
        Self::handle(self, session)
    }

    fn index_key(&self, now: Timestamp) -> u16 {
        self.sealing_key_id(now)
    }
}

/// Hears of refreshes, for metrics and audit.
struct Told {
    metrics: Arc<Metrics>,
    sub_hasher: Arc<SubHasher>,
    issuer: String,
}

impl Told {
    fn origin(&self, session: &Session) -> audit::Origin<'static> {
        audit::Origin {
            sub_hash: Some(self.sub_hasher.hash(&self.issuer, &session.subject)),
            ..audit::Origin::default()
        }
    }
}

impl Observer for Told {
    fn refreshed(&self, session: &Session, outcome: &'static str, reason: &'static str, took: Duration) {
        if let Some(known) = RefreshOutcome::ALL.iter().find(|known| known.as_str() == outcome) {
            self.metrics.observe_refresh(*known, took);
        }
        let reason = (outcome != RefreshOutcome::Ok.as_str()).then_some(reason);
        audit::refresh(&self.origin(session), outcome, reason);
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
