//! Tokens in the query, for an API that takes them nowhere else (RFC 6750 section 2.3): put in as the request leaves, and
//! taken out of what comes back, for a browser that learned the URL would have the token.

use std::borrow::Cow;
use std::iter::once;

use http::header;
use pingora::http::ResponseHeader;
use url::form_urlencoded;

use super::ctx::Forward;
use super::settings::{Access, Token};
use super::state::State;
use super::upstream::claim_text;
use crate::oidc::dialect::{Extra, Placement};
use crate::session::Session;

/// Where the provider of this session wants its tokens on this route; none = in the header.
pub fn of<'s>(state: &'s State, token: &Token, session: &Session) -> Option<&'s Placement> {
    let placed = matches!(token, Token::Access | Token::Own(..));
    state.provider_of(session).and_then(|provider| provider.settings().dialect.placement.as_ref()).filter(|_| placed)
}

/// The query that the upstream gets. What the client calls like a parameter of ours goes, on every route with a token,
/// whether there is a session or not.
pub fn query<'q>(state: &State, forward: &'q Forward) -> Option<Cow<'q, str>> {
    let given = forward.query.as_deref();
    let (route, placed) = (&forward.route.settings, &state.settings.placed);
    let token = &route.token;
    if placed.is_empty() || route.access == Access::Public || matches!(token, Token::None | Token::Id) {
        return given.map(Cow::Borrowed);
    }
    let owned = |name: &str| placed.iter().any(|own| own == name);
    let mut query = given.map(|given| without(given, owned)).unwrap_or_default();
    if let Some(used) = &forward.session
        && let Some(placement) = of(state, token, &used.session)
    {
        let access = used.own.as_ref().unwrap_or(&used.session.access_token);
        let more = placement.extra.iter().filter_map(|(name, extra)| match extra {
            Extra::Text(text) => Some((name.as_str(), text.clone())),
            Extra::Claim(claim) => Some((name.as_str(), claim_text(&used.session, claim)?)),
        });
        for (name, value) in once((placement.param.as_str(), access.expose().to_owned())).chain(more) {
            if !query.is_empty() {
                query.push('&');
            }
            query.extend(form_urlencoded::byte_serialize(name.as_bytes()));
            query.push('=');
            query.extend(form_urlencoded::byte_serialize(value.as_bytes()));
        }
    }
    (!query.is_empty() || given == Some("")).then_some(Cow::Owned(query))
}

/// An answer that repeats our URL, as a redirect by the upstream does, loses the parameter; any other field with the token
/// is dropped.
pub fn withdraw(response: &mut ResponseHeader, state: &State, forward: &Forward) {
    let Some(used) = &forward.session else { return };
    let Some(placement) = of(state, &forward.route.settings.token, &used.session) else { return };
    let token = used.own.as_ref().unwrap_or(&used.session.access_token).expose();
    let spelled: String = form_urlencoded::byte_serialize(token.as_bytes()).collect();
    let holds = |text: &[u8]| [token, spelled.as_str()].iter().any(|token| contains(text, token.as_bytes()));
    let location = response.headers.get(header::LOCATION).and_then(|value| value.to_str().ok()).map(|location| {
        let (rest, fragment) = location.split_once('#').map_or((location, None), |(rest, it)| (rest, Some(it)));
        let Some((path, query)) = rest.split_once('?') else { return location.to_owned() };
        let query = without(query, |name| placement.param == name);
        let mark = if query.is_empty() { "" } else { "?" };
        fragment.map_or_else(|| format!("{path}{mark}{query}"), |fragment| format!("{path}{mark}{query}#{fragment}"))
    });
    if let Some(location) = location {
        let _ = response.insert_header(header::LOCATION, location);
    }
    let telling: Vec<_> =
        response.headers.iter().filter(|(_, value)| holds(value.as_bytes())).map(|it| it.0.clone()).collect();
    for name in telling {
        response.remove_header(&name);
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len().max(1)).any(|window| window == part)
}

/// The query without the parameters of these names; what stays, stays byte for byte.
fn without(query: &str, goes: impl Fn(&str) -> bool) -> String {
    let mut kept = String::with_capacity(query.len());
    for piece in query.split('&') {
        let name = form_urlencoded::parse(piece.as_bytes()).next().map(|(name, _)| name);
        if name.is_some_and(|name| goes(&name)) {
            continue;
        }
        if !kept.is_empty() {
            kept.push('&');
        }
        kept.push_str(piece);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_parameters_go() {
        let goes = |name: &str| name == "access_token";
        for (query, left) in [
            ("a=1&access_token=x&b=%2f", "a=1&b=%2f"),
            ("access%5Ftoken=x", ""),
            ("access_token", ""),
            ("Access_Token=x&=&a", "Access_Token=x&=&a"),
            ("b;access_token=x", "b;access_token=x"),
        ] {
            assert_eq!(without(query, goes), left, "{query}");
        }
    }
}
