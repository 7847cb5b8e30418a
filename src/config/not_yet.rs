//! Documented keys whose feature this version does not have. A wish that cannot be fulfilled is refused, or said aloud
//! where going on without it is safe; never ignored. A line goes when its feature comes.

use super::problem::Findings;
use super::raw::{Layout, OneOrMany, Provider, RawConfig, Route, RouteToken, Store};

pub(super) fn not_yet(raw: &RawConfig, found: &mut Findings) {
    let mut gaps = Gaps(found);

    gaps.refuse(raw.server.h2c, "server.h2c");
    match &raw.provider {
        Some(OneOrMany::One(provider)) => provider_gaps("provider", provider, &mut gaps),
        Some(OneOrMany::Many(many)) => {
            gaps.refuse(many.len() > 1, "provider[1]");
            many.iter().take(1).for_each(|provider| provider_gaps("provider[0]", provider, &mut gaps));
        }
        None => {}
    }
    gaps.refuse(raw.session.store == Store::Redis, "session.store");
    gaps.mention(raw.session.layout == Layout::Split, "session.layout");
    gaps.mention(raw.redis.is_some(), "redis");
    gaps.refuse(raw.verify.listen != "off", "verify.listen");
    gaps.refuse(raw.tracing.otlp_endpoint.is_some(), "tracing.otlp_endpoint");
    for (index, route) in raw.route.iter().enumerate() {
        route_gaps(&format!("route[{index}]"), route, &mut gaps);
    }
}

fn provider_gaps(at: &str, provider: &Provider, gaps: &mut Gaps<'_>) {
    let mut refuse = |wished: bool, key: &str| gaps.refuse(wished, &format!("{at}.{key}"));
    let placed = provider.dialect.as_ref().is_some_and(|dialect| dialect.upstream.is_some());
    refuse(placed, "dialect.upstream");
}

fn route_gaps(at: &str, route: &Route, gaps: &mut Gaps<'_>) {
    let mut refuse = |wished: bool, key: &str| gaps.refuse(wished, &format!("{at}.{key}"));
    refuse(route.static_dir.is_some(), "static_dir");
    refuse(route.fallback.is_some() && route.static_dir.is_none(), "fallback");
    refuse(matches!(route.token, RouteToken::Own(_)), "token");
    refuse(route.allow_hosts.is_some(), "allow_hosts");
    refuse(route.max_auth_age.is_some(), "max_auth_age");
    refuse(route.acr_values.is_some(), "acr_values");
    refuse(route.rate_limit.is_some(), "rate_limit");
}

struct Gaps<'a>(&'a mut Findings);

impl Gaps<'_> {
    fn refuse(&mut self, wished: bool, key: &str) {
        if wished {
            self.0.problem(key, "is not yet supported by this version; leave it out");
        }
    }

    fn mention(&mut self, wished: bool, key: &str) {
        if wished {
            self.0.warn(key, "has no effect in this version yet");
        }
    }
}
