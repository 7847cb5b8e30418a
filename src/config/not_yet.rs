//! Documented keys whose feature this version does not have. A wish that cannot be fulfilled is refused, or said aloud
//! where going on without it is safe; never ignored. A line goes when its feature comes.

use super::problem::Findings;
use super::raw::{OneOrMany, Provider, RawConfig};

pub(super) fn not_yet(raw: &RawConfig, found: &mut Findings) {
    let mut gaps = Gaps(found);

    match &raw.provider {
        Some(OneOrMany::One(provider)) => provider_gaps("provider", provider, &mut gaps),
        Some(OneOrMany::Many(many)) => {
            for (index, provider) in many.iter().enumerate() {
                provider_gaps(&format!("provider[{index}]"), provider, &mut gaps);
            }
        }
        None => {}
    }
}

fn provider_gaps(at: &str, provider: &Provider, gaps: &mut Gaps<'_>) {
    let mut refuse = |wished: bool, key: &str| gaps.refuse(wished, &format!("{at}.{key}"));
    let placed = provider.dialect.as_ref().is_some_and(|dialect| dialect.upstream.is_some());
    refuse(placed, "dialect.upstream");
}

struct Gaps<'a>(&'a mut Findings);

impl Gaps<'_> {
    fn refuse(&mut self, wished: bool, key: &str) {
        if wished {
            self.0.problem(key, "is not yet supported by this version; leave it out");
        }
    }
}
