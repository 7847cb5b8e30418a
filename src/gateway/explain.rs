//! `sidegate explain`: the truth about one request, told by the very code that decides it.

use std::fmt::Write;
use std::sync::Arc;

use http::Method;

use super::decide::{Caller, Decision, Presence, Rules, decide};
use super::endpoints::Endpoint;
use super::routes::{Matched, RouteTable};
use super::settings::{Access, Route, Settings, Token, Upstream, UpstreamAddress, Way};
use super::step_up::{self, Wanted};
use super::upstream;
use crate::oidc::types::TokenTarget;
use crate::web::path::CleanPath;
use crate::web::problem::{Code, Problem};
use crate::web::return_to::ReturnTo;

/// The explanation of `METHOD PATH`, as a script's call or, with `navigate`, as a browser opening the page.
pub fn explain(settings: &Settings, embedded: bool, method: &Method, target: &str, navigate: bool) -> String {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    if matches!(*method, Method::TRACE | Method::CONNECT) {
        return refusal(&Problem::new(Code::MethodNotAllowed, "This method is not served."));
    }
    let Ok(clean) = CleanPath::parse(path) else {
        return refusal(&Problem::new(Code::BadPath, "The path is ambiguous: it has no single reading."));
    };
    let prefix = &settings.prefix;
    if let Some(rest) =
        clean.as_str().strip_prefix(prefix.as_str()).filter(|rest| rest.is_empty() || rest.starts_with('/'))
    {
        return match Endpoint::find(rest) {
            Some(endpoint) if !endpoint.is_on(settings) => {
                refusal(&Problem::new(Code::NoRoute, "This endpoint is switched off in [logout].")) + prefix + "\n"
            }
            Some(endpoint) if !endpoint.takes(method, settings) => {
                let problem = Problem::new(Code::MethodNotAllowed, "This endpoint does not take the method.");
                format!(
                    "endpoint         {prefix}{rest}, answered by sidegate itself\n{}allow            {}\n",
                    refusal(&problem),
                    endpoint.methods(settings)
                )
            }
            Some(endpoint) => format!(
                "endpoint         {prefix}{rest}, answered by sidegate itself\nmethods          {}\n",
                endpoint.methods(settings)
            ),
            None => {
                refusal(&Problem::new(Code::NoRoute, "There is no such endpoint below the prefix.")) + prefix + "\n"
            }
        };
    }
    let table = RouteTable::new(settings.routes.iter().cloned().map(Arc::new));
    let route = match table.find(&clean, settings.public.host(), Some(method)) {
        Matched::Route(route) => route,
        Matched::MethodNotAllowed { route, allow } => {
            let problem = Problem::new(Code::MethodNotAllowed, "The path is there, the method is not.");
            return format!("route            {}\n{}allow            {allow}\n", route.path, refusal(&problem));
        }
        Matched::None => return refusal(&Problem::new(Code::NoRoute, "No route takes this path.")),
    };
    describe(route, settings, embedded, method, &clean, query, navigate)
}

fn describe(
    route: &Route,
    settings: &Settings,
    embedded: bool,
    method: &Method,
    path: &CleanPath,
    query: Option<&str>,
    navigate: bool,
) -> String {
    let rules = Rules::of(route, embedded);
    let caller = Caller { navigation: navigate, document: navigate, proven: true, ..Caller::default() };
    let return_to = ReturnTo::from_request(path, query, &settings.prefix);
    let says = |presence| match decide(rules, presence, caller, method) {
        Decision::ForwardAnonymous | Decision::ForwardWithSession if route.files.is_some() => "the file".to_owned(),
        Decision::ForwardAnonymous => "forwarded, without a token".to_owned(),
        Decision::ForwardWithSession => "forwarded, refreshed first if due".to_owned(),
        Decision::Preflight => "answered by sidegate (CORS preflight)".to_owned(),
        Decision::Hop => "the hop page, then judged again".to_owned(),
        Decision::Login(status) => format!("{} to {}", status.as_u16(), return_to.login_url(&settings.prefix)),
        Decision::Refuse(problem) => format!("{} {}", problem.code.status().as_u16(), problem.code.as_str()),
    };
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<17}{value}");
    };
    line("route", &route.path);
    line(
        "access",
        match route.access {
            Access::Session => "session",
            Access::Optional => "optional",
            Access::Public => "public",
        },
    );
    if let Some(template) = &route.template {
        line("upstream", &format!("{}, as the provider says for the user", template.as_str()));
    }
    for own in &route.upstreams {
        line("upstream", &shown(own));
        line("forwarded as", &upstream::target(route, &own.base_path, path, query));
    }
    if let Some(files) = &route.files {
        line("files from", &files.dir.display().to_string());
        if let Some(fallback) = &files.fallback {
            line("fallback", &format!("{}, for page loads that match no file", fallback.display()));
        }
    }
    line("without session", &says(Presence::Absent));
    line("with session", &says(Presence::Live));
    let token = match (route.access, &route.token) {
        (Access::Public, _) | (_, Token::None) => "none".to_owned(),
        _ if route.files.is_some() => "none".to_owned(),
        (_, token) => {
            let kind = match token {
                Token::Id => "id token".to_owned(),
                Token::Own(target, way) => own(target, way),
                Token::Access | Token::None => "access token".to_owned(),
            };
            let scheme = route.token_header.scheme.as_deref().unwrap_or("(bare)");
            let header = format!("in {}: {scheme}", route.token_header.name);
            match (settings.placed.first(), &route.token) {
                // Which of several providers' sessions it will be, nobody knows here.
                (Some(param), Token::Access | Token::Own(..)) => {
                    format!("{kind} in the query as {param} (of a provider without placement = \"query\": {header})")
                }
                _ => format!("{kind} {header}"),
            }
        }
    };
    line("token", &token);
    for (claim, values) in &route.require {
        line("require", &format!("{claim} = one of {}; else 403 forbidden", values.join(", ")));
    }
    if let Some(age) = route.max_token_age {
        line("max_token_age", &format!("{age:?}, refreshed first when the token is older"));
    }
    if let Some(wanted) = Wanted::of_route(route) {
        if let Some(age) = wanted.max_age {
            line("max_auth_age", &format!("{age}s since the login"));
        }
        if let Some(values) = &wanted.acr_values {
            line("acr_values", values);
        }
        let leads =
            matches!(decide(step_up::rules(route, embedded), Presence::Absent, caller, method), Decision::Login(_));
        let url = wanted.login_url(&return_to, &settings.prefix);
        line("else", &if leads { format!("302 to {url}") } else { format!("401 step_up_required, {url}") });
    }
    for (name, claim) in &route.identity_headers {
        line("identity", &format!("{name} = {claim}"));
    }
    text
}

fn own(target: &TokenTarget, way: &Way) -> String {
    let mut of = Vec::new();
    of.extend(target.audience.iter().map(|audience| format!("audience {audience}")));
    of.extend(target.resource.iter().map(|resource| format!("resource {resource}")));
    if !target.scopes.is_empty() {
        of.push(format!("scopes {}", target.scopes.join(" ")));
    }
    let how = match way {
        Way::Refresh => "refresh".to_owned(),
        Way::Exchange => "exchange".to_owned(),
        Way::Client(None) => "client credentials".to_owned(),
        Way::Client(Some(name)) => format!("client credentials at {name}"),
    };
    let of = if of.is_empty() { String::new() } else { format!(" for {}", of.join(", ")) };
    format!("access token of its own (by {how}{of})")
}

fn shown(upstream: &Upstream) -> String {
    match &upstream.address {
        UpstreamAddress::Tcp { tls, .. } => {
            let scheme = match (tls, upstream.http2) {
                (true, _) => "https",
                (false, true) => "h2c",
                (false, false) => "http",
            };
            format!("{scheme}://{}{}", upstream.authority, upstream.base_path)
        }
        UpstreamAddress::Unix(path) => format!("unix:{}", path.display()),
    }
}

fn refusal(problem: &Problem) -> String {
    format!(
        "answer           {} {}\n                 {}\n",
        problem.code.status().as_u16(),
        problem.code.as_str(),
        problem.detail
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_shown_as_they_were_written() {
        for text in ["http://a:1/b", "https://a", "h2c://a:50051", "unix:/run/app.sock"] {
            assert_eq!(shown(&Upstream::parse(text).unwrap()), text);
        }
    }
}
