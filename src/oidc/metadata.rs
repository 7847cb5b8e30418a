//! Provider metadata (OpenID Connect Discovery, RFC 8414): which endpoints we may use and what the provider can do.

use serde_json::{Map, Value};
use url::{Host, Url};

use super::error::Fault;
use super::json;
use super::settings::Settings;

/// What we use of the discovery document, the operator's overrides applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderMetadata {
    /// Equal to the configured issuer, byte for byte.
    pub issuer: String,
    /// Where the browser goes to sign in.
    pub authorization: Url,
    /// Where codes and refresh tokens are redeemed.
    pub token: Url,
    /// Where refresh tokens are redeemed.
    pub refresh: Url,
    /// Where the keys are.
    pub jwks: Option<Url>,
    /// Claims by access token.
    pub userinfo: Option<Url>,
    /// RP-initiated logout.
    pub end_session: Option<Url>,
    /// RFC 7009.
    pub revocation: Option<Url>,
    /// RFC 7662.
    pub introspection: Option<Url>,
    /// RFC 9126.
    pub pushed_authorization_request: Option<Url>,
    /// Authorization answers carry `iss` (RFC 9207).
    pub iss_parameter: bool,
    /// The provider takes authorization requests only by PAR (RFC 9126 section 5).
    pub par_required: bool,
    /// The provider takes authorization requests only signed (RFC 9101 section 10.5).
    pub request_object_required: bool,
    /// `scopes_supported`, when told.
    pub scopes: Option<Vec<String>>,
    /// `id_token_signing_alg_values_supported`, when told.
    pub id_token_algs: Option<Vec<String>>,
    /// `code_challenge_methods_supported`, when told.
    pub challenge_methods: Option<Vec<String>>,
    /// `token_endpoint_auth_methods_supported`, when told.
    pub auth_methods: Option<Vec<String>>,
    /// `token_endpoint_auth_signing_alg_values_supported`, when told.
    pub auth_algs: Option<Vec<String>>,
    /// `request_object_signing_alg_values_supported`, when told.
    pub request_object_algs: Option<Vec<String>>,
    /// `dpop_signing_alg_values_supported`: telling it says that the provider knows DPoP.
    pub dpop_algs: Option<Vec<String>>,
    /// `response_modes_supported`, when told.
    pub response_modes: Option<Vec<String>>,
    /// Tokens are bound to the client's certificate (RFC 8705 section 3.3).
    pub certificate_bound: bool,
    /// It sends logout tokens.
    pub backchannel_logout: bool,
    /// Its logout page frames ours.
    pub frontchannel_logout: bool,
}

impl ProviderMetadata {
    /// Reads a discovery document.
    ///
    /// # Errors
    /// `metadata` (no JSON object), `issuer` (another one), `authorization_endpoint`, `token_endpoint` or `jwks_uri`
    /// (missing or not usable).
    pub fn parse(document: &[u8], settings: &Settings) -> Result<Self, Fault> {
        let document = json::object(document).map_err(|_| Fault("metadata"))?;
        if settings.has_issuer && document.get("issuer").and_then(Value::as_str) != Some(settings.issuer.as_str()) {
            return Err(Fault("issuer"));
        }
        let front = |name: &str, own: &Option<Url>| own.clone().or_else(|| endpoint(&document, name));
        // With a client certificate these take the place of the others (RFC 8705 section 5).
        let aliases =
            settings.client_certificate.as_ref().and_then(|_| document.get("mtls_endpoint_aliases")?.as_object());
        let back = |name: &str, own: &Option<Url>| {
            let found = || aliases.and_then(|aliases| endpoint(aliases, name)).or_else(|| endpoint(&document, name));
            own.clone().or_else(|| moved(found()?, settings.backchannel_base_url.as_ref()))
        };
        let own = &settings.endpoints;
        let says = |name: &str| document.get(name) == Some(&Value::Bool(true));
        let token = back("token_endpoint", &own.token).ok_or(Fault("token_endpoint"))?;
        let jwks = back("jwks_uri", &own.jwks);
        if settings.openid && jwks.is_none() {
            return Err(Fault("jwks_uri"));
        }
        Ok(Self {
            issuer: settings.issuer.clone(),
            authorization: front("authorization_endpoint", &own.authorization)
                .ok_or(Fault("authorization_endpoint"))?,
            refresh: own.refresh.clone().unwrap_or_else(|| token.clone()),
            token,
            jwks,
            userinfo: back("userinfo_endpoint", &own.userinfo),
            end_session: front("end_session_endpoint", &own.end_session),
            revocation: back("revocation_endpoint", &own.revocation),
            introspection: back("introspection_endpoint", &own.introspection),
            pushed_authorization_request: back(
                "pushed_authorization_request_endpoint",
                &own.pushed_authorization_request,
            ),
            iss_parameter: says("authorization_response_iss_parameter_supported"),
            par_required: says("require_pushed_authorization_requests"),
            request_object_required: says("require_signed_request_object"),
            certificate_bound: says("tls_client_certificate_bound_access_tokens"),
            backchannel_logout: says("backchannel_logout_supported"),
            frontchannel_logout: says("frontchannel_logout_supported"),
            scopes: words(&document, "scopes_supported"),
            id_token_algs: words(&document, "id_token_signing_alg_values_supported"),
            challenge_methods: words(&document, "code_challenge_methods_supported"),
            auth_methods: words(&document, "token_endpoint_auth_methods_supported"),
            auth_algs: words(&document, "token_endpoint_auth_signing_alg_values_supported"),
            request_object_algs: words(&document, "request_object_signing_alg_values_supported"),
            dpop_algs: words(&document, "dpop_signing_alg_values_supported"),
            response_modes: words(&document, "response_modes_supported"),
        })
    }

    /// What the configuration alone says, for a provider without metadata.
    ///
    /// # Errors
    /// `authorization_endpoint` or `token_endpoint` (missing).
    pub fn configured(settings: &Settings) -> Result<Self, Fault> {
        let own = &settings.endpoints;
        let token = own.token.clone().ok_or(Fault("token_endpoint"))?;
        Ok(Self {
            issuer: settings.issuer.clone(),
            authorization: own.authorization.clone().ok_or(Fault("authorization_endpoint"))?,
            refresh: own.refresh.clone().unwrap_or_else(|| token.clone()),
            token,
            jwks: own.jwks.clone(),
            userinfo: own.userinfo.clone(),
            end_session: own.end_session.clone(),
            revocation: own.revocation.clone(),
            introspection: own.introspection.clone(),
            pushed_authorization_request: own.pushed_authorization_request.clone(),
            iss_parameter: false,
            par_required: false,
            request_object_required: false,
            certificate_bound: false,
            backchannel_logout: false,
            frontchannel_logout: false,
            scopes: None,
            id_token_algs: None,
            challenge_methods: None,
            auth_methods: None,
            auth_algs: None,
            request_object_algs: None,
            dpop_algs: None,
            response_modes: None,
        })
    }

    /// Whether the provider says that it does not know this scope. `offline_access` is left out then; other scopes
    /// are sent as configured, because providers rarely list them all.
    pub fn denies_scope(&self, scope: &str) -> bool {
        self.scopes.as_ref().is_some_and(|known| !known.iter().any(|name| name == scope))
    }
}

fn words(document: &Map<String, Value>, name: &str) -> Option<Vec<String>> {
    let list = document.get(name)?.as_array()?;
    Some(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

fn endpoint(document: &Map<String, Value>, name: &str) -> Option<Url> {
    usable(document.get(name)?.as_str()?)
}

/// An endpoint we would send a secret or a browser to: absolute https (http on loopback), no user, no fragment.
pub fn usable(text: &str) -> Option<Url> {
    // The URL parser forgives blanks, control characters, backslashes and missing slashes; a document gets no such
    // mercy.
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let (scheme, rest) = text.split_once("://")?;
    if !plain || rest.starts_with('/') || rest.split(['/', '?', '#']).next()?.contains('@') {
        return None;
    }
    let url = Url::parse(text).ok()?;
    let secure = match url.scheme() {
        "https" => scheme.eq_ignore_ascii_case("https"),
        "http" => scheme.eq_ignore_ascii_case("http") && is_loopback(&url),
        _ => false,
    };
    (secure && url.host().is_some() && url.fragment().is_none()).then_some(url)
}

/// Whether the URL names this machine.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

/// `url` under the origin of `base`.
fn moved(mut url: Url, base: Option<&Url>) -> Option<Url> {
    if let Some(base) = base {
        url.set_scheme(base.scheme()).ok()?;
        url.set_host(base.host_str()).ok()?;
        url.set_port(base.port()).ok()?;
    }
    Some(url)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::oidc::testing::settings;

    fn document() -> Value {
        json!({
            "issuer": "https://op.example",
            "authorization_endpoint": "https://op.example/authorize?p=1",
            "token_endpoint": "https://op.example/token",
            "jwks_uri": "https://keys.example/set-8a1",
            "userinfo_endpoint": "https://op.example/userinfo",
            "end_session_endpoint": "https://op.example/end",
            "revocation_endpoint": "https://op.example/revoke",
            "authorization_response_iss_parameter_supported": true,
            "scopes_supported": ["openid", "email"],
            "unknown_member": {"a": [1]},
        })
    }

    fn with(name: &str, value: Value) -> Result<ProviderMetadata, Fault> {
        let mut document = document();
        document[name] = value;
        ProviderMetadata::parse(document.to_string().as_bytes(), &settings("https://op.example"))
    }

    /// oidcc-client-test-discovery-openid-config, -discovery-jwks-uri-keys: every URL comes from the document.
    #[test]
    fn endpoints_come_from_the_document() {
        let metadata = with("issuer", json!("https://op.example")).unwrap();
        assert_eq!(metadata.authorization.as_str(), "https://op.example/authorize?p=1");
        assert_eq!(metadata.jwks.as_ref().unwrap().as_str(), "https://keys.example/set-8a1");
        assert!(metadata.iss_parameter);
        assert!(metadata.denies_scope("offline_access") && !metadata.denies_scope("email"));
        assert!(!with("scopes_supported", Value::Null).unwrap().denies_scope("offline_access"));
    }

    /// oidcc-client-test-discovery-issuer-mismatch, ASVS-10.5.3: byte for byte.
    #[test]
    fn another_issuer_is_not_used() {
        for issuer in
            ["https://op.example/", "https://OP.example", "http://op.example", "https://op.exampleINVALID", ""]
        {
            assert_eq!(with("issuer", json!(issuer)), Err(Fault("issuer")), "{issuer}");
        }
        assert_eq!(with("issuer", json!(["https://op.example"])), Err(Fault("issuer")));
    }

    /// KEY-02, ASVS-1.3.6, ASVS-12.2.1: endpoints are absolute https URLs.
    #[test]
    fn unfit_endpoints_are_not_used() {
        for url in [
            "http://op.example/token",
            "javascript:alert(1)",
            "file:///etc/passwd",
            "/token",
            "//op.example/token",
            "https:op.example/token",
            "https:///op.example",
            "https://user@op.example/token",
            "https://user:pw@op.example/token",
            "https://@op.example/token",
            "https://op.example/token#x",
            "https://op.example\\@evil.example/",
            " https://op.example/token",
            "https://op.ex\tample/token",
            "ftp://op.example/",
            "",
        ] {
            assert_eq!(with("token_endpoint", json!(url)), Err(Fault("token_endpoint")), "{url}");
            assert_eq!(with("end_session_endpoint", json!(url)).unwrap().end_session, None, "{url}");
        }
        for url in ["http://127.0.0.1:8080/t", "http://[::1]/t", "http://localhost:1/t", "HTTPS://op.example/t"] {
            assert!(with("token_endpoint", json!(url)).is_ok(), "{url}");
        }
        assert_eq!(with("token_endpoint", json!(7)), Err(Fault("token_endpoint")));
    }

    #[test]
    fn overrides_win_and_the_back_channel_moves_origin_only() {
        let mut settings = settings("https://op.example");
        settings.backchannel_base_url = Some(Url::parse("http://keycloak.svc:8080").unwrap());
        settings.endpoints.revocation = Some(Url::parse("https://other.example/r").unwrap());
        let metadata = ProviderMetadata::parse(document().to_string().as_bytes(), &settings).unwrap();
        assert_eq!(metadata.token.as_str(), "http://keycloak.svc:8080/token");
        assert_eq!(metadata.jwks.as_ref().unwrap().as_str(), "http://keycloak.svc:8080/set-8a1");
        assert_eq!(metadata.userinfo.unwrap().as_str(), "http://keycloak.svc:8080/userinfo");
        assert_eq!(metadata.revocation.unwrap().as_str(), "https://other.example/r");
        assert_eq!(metadata.authorization.as_str(), "https://op.example/authorize?p=1");
        assert_eq!(metadata.end_session.unwrap().as_str(), "https://op.example/end");
    }

    /// oidcc-client-test-mtls-endpoint-aliases: with a certificate, and only then.
    #[test]
    fn a_client_certificate_goes_to_the_aliases() {
        let mut document = document();
        document["pushed_authorization_request_endpoint"] = json!("https://op.example/par");
        document["mtls_endpoint_aliases"] =
            json!({"token_endpoint": "https://mtls.op.example/token", "userinfo_endpoint": "http://plain.example/"});
        let mut settings = settings("https://op.example");
        let parse = |settings: &Settings| ProviderMetadata::parse(document.to_string().as_bytes(), settings).unwrap();
        assert_eq!(parse(&settings).token.as_str(), "https://op.example/token");
        let (cert, key) = ("c.pem".into(), "k.pem".into());
        settings.client_certificate = Some(crate::oidc::settings::CertificateFiles { cert, key });
        let metadata = parse(&settings);
        assert_eq!(metadata.token.as_str(), "https://mtls.op.example/token");
        assert_eq!(metadata.userinfo.unwrap().as_str(), "https://op.example/userinfo", "an alias that is not https");
        assert_eq!(metadata.pushed_authorization_request.unwrap().as_str(), "https://op.example/par");
    }

    /// IDT-07 for metadata: duplicates and non-objects.
    #[test]
    fn odd_documents_are_refused() {
        let settings = settings("https://op.example");
        let doubled = document().to_string().replacen('{', r#"{"issuer":"https://op.example","#, 1);
        for text in ["", "[]", "null", "<html>", doubled.as_str()] {
            assert_eq!(ProviderMetadata::parse(text.as_bytes(), &settings), Err(Fault("metadata")), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_usable_is_safe(text in r"(https?|ftp)?:?/{0,3}[a-z@:\\/.#? 0-9\[\]]{0,30}") {
            if let Some(url) = usable(&text) {
                prop_assert!(url.username().is_empty() && url.password().is_none() && url.fragment().is_none());
                prop_assert!(url.scheme() == "https" || is_loopback(&url));
            }
        }
    }
}
