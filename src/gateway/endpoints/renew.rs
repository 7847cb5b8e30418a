//! `<prefix>/renew`: where the browser fetches the refresh token of the `split` layout from its cookie, on the way to
//! somewhere else. Method and body come along, because the redirects here and back are 307s (RFC 9110 section 15.4.8).
//!
//! Nobody gets in without a pass: sealed by us for one session and one target, after the request was judged. Afterwards
//! the target judges the request again. So the way round opens nothing that the direct way does not.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::session::{mended, refused, unavailable};
use super::{Answer, Visitor};
use crate::clock::Timestamp;
use crate::crypto::seal::{Opened, Purpose};
use crate::gateway::routes::Matched;
use crate::gateway::state::{RouteEntry, State};
use crate::gateway::verify::{Doubted, own_target, verified};
use crate::refresh::coordinator::Freshened;
use crate::refresh::policy::{Demand, EndReason};
use crate::session::SessionId;
use crate::web::path::CleanPath;
use crate::web::problem::{Code, Problem};
use crate::web::query::Params;
use crate::web::request::RequestView;
use crate::web::response::LocalResponse;

/// Times in a row that a browser is led here before it is told instead: it does not keep the cookies that it gets.
pub(crate) const MOST_DANCES: u8 = 3;
/// How long a pass is good: a redirect, and the upload of a body twice.
const PASS_LIFE: Duration = Duration::from_secs(300);
/// The longest way: proxies in front take 8 KB lines.
const MAX_URL: usize = 7 * 1024;

const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The way here and on to `target`, a path and query of ours; none when it is too long.
pub(crate) fn way(state: &State, id: SessionId, target: &str, now: Timestamp) -> Option<String> {
    let until = now + PASS_LIFE;
    let plain = [&id.0[..], &digest(target), &until.as_millis().to_be_bytes()].concat();
    let pass = state.jar.sealer().seal(Purpose::Pass, &plain, now);
    let url = format!("{}/renew?pass={pass}&to={}", state.settings.prefix, utf8_percent_encode(target, VALUE));
    (url.len() <= MAX_URL).then_some(url)
}

/// The session and the target of a pass that is good.
fn read(state: &State, request: &RequestView<'_>) -> Option<(SessionId, String)> {
    let params = Params::parse(request.query);
    let (pass, target) = (params.one("pass").ok()??, params.one("to").ok()??);
    let Opened::Plain(plain) = state.jar.sealer().open(Purpose::Pass, pass.as_bytes()) else { return None };
    let (id, rest) = plain.split_first_chunk()?;
    let (sealed, until) = rest.split_first_chunk::<16>()?;
    let until = Timestamp::from_millis(u64::from_be_bytes(until.try_into().ok()?));
    (*sealed == digest(target) && request.now < until).then(|| (SessionId(*id), target.to_owned()))
}

fn digest(target: &str) -> [u8; 16] {
    let hash = ring::digest::digest(&ring::digest::SHA256, target.as_bytes());
    hash.as_ref().first_chunk().copied().unwrap_or_default()
}

/// Refreshes the session and leads back, with whatever came of it.
pub(super) async fn serve(state: &Arc<State>, request: &RequestView<'_>, visitor: Visitor) -> Answer {
    let Some((id, target)) = read(state, request) else {
        return Problem::new(Code::BadRequest, "This way was not laid here, or too long ago.").into();
    };
    let back = |cookies: Vec<HeaderValue>| -> Answer {
        LocalResponse::redirect(StatusCode::TEMPORARY_REDIRECT, &target).set_cookies(cookies).into()
    };
    let expired = || state.jar.expire(&visitor.presented);
    let stale = visitor.is_stale();
    let Some(user) = &visitor.came else { return back(expired()) };
    if user.id != id {
        // Somebody logged in meanwhile.
        return back(Vec::new());
    }
    let route = route(state, request, &target);
    let demand = match route.as_ref().and_then(|route| route.settings.max_token_age) {
        Some(age) => Demand::OlderThan(age),
        None => Demand::IfDue,
    };
    match state.refresh.freshen(Arc::clone(user), demand).await {
        Freshened::Use { session: fresh, changed } => back(mended(state, request, &visitor.presented, changed, &fresh)),
        Freshened::Exhausted { session: last, .. } => back(mended(state, request, &visitor.presented, stale, &last)),
        Freshened::Over { reason: EndReason::Dead(_) } => {
            let doubted = Doubted {
                headers: request.headers,
                replayable: true,
                mode: route.map_or(state.settings.verify, |route| route.settings.verify),
                target: &own_target(request.path, request.query),
                now: request.now,
            };
            match verified(state, doubted, user).await {
                Ok(_) => back(expired()),
                Err(redirect) => redirect.into(),
            }
        }
        Freshened::Over { .. } | Freshened::Bring => back(expired()),
        Freshened::Unavailable { retry_after } => unavailable(retry_after.as_secs()).into(),
        Freshened::Refused => refused().into(),
    }
}

/// The route that will take the target.
fn route(state: &State, request: &RequestView<'_>, target: &str) -> Option<Arc<RouteEntry>> {
    let path = CleanPath::parse(target.split('?').next().unwrap_or_default()).ok()?;
    let method: &Method = request.method;
    match state.routes.find(&path, request.host, Some(method)) {
        Matched::Route(entry) => Some(Arc::clone(&entry.0)),
        Matched::MethodNotAllowed { .. } | Matched::None => None,
    }
}
