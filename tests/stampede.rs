//! The three stampedes before real processes that share a Redis, in every store and layout: fifty requests at once, a
//! provider that has spent the token and answers 3 s late, a client that leaves and comes back to another process. Every
//! request gets a live token, each refresh token is spent once, and the session lives on.
//!
//! `tests/refresh.rs` has them for one process, with a clock that the test moves.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use std::collections::HashSet;
use std::time::Duration;

use support::client::{Ask, Browser, Response};
use support::gateway::{Gateway, config, free_port, set};
use support::provider::{ExpiresIn, Outage, ProviderDouble, Rotation};
use support::redis::Redis;
use support::upstream::Upstream;
use support::wait::{eventually, until};
use tokio::task::JoinSet;

const PROCESSES: usize = 3;

struct Replicas {
    provider: ProviderDouble,
    _upstream: Upstream,
    _redis: Redis,
    gateways: Vec<Gateway>,
}

impl Replicas {
    /// Before a provider that ends the whole session when a refresh token comes twice.
    async fn start(settings: &[(&str, &str)]) -> Self {
        let (provider, upstream, redis) =
            (ProviderDouble::start().await, Upstream::start().await, Redis::start().await);
        provider.set(|s| {
            s.rotation = Rotation::Family;
            // To be waited for; a slow machine does not make them dead.
            s.expires_in = ExpiresIn::Json("4".to_owned());
        });
        let mut table = config(&provider, &upstream);
        set(&mut table, "redis.url", &format!("{:?}", redis.unix_url()));
        // Patient, for machines of which nobody knows how slow they are.
        for (key, value) in [("redis.timeout", "\"5s\""), ("refresh.timeout", "\"20s\""), ("refresh.wait", "\"25s\"")] {
            set(&mut table, key, value);
        }
        for (key, value) in settings {
            set(&mut table, key, value);
        }
        provider.register(table["server"]["public_url"].as_str().unwrap());
        let mut gateways = vec![Gateway::run(&table)];
        while gateways.len() < PROCESSES {
            set(&mut table, "server.listen", &format!("\"127.0.0.1:{}\"", free_port()));
            set(&mut table, "admin.listen", &format!("\"127.0.0.1:{}\"", free_port()));
            gateways.push(Gateway::run(&table));
        }
        for gateway in &gateways {
            gateway.wait_until_ready().await;
            gateway.reaches("sidegate_redis_up", 1.0).await;
        }
        Self { provider, _upstream: upstream, _redis: redis, gateways }
    }

    /// Waits until the access token is over, by the gateway's clock.
    async fn expiry(&self, browser: &Browser) {
        until("the access token has ended", async || {
            let session = browser.session().await;
            session["now"].as_u64().unwrap() > session["access_token_expires_at"].as_u64().unwrap()
        })
        .await;
    }

    /// So many requests at once, each to the next process.
    fn burst(&self, browser: &Browser, count: usize) -> JoinSet<Response> {
        let mut requests = JoinSet::new();
        for gateway in self.gateways.iter().cycle().take(count) {
            let tab = browser.at(gateway.addr);
            requests.spawn(async move { tab.fetch("/api/x").await });
        }
        requests
    }

    /// Requests that wait for a refresh that another one began, or have waited; of all processes.
    async fn joined(&self) -> f64 {
        let mut sum = 0.0;
        for gateway in &self.gateways {
            sum += gateway.metric("sidegate_refresh_joined_total", &[]).await;
        }
        sum
    }

    async fn wait_for_joined(&self, wanted: f64) {
        let all = eventually(async || self.joined().await >= wanted).await;
        assert!(all, "{} instead of {wanted} wait", self.joined().await);
    }

    fn assert_all_live(&self, what: &str, answers: &[Response]) {
        for answer in answers {
            let live = answer.status == 200
                && answer.json()["token"].as_str().is_some_and(|token| self.provider.is_active(token));
            assert!(live, "{what}: {answer:?}");
        }
    }

    fn assert_each_token_spent_once(&self, what: &str) {
        let calls = self.provider.calls();
        let tokens: Vec<&str> =
            calls.iter().filter(|call| call.is_refresh()).filter_map(|call| call.param("refresh_token")).collect();
        let different: HashSet<&&str> = tokens.iter().collect();
        assert_eq!((tokens.len(), self.provider.reuse_alarms()), (different.len(), 0), "{what}");
    }
}

/// RFR-01, RFR-03, BFF-09.
async fn stampedes(settings: &[(&str, &str)]) {
    let replicas = Replicas::start(settings).await;
    let browser = replicas.gateways[0].signed_in().await;

    replicas.expiry(&browser).await;
    let (hold, before) = (replicas.provider.hold_token_endpoint(), replicas.joined().await);
    let burst = replicas.burst(&browser, 50);
    hold.wait_for(1).await;
    replicas.wait_for_joined(before + (50 - PROCESSES) as f64).await;
    assert_eq!(hold.held(), 1, "one process asks, the others wait");
    hold.release();
    replicas.assert_all_live("fifty at once", &burst.join_all().await);
    replicas.assert_each_token_spent_once("fifty at once");

    replicas.expiry(&browser).await;
    replicas.provider.set(|s| s.fail_refresh_times(Outage::Late(Duration::from_secs(3)), 1));
    replicas.assert_all_live("an answer 3 s late", &replicas.burst(&browser, 50).join_all().await);
    replicas.assert_each_token_spent_once("an answer 3 s late");

    replicas.expiry(&browser).await;
    let hold = replicas.provider.hold_token_answers();
    let leaving = tokio::spawn({
        let tab = browser.at(replicas.gateways[1].addr);
        async move { tab.send(Ask::fetch("/api/x")).await }
    });
    hold.wait_for(1).await;
    leaving.abort();
    hold.release();
    let back = browser.at(replicas.gateways[2].addr).fetch("/api/x").await;
    replicas.assert_all_live("back at another process", &[back]);
    replicas.assert_each_token_spent_once("back at another process");

    replicas.expiry(&browser).await;
    replicas.assert_all_live("after the next expiry", &replicas.burst(&browser, 10).join_all().await);
    replicas.assert_each_token_spent_once("after the next expiry");
    assert_eq!(browser.session().await["authenticated"], true);
    assert!(replicas.provider.violations().is_empty(), "{:?}", replicas.provider.violations());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_cookie() {
    stampedes(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_cookies() {
    stampedes(&[("session.layout", "\"split\"")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_ticket() {
    stampedes(&[("session.store", "\"redis\"")]).await;
}
