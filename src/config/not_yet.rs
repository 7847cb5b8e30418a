//! Documented keys whose feature this version does not have. A wish that cannot be fulfilled is refused, or said aloud
//! where going on without it is safe; never ignored. A line goes when its feature comes.

use super::parse::is_basic_raw;
use super::problem::Findings;
use super::raw::{OneOrMany, Provider, RawConfig, Route, RouteToken};

pub(super) fn not_yet(raw: &RawConfig, found: &mut Findings) {
    let mut gaps = Gaps(found);

    gaps.refuse(!raw.presets.is_empty(), "presets");
    match &raw.provider {
        Some(OneOrMany::One(provider)) => provider_gaps("provider", provider, &mut gaps),
        Some(OneOrMany::Many(many)) => {
            gaps.refuse(many.len() > 1, "provider[1]");
            many.iter().take(1).for_each(|provider| provider_gaps("provider[0]", provider, &mut gaps));
        }
        None => {}
    }
    for (index, route) in raw.route.iter().enumerate() {
        route_gaps(&format!("route[{index}]"), route, &mut gaps);
    }
}

fn provider_gaps(at: &str, provider: &Provider, gaps: &mut Gaps<'_>) {
    let mut refuse = |wished: bool, key: &str| gaps.refuse(wished, &format!("{at}.{key}"));
    refuse(provider.dialect.as_ref().is_some_and(|dialect| !is_basic_raw(dialect)), "dialect");
    refuse(provider.tenant.is_some(), "tenant");
    refuse(provider.allowed_tenants.is_some(), "allowed_tenants");
    refuse(provider.domain.is_some(), "domain");
    refuse(provider.environment.is_some(), "environment");
    refuse(provider.environment_id.is_some(), "environment_id");
    refuse(provider.region.is_some(), "region");
    refuse(provider.project_id.is_some(), "project_id");
    refuse(provider.user_scopes.is_some(), "user_scopes");
    refuse(provider.endpoints.refresh.is_some(), "endpoints.refresh");
}

fn route_gaps(at: &str, route: &Route, gaps: &mut Gaps<'_>) {
    let mut refuse = |wished: bool, key: &str| gaps.refuse(wished, &format!("{at}.{key}"));
    refuse(matches!(route.token, RouteToken::Own(_)), "token");
    refuse(route.allow_hosts.is_some(), "allow_hosts");
}

struct Gaps<'a>(&'a mut Findings);

impl Gaps<'_> {
    fn refuse(&mut self, wished: bool, key: &str) {
        if wished {
            self.0.problem(key, "is not yet supported by this version; leave it out");
        }
    }
}
