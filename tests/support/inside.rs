//! The gateway inside the test's own process, with a clock that the test moves: expiries need no sleep.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sidegate::app::Assembly;
use sidegate::clock::{Clock, Timestamp};
use sidegate::config::{self, Surroundings};
use sidegate::metrics::Metrics;
use sidegate::net::ListenAddress;
use sidegate::shutdown::Shutdown;
use tokio::sync::watch;
use toml::Table;

use super::client::Browser;
use super::gateway::{config as smallest, metric_in};
use super::provider::{ProviderDouble, Rotation};
use super::text;
use super::upstream::Upstream;
use super::wait::eventually;

/// A gateway in this process. Its tasks end with the test's runtime.
#[derive(Debug)]
pub struct Inside {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Where other proxies ask, if it is on.
    pub verify: Option<SocketAddr>,
    /// What browsers call it.
    pub public_url: String,
    /// Its configuration.
    pub config: Table,
    pub shutdown: Arc<Shutdown>,
    clock: Clock,
    metrics: Arc<Metrics>,
    _stop: watch::Sender<bool>,
}

impl Inside {
    /// With the smallest configuration: `/api/` needs a session, `/opt/` may have one, `/` is public.
    pub async fn start(provider: &ProviderDouble, upstream: &Upstream) -> Self {
        Self::start_with(provider, upstream, |_| {}).await
    }

    /// The same, with changes to the configuration.
    pub async fn start_with(provider: &ProviderDouble, upstream: &Upstream, change: impl FnOnce(&mut Table)) -> Self {
        let mut table = smallest(provider, upstream);
        change(&mut table);
        provider.register(table["server"]["public_url"].as_str().expect("a URL"));
        Self::run(table).await
    }

    /// With this configuration, which has to be a good one.
    pub async fn run(table: Table) -> Self {
        let around =
            Surroundings { text: Some(("the test's configuration", table.to_string())), ..Surroundings::default() };
        let config = match config::load_in(&[], &around) {
            Ok(config) => config,
            Err(problems) => panic!("{problems:#?}"),
        };
        let clock = Clock::manual(Timestamp::from_secs(text::now().try_into().expect("after 1970")));
        let shutdown = Shutdown::new(Duration::ZERO, Duration::from_secs(5));
        let reload = Arc::new(move || config::read_in(&[], &around));
        let mut assembly = Assembly::new(config, &clock, &shutdown, reload).expect("a gateway");
        let ListenAddress::Tcp(addr) = assembly.addresses()[0].clone() else { panic!("a TCP listener first") };
        let verify = match assembly.verify_address() {
            Some(ListenAddress::Tcp(addr)) => Some(*addr),
            _ => None,
        };
        let metrics = assembly.metrics();
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(async move { assembly.serve(stopped).await });
        let public_url = table["server"]["public_url"].as_str().expect("a URL").to_owned();
        Self { addr, verify, public_url, config: table, shutdown, clock, metrics, _stop: stop }
    }

    /// Moves the gateway's clock and the provider's.
    pub fn advance(&self, provider: &ProviderDouble, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
        provider.advance(seconds.try_into().expect("a sane time"));
    }

    /// Catches up with the provider's clock, which goes on while this one stands: for tests of many steps, on machines
    /// of which nobody knows how slow they are.
    pub fn catch_up(&self, provider: &ProviderDouble) {
        let now = Timestamp::from_secs(provider.now().try_into().expect("after 1970"));
        self.clock.advance(now.since(self.clock.now()));
    }

    /// A browser with an empty jar.
    pub fn browser(&self) -> Browser {
        Browser::behind(&self.public_url, self.addr)
    }

    /// A browser after a login.
    pub async fn signed_in(&self) -> Browser {
        let browser = self.browser();
        let page = browser.login("/").await;
        assert_eq!(page.status, 200, "{page:?}");
        assert_eq!(browser.session().await["authenticated"], true, "the login did not take: {page:?}");
        browser
    }

    /// Waits until the sum of a metric's series is this or more: what it counts has no other sign.
    pub async fn reaches(&self, name: &str, value: f64) {
        let reached = eventually(async || self.metric(name, &[]) >= value).await;
        assert!(reached, "{name} stays at {}", self.metric(name, &[]));
    }

    /// The sum of a metric's series that have these labels.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        metric_in(&self.metrics.render(), name, labels)
    }
}

/// A gateway, and what stands before and behind it. Tests give it more methods of their own.
#[derive(Debug)]
pub struct Rig {
    pub provider: ProviderDouble,
    pub upstream: Upstream,
    pub gateway: Inside,
}

impl Rig {
    /// With the smallest configuration.
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// With changes to the configuration.
    pub async fn with(change: impl FnOnce(&mut Table)) -> Self {
        Self::prepared(|_| {}, |config, _| change(config)).await
    }

    /// Before a provider that ends the whole session when a refresh token comes twice.
    pub async fn strict(change: impl FnOnce(&mut Table)) -> Self {
        Self::prepared(|provider| provider.set(|s| s.rotation = Rotation::Family), |config, _| change(config)).await
    }

    /// With the provider prepared first, and changes to the configuration, which may name the upstream.
    pub async fn prepared(prepare: impl FnOnce(&ProviderDouble), change: impl FnOnce(&mut Table, &str)) -> Self {
        let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
        prepare(&provider);
        let gateway = Inside::start_with(&provider, &upstream, |config| change(config, &upstream.url())).await;
        Self { provider, upstream, gateway }
    }
}
