//! Forward-auth: another proxy asks whether it may forward a request, and with which token. The question is decided by
//! the very code that decides about a request of our own; nothing is forwarded, and only a yes has a status of success.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use pingora::http::RequestHeader;
use pingora::proxy::Session;

use super::arrive;
use super::ctx::{Ctx, Forward};
use super::serve::Outcome;
use super::upstream;
use crate::web::problem::{Code, Problem};
use crate::web::response::LocalResponse;

/// Below it Envoy's `ext_authz` repeats the request's own path, with its own method.
const PATH_FORM: &str = "/ext-authz";
/// The pairs of fields that carry path and method: of nginx's `auth_request` by custom, of Traefik.
const FIELD_FORMS: [[&str; 2]; 2] =
    [["x-original-uri", "x-original-method"], ["x-forwarded-uri", "x-forwarded-method"]];

/// By which a service of Envoy's `ext_authz` over HTTP names what is to be taken from the client's request.
const TO_REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");

/// A proxy's question.
#[derive(Debug)]
struct Question {
    /// The head of the request that it is about.
    head: RequestHeader,
    /// What says yes: Envoy takes nothing but 200.
    yes: StatusCode,
}

impl Ctx {
    /// Answers a proxy's question.
    pub(super) async fn answer_question(&mut self, session: &Session) -> Outcome {
        let asked = session.req_header();
        let peer = arrive::peer_ip(session);
        let question = match read(asked) {
            Ok(question) => question,
            Err(problem) => {
                self.introduce(asked, peer);
                return problem.into();
            }
        };
        self.asked_method = Some(question.head.method.clone());
        let state = Arc::clone(&self.state);
        // By whatever name the proxy calls us: sessions are of the public host, and a client could spoof another.
        let host = Cow::Borrowed(state.settings.public.host());
        let request = match self.read(&question.head, peer, session.is_http2(), host) {
            Ok(request) => request,
            Err(problem) => return problem.into(),
        };
        if request.path.is_below(&state.settings.prefix) {
            return Problem::new(Code::NoRoute, "Paths below the prefix belong to the public listener.").into();
        }
        match self.route(&state, &request).await {
            Outcome::Forward(forward) => self.allow(&forward, &question),
            // What is no yes must not look like one.
            Outcome::Respond(response) if response.status.is_success() => {
                if request.preflight {
                    return Problem::new(Code::Forbidden, "Preflights are for the public listener to answer.").into();
                }
                let back = request.return_to(&state).hop_url(&state.settings.prefix);
                let hop = LocalResponse::redirect(StatusCode::FOUND, &back);
                Outcome::Respond(hop.set_cookies(response.cookies))
            }
            outcome => outcome,
        }
    }

    /// Yes, with what the proxy is to add to the request, and the cookies for its answer.
    fn allow(&self, forward: &Forward, question: &Question) -> Outcome {
        let mut response = LocalResponse::empty(question.yes);
        let mut set = Vec::new();
        let cookies = self.cookies_with(forward);
        if let Some(used) = &forward.session {
            if upstream::is_bound(&forward.route.settings, &used.session) {
                let told = "The token is bound to a key of this gateway: another proxy cannot send it.";
                return Outcome::Refuse(Problem::new(Code::ProviderRefused, told), cookies);
            }
            set.extend(upstream::identity(&forward.route.settings, &used.session));
        }
        set.extend(forward.credential.clone());
        // nginx and Traefik send what we answer and nothing else under these names; Envoy leaves the client's own where
        // we answer none.
        if question.yes == StatusCode::OK
            && let Some(names) = self.to_remove(&set, &question.head.headers)
        {
            response = response.header(TO_REMOVE, names);
        }
        for (name, value) in set {
            response = response.header(name, value);
        }
        Outcome::Respond(response.set_cookies(cookies))
    }
}

impl Ctx {
    /// The fields that could pass for ours and that this answer does not set, as Envoy wants them named.
    fn to_remove(&self, set: &[(HeaderName, HeaderValue)], asked: &HeaderMap) -> Option<HeaderValue> {
        let routes = self.state.settings.routes.iter();
        let ours = routes.flat_map(|route| {
            let identity = route.identity_headers.iter().map(|(name, _)| name);
            identity.chain(std::iter::once(&route.token_header.name))
        });
        let in_other_spellings = asked.keys().filter(|name| self.state.is_reserved(name));
        let names: BTreeSet<&str> = ours
            .chain(in_other_spellings)
            .filter(|name| !set.iter().any(|(known, _)| known == *name))
            .map(HeaderName::as_str)
            .collect();
        let names: Vec<&str> = names.into_iter().collect();
        HeaderValue::try_from(names.join(", ")).ok().filter(|names| !names.is_empty())
    }
}

/// What is asked. Two forms at once are refused: one of them would be the client's doing.
fn read(asked: &RequestHeader) -> Result<Question, Problem> {
    let bad = |detail| Problem::new(Code::BadRequest, detail);
    let target = std::str::from_utf8(asked.raw_path()).unwrap_or_default();
    let of_path = target.strip_prefix(PATH_FORM).filter(|rest| rest.starts_with('/'));
    let mut forms = FIELD_FORMS.iter().filter(|form| form.iter().any(|name| asked.headers.contains_key(*name)));
    let (method, target, yes) = match (of_path, forms.next(), forms.next()) {
        (Some(rest), None, None) => (asked.method.clone(), rest.as_bytes(), StatusCode::OK),
        (None, Some([uri, method]), None) => {
            let method = only(&asked.headers, method).and_then(|value| Method::from_bytes(value).ok());
            let method = method.ok_or_else(|| bad("The question names no method, or more than one."))?;
            let target =
                only(&asked.headers, uri).ok_or_else(|| bad("The question names no path, or more than one."))?;
            (method, target, StatusCode::NO_CONTENT)
        }
        (None, None, None) => return Err(bad("This is no question: it names neither a path nor a method.")),
        _ => return Err(bad("The question is asked in two forms at once.")),
    };
    // A request target in origin form, as a listener of ours would take it.
    if !target.starts_with(b"/") || target.iter().any(|byte| *byte <= b' ' || matches!(byte, b'#' | 0x7f)) {
        return Err(Problem::new(Code::BadPath, "The question's path is not one that a request can have."));
    }
    let mut head = RequestHeader::build(method, target, Some(asked.headers.len()))
        .map_err(|_| Problem::new(Code::BadPath, "The question's path is not one that a request can have."))?;
    for (name, value) in &asked.headers {
        // The body stays at the proxy, and with it what frames it.
        let of_question = FIELD_FORMS.as_flattened().contains(&name.as_str());
        if !of_question && ![header::CONTENT_LENGTH, header::TRANSFER_ENCODING].contains(name) {
            let _ = head.append_header(name.clone(), value.clone());
        }
    }
    if asked.headers.contains_key(header::SEC_WEBSOCKET_KEY) {
        // Proxies keep `Upgrade` to themselves; a handshake is judged by its `Origin` all the same.
        let _ = head.insert_header(header::UPGRADE, HeaderValue::from_static("websocket"));
        let _ = head.insert_header(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    Ok(Question { head, yes })
}

/// The field's value, if there is exactly one.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let mut values = headers.get_all(HeaderName::from_bytes(name.as_bytes()).ok()?).iter();
    values.next().filter(|_| values.next().is_none()).map(HeaderValue::as_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(target: &str, fields: &[(&'static str, &str)]) -> Result<(String, StatusCode), Code> {
        let mut asked = RequestHeader::build(Method::GET, target.as_bytes(), None).unwrap();
        for (name, value) in fields {
            asked.append_header(*name, *value).unwrap();
        }
        read(&asked)
            .map(|question| {
                let path = String::from_utf8_lossy(question.head.raw_path()).into_owned();
                (format!("{} {path}", question.head.method), question.yes)
            })
            .map_err(|problem| problem.code)
    }

    #[test]
    fn a_question_has_one_of_three_forms() {
        let yes = |line: &str, status| Ok((line.to_owned(), status));
        let nginx = [("x-original-uri", "/api/x?y=1"), ("x-original-method", "POST")];
        assert_eq!(question("/any", &nginx), yes("POST /api/x?y=1", StatusCode::NO_CONTENT));
        let traefik = [("x-forwarded-uri", "/a"), ("x-forwarded-method", "PUT")];
        assert_eq!(question("/", &traefik), yes("PUT /a", StatusCode::NO_CONTENT));
        assert_eq!(question("/ext-authz/a/b?c", &[]), yes("GET /a/b?c", StatusCode::OK));
    }

    #[test]
    fn what_is_ambiguous_is_refused() {
        let nginx = [("x-original-uri", "/a"), ("x-original-method", "GET")];
        let mut both = nginx.to_vec();
        both.push(("x-forwarded-uri", "/b"));
        assert_eq!(question("/", &both), Err(Code::BadRequest));
        assert_eq!(question("/ext-authz/a", &nginx), Err(Code::BadRequest));
        let twice = [nginx[0], nginx[0], nginx[1]];
        assert_eq!(question("/", &twice), Err(Code::BadRequest));
        assert_eq!(question("/", &nginx[..1]), Err(Code::BadRequest));
        assert_eq!(question("/", &nginx[1..]), Err(Code::BadRequest));
        for nothing in ["/", "/ext-authz", "/ext-authzx/a"] {
            assert_eq!(question(nothing, &[]), Err(Code::BadRequest), "{nothing}");
        }
        for odd in ["", "*", "http://evil/a", "/a b", "/a#b"] {
            let fields = [("x-original-uri", odd), nginx[1]];
            assert_eq!(question("/", &fields), Err(Code::BadPath), "{odd:?}");
        }
    }
}
