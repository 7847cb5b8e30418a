//! Where a provider departs from the standards: what it calls things, where its answers have them, which of its errors
//! mean what. All of it is data of the configuration; here it is read by.

use std::time::Duration;

use serde_json::{Map, Value};
use url::form_urlencoded;

use super::error::ProviderError;
use super::json::{self, JsonError};
use super::token::Answer;

/// `[provider.dialect]`, parsed. The default is the standards.
#[derive(Clone, Debug, PartialEq)]
pub struct Dialect {
    /// PKCE (RFC 7636); off only for a provider that refuses what it does not know.
    pub pkce: bool,
    pub authorize: Authorize,
    /// Of the code's exchange.
    pub token: Manner,
    /// Of the refresh.
    pub refresh: Manner,
    /// How long a refresh token lives when the provider tells nothing.
    pub refresh_life: Option<Duration>,
    pub response: Response,
    /// Where userinfo has the subject; none = `sub`, which must be the ID token's.
    pub userinfo_subject: Option<String>,
    /// Claims made of others.
    pub claims: Vec<(String, Pick)>,
    pub revocation: Revocation,
    pub user_agent: Option<String>,
    /// Where the provider's own API takes the token, if not in a header.
    pub placement: Option<Placement>,
}

/// A token in the query of requests to the upstream (RFC 6750 section 2.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The parameter.
    pub param: String,
    /// Parameters that go with it.
    pub extra: Vec<(String, Extra)>,
}

/// What a parameter says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extra {
    Text(String),
    /// A claim of the session; left out when it is not there.
    Claim(String),
}

impl Default for Dialect {
    fn default() -> Self {
        Self {
            pkce: true,
            authorize: Authorize::default(),
            token: Manner::default(),
            refresh: Manner::default(),
            refresh_life: None,
            response: Response::default(),
            userinfo_subject: None,
            claims: Vec::new(),
            revocation: Revocation::Standard,
            user_agent: None,
            placement: None,
        }
    }
}

/// The authorization request and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorize {
    pub client_id_param: String,
    pub scope_separator: String,
    /// These parameters first, in this order.
    pub order: Vec<String>,
    /// Put behind the URL.
    pub fragment: Option<String>,
    /// `state` of letters and digits only.
    pub plain_state: bool,
    /// An answer with neither code nor error is a refusal of the user's.
    pub bare_denial: bool,
}

impl Default for Authorize {
    fn default() -> Self {
        Self {
            client_id_param: "client_id".to_owned(),
            scope_separator: " ".to_owned(),
            order: Vec::new(),
            fragment: None,
            plain_state: false,
            bare_denial: false,
        }
    }
}

/// How a token request is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manner {
    /// By GET, all parameters in the query.
    pub get: bool,
    /// Id and secret are parameters of these names.
    pub client_id_param: String,
    pub client_secret_param: String,
    /// False: the id alone, whatever `client_auth` says.
    pub secret: bool,
    pub accept: String,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            get: false,
            client_id_param: "client_id".to_owned(),
            client_secret_param: "client_secret".to_owned(),
            secret: true,
            accept: "application/json".to_owned(),
        }
    }
}

/// How an answer of the token endpoint is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    /// `application/x-www-form-urlencoded`.
    Form,
    /// By its content type.
    Auto,
}

/// What an error of the provider means for the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The grant is spent or revoked.
    Dead,
    /// Nothing happened; worth another try.
    Retry,
    /// Our client is not set up there as it should be.
    Config,
}

/// Which errors are of a class: those that fit in all that is said here.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub class: Class,
    pub status: Option<u16>,
    pub error: Option<Value>,
    pub description_prefix: Option<String>,
    pub description_contains: Option<String>,
}

/// Where an answer of the token endpoint has what. Places are JSON pointers (RFC 6901) into the whole answer, but for
/// the tokens, which are looked for below `root`.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    pub format: Format,
    pub root: String,
    pub access_token: String,
    pub refresh_token: String,
    pub expires_in: String,
    pub scope: String,
    /// Any `token_type`, or none.
    pub any_token_type: bool,
    pub error: String,
    /// These values are no errors.
    pub error_ok: Vec<Value>,
    pub description: String,
    /// False there is an error.
    pub ok: Option<String>,
    pub rules: Vec<Rule>,
    pub subject: Option<String>,
    /// Members of the answer that become claims.
    pub keep: Vec<String>,
}

impl Default for Response {
    fn default() -> Self {
        let at = |name: &str| format!("/{name}");
        Self {
            format: Format::Json,
            root: String::new(),
            access_token: at("access_token"),
            refresh_token: at("refresh_token"),
            expires_in: at("expires_in"),
            scope: at("scope"),
            any_token_type: false,
            error: at("error"),
            error_ok: Vec::new(),
            description: at("error_description"),
            ok: None,
            rules: Vec::new(),
            subject: None,
            keep: Vec::new(),
        }
    }
}

/// One thing out of a claim.
#[derive(Clone, Debug, PartialEq)]
pub struct Pick {
    /// A JSON pointer into all claims.
    pub pointer: String,
    /// Of a list: the first item with these members; none = the first.
    pub with: Vec<(String, Value)>,
}

impl Pick {
    /// What it picks of `claims`.
    pub fn of(&self, claims: &Value) -> Option<Value> {
        let found = claims.pointer(&self.pointer)?;
        let Value::Array(items) = found else { return Some(found.clone()) };
        let fits = |item: &&Value| self.with.iter().all(|(name, value)| item.get(name) == Some(value));
        items.iter().find(fits).cloned()
    }
}

/// How a token is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// RFC 7009.
    Standard,
    /// RFC 7009, of refresh tokens only: access tokens end with them.
    RefreshOnly,
    /// By the access token itself, as a bearer.
    Bearer,
    /// `DELETE` with a JSON body, as GitHub has it.
    GitHub,
    None,
}

impl Response {
    /// The members of an answer's body.
    ///
    /// # Errors
    /// See [`JsonError`].
    pub fn members(&self, answer: &Answer) -> Result<Value, JsonError> {
        let form = match self.format {
            Format::Json => false,
            Format::Form => true,
            Format::Auto => answer.content_type == "application/x-www-form-urlencoded",
        };
        if !form {
            return json::object(&answer.body).map(Value::Object);
        }
        let mut members = Map::new();
        for (name, value) in form_urlencoded::parse(&answer.body) {
            if members.insert(name.into_owned(), value.into_owned().into()).is_some() {
                return Err(JsonError::Shape);
            }
        }
        if members.is_empty() { Err(JsonError::Syntax) } else { Ok(Value::Object(members)) }
    }

    /// Whether the answer says that there is an error.
    pub fn is_error(&self, members: &Value) -> bool {
        let refused = |place: &String| members.pointer(place) == Some(&Value::Bool(false));
        self.ok.as_ref().is_some_and(refused)
            || members.pointer(&self.error).is_some_and(|error| !self.error_ok.contains(error))
    }

    /// What the provider's own rules say of an error; none when they say nothing.
    pub fn classify(&self, members: &Value, answer: &Answer) -> Option<ProviderError> {
        let error = members.pointer(&self.error);
        let told = members.pointer(&self.description).and_then(Value::as_str).unwrap_or_default();
        let fits = |rule: &&Rule| {
            rule.status.is_none_or(|status| status == answer.status)
                && rule.error.as_ref().is_none_or(|wanted| error.is_some_and(|error| same(error, wanted)))
                && rule.description_prefix.as_ref().is_none_or(|prefix| told.starts_with(prefix.as_str()))
                && rule.description_contains.as_ref().is_none_or(|part| told.contains(part.as_str()))
        };
        Some(match self.rules.iter().find(fits)?.class {
            Class::Dead => ProviderError::Dead { reason: "invalid_grant" },
            Class::Retry => ProviderError::Unavailable { reason: "server_error", retry_after: answer.retry_after },
            Class::Config => ProviderError::Refused { reason: "invalid_client" },
        })
    }
}

/// A code may come as a number or as text.
fn same(one: &Value, other: &Value) -> bool {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    one == other || text(one) == text(other)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(status: u16, content_type: &str, body: &str) -> Answer {
        Answer {
            status,
            content_type: content_type.to_owned(),
            retry_after: None,
            dpop_nonce: None,
            nonce_challenge: false,
            body: body.as_bytes().to_vec(),
        }
    }

    #[test]
    fn a_form_is_read_by_its_content_type_and_no_name_counts_twice() {
        let response = Response { format: Format::Auto, ..Response::default() };
        let form = "application/x-www-form-urlencoded";
        assert_eq!(response.members(&answer(200, form, "a=1&b=x%20y")), Ok(json!({"a": "1", "b": "x y"})));
        assert_eq!(response.members(&answer(200, form, "a=1&a=2")), Err(JsonError::Shape));
        assert_eq!(response.members(&answer(200, form, "")), Err(JsonError::Syntax));
        assert_eq!(response.members(&answer(200, "application/json", r#"{"a":1}"#)), Ok(json!({"a": 1})));
        assert!(Response::default().members(&answer(200, form, "a=1")).is_err());
    }

    #[test]
    fn errors_are_told_by_code_status_and_text() {
        let rule = |class, error: Value| Rule {
            class,
            status: None,
            error: Some(error),
            description_prefix: None,
            description_contains: None,
        };
        let response = Response {
            error: "/errcode".to_owned(),
            error_ok: vec![json!(0)],
            ok: Some("/ok".to_owned()),
            rules: vec![
                rule(Class::Dead, json!(40030)),
                rule(Class::Retry, json!("-1")),
                Rule { status: Some(400), description_prefix: Some("Old".into()), ..rule(Class::Config, json!("x")) },
            ],
            description: "/errmsg".to_owned(),
            ..Response::default()
        };
        assert!(!response.is_error(&json!({"errcode": 0})) && !response.is_error(&json!({"ok": true})));
        assert!(response.is_error(&json!({"errcode": 1})) && response.is_error(&json!({"ok": false})));
        let class = |status, members: Value| response.classify(&members, &answer(status, "", ""));
        assert!(matches!(class(200, json!({"errcode": "40030"})), Some(ProviderError::Dead { .. })));
        assert!(matches!(class(200, json!({"errcode": -1})), Some(ProviderError::Unavailable { .. })));
        assert_eq!(class(200, json!({"errcode": "x", "errmsg": "Old key"})), None);
        assert!(matches!(
            class(400, json!({"errcode": "x", "errmsg": "Old key"})),
            Some(ProviderError::Refused { .. })
        ));
        assert_eq!(class(400, json!({"errcode": "y"})), None);
    }

    #[test]
    fn an_item_of_a_list_is_picked_by_what_it_has() {
        let claims = json!({"accounts": [{"n": 1}, {"n": 2, "is_default": true}], "x": {"y": 3}});
        let pick = |pointer: &str, with: Vec<(String, Value)>| Pick { pointer: pointer.to_owned(), with }.of(&claims);
        assert_eq!(pick("/accounts", vec![("is_default".into(), json!(true))]).unwrap()["n"], 2);
        assert_eq!(pick("/accounts", vec![]).unwrap()["n"], 1);
        assert_eq!(pick("/accounts", vec![("n".into(), json!(9))]), None);
        assert_eq!(pick("/x/y", vec![]), Some(json!(3)));
    }
}
