//! `[provider.dialect]`: its keys, and what they mean.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::load::join;
use super::parse::{Parser, duration, is_token};
use super::problem::shown;
use super::text::DurationText;
use crate::oidc::dialect::{
    Authorize, Class, Dialect, Extra, Format as AnswerFormat, Manner, Pick, Placement, Response, Revocation, Rule,
};
use crate::oidc::settings::LogoutStyle;

/// Declares a table of keys that may all be absent.
macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $( $(#[$field_doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $field: Option<$type> ),+
        }
    };
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub enum $name { $( #[serde(rename = $text)] $variant ),+ }
    };
}

words!(
    /// Whether a login brings an ID token.
    IdToken { Required = "required", ByScope = "by_scope", None = "none" }
);
words!(
    /// PKCE (RFC 7636).
    Pkce { S256 = "S256", Off = "off" }
);
words!(
    /// The method of token requests.
    Method { Post = "POST", Get = "GET" }
);
words!(
    /// How the client proves itself in token requests.
    Auth {
        Basic = "basic", BasicRaw = "basic_raw", Post = "post", Query = "query", QueryIdOnly = "query_id_only",
        None = "none",
    }
);
words!(
    /// How answers are written.
    Format { Json = "json", Form = "form", Auto = "auto" }
);
words!(
    /// Which characters `state` may have.
    StateCharset { Alnum = "alnum" }
);
words!(
    /// What a refusal of the user's looks like.
    DeniedWhen { NoCodeNoError = "no_code_no_error" }
);
words!(
    /// What `token_type` must say.
    TokenType { Standard = "standard", Any = "any" }
);
words!(
    /// How the browser leaves the provider.
    Logout { Oidc = "oidc", Cognito = "cognito", Auth0V2 = "auth0-v2", None = "none" }
);
words!(
    /// Where the token of a request to the upstream is.
    Where { Header = "header", Query = "query" }
);
words!(
    /// How tokens are given back.
    RevocationStyle {
        Rfc7009 = "rfc7009", RefreshOnly = "refresh_only", Bearer = "bearer", GitHub = "github", None = "none",
    }
);

table!(
    /// `[provider.dialect]`
    RawDialect {
        /// Whether a login brings an ID token: `required`, `by_scope` (with the scope `openid`), `none` (no OpenID Connect).
        id_token: IdToken,
        /// PKCE: `S256`, or `off` for a provider that refuses it.
        pkce: Pkce,
        /// `User-Agent` of calls to the provider.
        user_agent: String,
        /// How the browser leaves the provider.
        logout: Logout,
        /// How tokens are given back at logout.
        revocation: RevocationStyle,
        /// The authorization request.
        authorize: RawAuthorize,
        /// The token request of a login.
        token: RawManner,
        /// The token request of a refresh.
        refresh: RawManner,
        /// Where token answers have what, and which errors mean what.
        response: RawResponse,
        /// Where a request to the upstream has the token.
        upstream: RawUpstream,
        /// Place of the user's identifier in userinfo.
        userinfo_subject: String,
        /// Claims made of others: a JSON pointer, or `{ pointer, where }` for an item of a list.
        claims: BTreeMap<String, RawPick>,
    }
);
table!(
    /// `[provider.dialect.upstream]`
    RawUpstream {
        /// `header`, as the route's `token_header` says, or `query`.
        placement: Where,
        /// The query's parameter.
        param: String,
        /// More parameters: a text, or a claim in braces.
        extra: BTreeMap<String, String>,
    }
);
table!(
    /// `[provider.dialect.authorize]`
    RawAuthorize {
        /// Name of the parameter `client_id`.
        client_id_param: String,
        /// Between two scopes.
        scope_separator: String,
        /// Parameters that come first, in this order.
        order: Vec<String>,
        /// Put behind the URL.
        fragment: String,
        /// `alnum`: letters and digits only.
        state_charset: StateCharset,
        /// The longest `state` that the provider takes.
        state_max: u32,
        /// `no_code_no_error`: an answer with neither is a refusal.
        denied_when: DeniedWhen,
    }
);
table!(
    /// `[provider.dialect.token]` and `[provider.dialect.refresh]`
    RawManner {
        /// Method of the request.
        method: Method,
        /// How the client proves itself; by default `provider.client_auth`.
        auth: Auth,
        /// Name of the parameter `client_id`.
        client_id_param: String,
        /// Name of the parameter `client_secret`.
        client_secret_param: String,
        /// `Accept` of the request.
        accept: String,
        /// How long a refresh token lives when the provider tells nothing.
        life: DurationText,
        /// True is all there is: URLs of token requests are never logged.
        redact_url: bool,
        /// True is all there is: a refresh may bring the same access token again.
        same_access_token_ok: bool,
    }
);
table!(
    /// `[provider.dialect.response]`
    RawResponse {
        /// JSON, a form, or by the content type.
        format: Format,
        /// `Accept` of token requests.
        accept: String,
        /// True is all there is: JSON is read under any content type.
        ignore_content_type: bool,
        /// True is all there is: an error counts under any status.
        error_on_200: bool,
        /// Where the tokens are; the other places, but for those of errors and the subject, lie below it.
        root: String,
        /// Place of the access token.
        access_token: String,
        /// Place of the refresh token.
        refresh_token: String,
        /// Place of the life in seconds.
        expires_in: String,
        /// Place of the scope.
        scope: String,
        /// `any`: whatever it says, or nothing.
        token_type: TokenType,
        /// Place of the error.
        error: String,
        /// Values there that are no errors.
        error_ok: Vec<Value>,
        /// Place of the error's description.
        description: String,
        /// Place of a boolean that is false when there is an error.
        ok: String,
        /// Place of the user's identifier.
        subject: String,
        /// Members of the answer that become claims.
        keep: Vec<String>,
        /// For the reader: lives are counted from when the answer came.
        issued_at: RawIssuedAt,
        /// Errors that mean that the grant is spent or revoked.
        dead: Vec<Value>,
        /// Errors that are worth another try.
        retry: Vec<Value>,
        /// Errors that mean that our client is not set up right.
        config: Vec<Value>,
        /// The same by more than the error's code.
        dead_when: Vec<RawRule>,
        /// The same.
        retry_when: Vec<RawRule>,
        /// The same.
        config_when: Vec<RawRule>,
    }
);
table!(
    /// Where the answer says when it was made.
    RawIssuedAt {
        /// JSON pointer.
        pointer: String,
        /// How it is written.
        unit: String,
    }
);
table!(
    /// An error, told by all that is said here.
    RawRule {
        /// HTTP status.
        status: u16,
        /// The error's code.
        error: Value,
        /// How the description begins.
        description_prefix: String,
        /// What the description contains.
        description_contains: String,
    }
);
/// A claim made of another.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RawPick {
    /// A JSON pointer.
    Pointer(String),
    /// With more to say.
    Item(RawItem),
}

/// An item of a list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawItem {
    /// JSON pointer to the list.
    pub pointer: String,
    /// Members that the item has.
    #[serde(default, rename = "where")]
    pub with: BTreeMap<String, Value>,
}

/// What the dialect says that settings outside of it follow.
pub(super) struct Said {
    pub(super) dialect: Dialect,
    pub(super) id_token: IdToken,
    pub(super) logout: LogoutStyle,
    /// Of the token request of a login.
    pub(super) auth: Option<Auth>,
}

/// The longest `state` that we send, with room for the spelling of `state_charset`.
const LONGEST_STATE: u32 = 128;

/// Reads the table.
pub(super) fn dialect(parser: &mut Parser, at: &str, raw: Option<&RawDialect>) -> Said {
    let none = RawDialect::default();
    let raw = raw.unwrap_or(&none);
    let (authorize, response) = (raw.authorize.clone().unwrap_or_default(), raw.response.clone().unwrap_or_default());
    let (token, refresh) = (raw.token.clone().unwrap_or_default(), raw.refresh.clone().unwrap_or_default());
    if authorize.state_max.is_some_and(|most| most < LONGEST_STATE) {
        let text = format!("is too short: the state that protects a login has up to {LONGEST_STATE} characters");
        parser.found.problem(join(at, "authorize.state_max"), text);
    }
    if authorize
        .fragment
        .as_ref()
        .is_some_and(|text| !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'))
    {
        parser.found.problem(join(at, "authorize.fragment"), "must be letters, digits or _");
    }
    if raw.user_agent.as_ref().is_some_and(|text| http::HeaderValue::try_from(text).is_err()) {
        parser.found.problem(join(at, "user_agent"), "does not fit into a header");
    }
    let accept = response.accept.clone();
    // One way of authentication for both requests; what differs is whether the secret is sent.
    let manner = |raw: &RawManner| {
        let default = Manner::default();
        let query = matches!(raw.auth.or(token.auth), Some(Auth::Query | Auth::QueryIdOnly));
        let method = raw.method.or(token.method).unwrap_or(if query { Method::Get } else { Method::Post });
        let name = |own: &Option<String>, shared: &Option<String>, default: String| {
            own.clone().or_else(|| shared.clone()).unwrap_or(default)
        };
        Manner {
            get: method == Method::Get,
            client_id_param: name(&raw.client_id_param, &token.client_id_param, default.client_id_param),
            client_secret_param: name(
                &raw.client_secret_param,
                &token.client_secret_param,
                default.client_secret_param,
            ),
            secret: !matches!(raw.auth, Some(Auth::QueryIdOnly | Auth::None)),
            accept: raw.accept.clone().or_else(|| accept.clone()).unwrap_or(default.accept),
        }
    };
    let dialect = Dialect {
        pkce: raw.pkce != Some(Pkce::Off),
        authorize: Authorize {
            client_id_param: authorize.client_id_param.unwrap_or_else(|| "client_id".to_owned()),
            scope_separator: authorize.scope_separator.unwrap_or_else(|| " ".to_owned()),
            order: authorize.order.unwrap_or_default(),
            fragment: authorize.fragment,
            plain_state: authorize.state_charset == Some(StateCharset::Alnum),
            bare_denial: authorize.denied_when == Some(DeniedWhen::NoCodeNoError),
        },
        token: manner(&token),
        refresh: manner(&refresh),
        refresh_life: refresh.life.as_ref().map(duration),
        response: answers(parser, &join(at, "response"), response),
        userinfo_subject: raw.userinfo_subject.clone(),
        claims: raw.claims.iter().flatten().map(|(name, pick)| (name.clone(), picked(pick))).collect(),
        revocation: match raw.revocation.unwrap_or(RevocationStyle::Rfc7009) {
            RevocationStyle::Rfc7009 => Revocation::Standard,
            RevocationStyle::RefreshOnly => Revocation::RefreshOnly,
            RevocationStyle::Bearer => Revocation::Bearer,
            RevocationStyle::GitHub => Revocation::GitHub,
            RevocationStyle::None => Revocation::None,
        },
        user_agent: raw.user_agent.clone(),
        placement: placement(parser, &join(at, "upstream"), raw.upstream.clone().unwrap_or_default()),
    };
    if let Some(place) = &dialect.userinfo_subject {
        pointer(parser, &join(at, "userinfo_subject"), place);
    }
    for (name, pick) in &dialect.claims {
        pointer(parser, &join(&join(at, "claims"), name), &pick.pointer);
    }
    Said {
        dialect,
        id_token: raw.id_token.unwrap_or(IdToken::Required),
        logout: match raw.logout.unwrap_or(Logout::Oidc) {
            Logout::Oidc => LogoutStyle::Oidc,
            Logout::Cognito => LogoutStyle::Cognito,
            Logout::Auth0V2 => LogoutStyle::Auth0V2,
            Logout::None => LogoutStyle::None,
        },
        auth: token.auth,
    }
}

fn placement(parser: &mut Parser, at: &str, raw: RawUpstream) -> Option<Placement> {
    if raw.placement != Some(Where::Query) {
        for (set, name) in [(raw.param.is_some(), "param"), (raw.extra.is_some(), "extra")] {
            if set {
                parser.found.problem(
                    join(at, name),
                    "is for placement = \"query\"; a header is named by token_header of a route",
                );
            }
        }
        return None;
    }
    let param = raw.param.unwrap_or_else(|| "access_token".to_owned());
    let mut plain = |key: &str, name: &str| {
        if !is_token(name) {
            parser.found.problem(join(at, key), format!("must be the name of a parameter, not {}", shown(name)));
        }
    };
    plain("param", &param);
    let mut extra = Vec::new();
    for (name, text) in raw.extra.into_iter().flatten() {
        plain("extra", &name);
        let value = match text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            Some(claim) => Extra::Claim(claim.to_owned()),
            None => Extra::Text(text),
        };
        extra.push((name, value));
    }
    Some(Placement { param, extra })
}

fn picked(raw: &RawPick) -> Pick {
    match raw {
        RawPick::Pointer(pointer) => Pick { pointer: pointer.clone(), with: Vec::new() },
        RawPick::Item(item) => Pick { pointer: item.pointer.clone(), with: item.with.clone().into_iter().collect() },
    }
}

fn answers(parser: &mut Parser, at: &str, raw: RawResponse) -> Response {
    let default = Response::default();
    let mut place = |name: &str, given: Option<String>, default: String| {
        let Some(place) = given else { return default };
        pointer(parser, &join(at, name), &place);
        place
    };
    let mut rules = Vec::new();
    let codes = [(Class::Dead, raw.dead), (Class::Retry, raw.retry), (Class::Config, raw.config)];
    let whens = [(Class::Dead, raw.dead_when), (Class::Retry, raw.retry_when), (Class::Config, raw.config_when)];
    // The more special ones first.
    for (class, list) in whens {
        rules.extend(list.into_iter().flatten().map(|rule| Rule {
            class,
            status: rule.status,
            error: rule.error,
            description_prefix: rule.description_prefix,
            description_contains: rule.description_contains,
        }));
    }
    for (class, list) in codes {
        rules.extend(list.into_iter().flatten().map(|error| Rule {
            class,
            status: None,
            error: Some(error),
            description_prefix: None,
            description_contains: None,
        }));
    }
    Response {
        format: match raw.format.unwrap_or(Format::Json) {
            Format::Json => AnswerFormat::Json,
            Format::Form => AnswerFormat::Form,
            Format::Auto => AnswerFormat::Auto,
        },
        root: place("root", raw.root, default.root),
        access_token: place("access_token", raw.access_token, default.access_token),
        refresh_token: place("refresh_token", raw.refresh_token, default.refresh_token),
        expires_in: place("expires_in", raw.expires_in, default.expires_in),
        scope: place("scope", raw.scope, default.scope),
        any_token_type: raw.token_type == Some(TokenType::Any),
        error: place("error", raw.error, default.error),
        error_ok: raw.error_ok.unwrap_or_default(),
        description: place("description", raw.description, default.description),
        ok: raw.ok.map(|given| place("ok", Some(given), String::new())),
        rules,
        subject: raw.subject.map(|given| place("subject", Some(given), String::new())),
        keep: raw.keep.unwrap_or_default(),
    }
}

fn pointer(parser: &mut Parser, key: &str, text: &str) {
    if !text.is_empty() && !text.starts_with('/') {
        parser.found.problem(key, format!("must be a JSON pointer such as \"/error\", not {}", shown(text)));
    }
}
