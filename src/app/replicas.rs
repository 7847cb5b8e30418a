//! What replicas share: the store, wired to metrics and to those who use it.

use std::sync::Arc;

use crate::clock::Clock;
use crate::config::Config;
use crate::metrics::{EndingFate, Metrics};
use crate::refresh::shared::{OnError, Shared};
use crate::store::{self, Fate, Store};

/// The store of the configuration, if it has one. Calls nobody.
pub(super) fn store(config: &Config, clock: &Clock, metrics: &Arc<Metrics>) -> Option<Arc<Store>> {
    let (settings, _) = config.redis.as_ref()?;
    let observer = Observer(Arc::clone(metrics));
    observer.0.observe_redis_endings(EndingFate::Told, 0);
    Some(Store::new(settings.clone(), clock.clone(), Arc::new(observer)))
}

/// The same as the refresh engine takes it.
pub(super) fn shared(config: &Config, store: Option<&Arc<Store>>) -> Option<(Arc<dyn Shared>, OnError)> {
    let (_, on_error) = config.redis.as_ref()?;
    Some((Arc::new(Arc::clone(store?)), *on_error))
}

struct Observer(Arc<Metrics>);

impl store::Observer for Observer {
    fn up(&self, up: bool) {
        self.0.set_redis_up(up);
    }

    fn endings(&self, fate: Fate, count: usize) {
        let fate = match fate {
            Fate::Told => EndingFate::Told,
            Fate::Kept => EndingFate::Kept,
            Fate::Dropped => EndingFate::Dropped,
        };
        self.0.observe_redis_endings(fate, count);
    }
}
