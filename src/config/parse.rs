//! What the configuration means: every rule that a schema cannot say. Goes through all sections before it gives up, so
//! that one run shows every mistake.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use url::{Host, Url};

use super::dialect::{self, IdToken};
use super::files::Files;
use super::load::{Surroundings, join};
use super::problem::{Findings, shown};
use super::raw::{self, OneOrMany, RawConfig};
use super::text::{DurationText, SizeText};
use super::{AdminSettings, Config, LogFormat, LogSettings, Reading, ServerSettings, TlsFiles, routes};
use crate::crypto::keyring::{Key, Keyring};
use crate::gateway::template::Template;
use crate::net::{self, ListenAddress};
use crate::oidc::dialect::Extra;
use crate::oidc::jwe::{ContentEncryption, Decryption, KeyManagement};
use crate::oidc::jwt::Algorithm;
use crate::oidc::settings::{CertificateFiles, ClientAuth, Endpoints};
use crate::oidc::signing::SigningKey;
use crate::oidc::types::TokenTarget;
use crate::refresh::shared::OnError;
use crate::secret::Secret;
use crate::store::settings::{Address, Deployment};
use crate::web::origin::{Origin, is_loopback};
use crate::{gateway, oidc, refresh, session, spans, store};

/// What the authorization request says itself: a fixed or passed-on parameter must not replace it.
const OWN_AUTHORIZE_PARAMS: [&str; 11] = [
    "client_id",
    "redirect_uri",
    "response_type",
    "response_mode",
    "scope",
    "state",
    "nonce",
    "code_challenge",
    "code_challenge_method",
    "request",
    "request_uri",
];
/// The same for token requests.
const OWN_TOKEN_PARAMS: [&str; 9] = [
    "grant_type",
    "code",
    "redirect_uri",
    "code_verifier",
    "refresh_token",
    "client_id",
    "client_secret",
    "client_assertion",
    "client_assertion_type",
];

/// Said where `login = false` leaves nobody to log in at.
const NOBODY: &str = "has login = false: there must be one that users log in at";

/// Reads all sections.
pub(super) fn parse(raw: RawConfig, found: Findings, around: &Surroundings) -> Reading {
    let mut parser = Parser { found, files: Files::default() };
    let config = parser.config(raw, around);
    let Parser { found, files } = parser;
    let named: BTreeSet<PathBuf> = found.sources.files().map(PathBuf::from).chain(files.watched).collect();
    let named: Vec<PathBuf> = named.into_iter().collect();
    let outcome = match config {
        Some(mut config) if found.problems.is_empty() => {
            config.watched_files.clone_from(&named);
            config.warnings = found.warnings;
            Ok(config)
        }
        _ => Err(found.problems),
    };
    Reading { files: named, outcome }
}

/// Collectors are named by their base, as other exporters do; the whole path is taken as it is.
fn traces_endpoint(mut url: Url) -> Url {
    let path = url.path().trim_end_matches('/');
    if !path.ends_with("/v1/traces") {
        let path = format!("{path}/v1/traces");
        url.set_path(&path);
    }
    url
}

pub(super) struct Parser {
    pub(super) found: Findings,
    pub(super) files: Files,
}

impl Parser {
    fn config(&mut self, mut raw: RawConfig, around: &Surroundings) -> Option<Config> {
        raw.log.format.get_or_insert(if around.terminal { raw::LogFormat::Text } else { raw::LogFormat::Json });

        let public = self.public_url(raw.server.public_url.as_deref());
        let prefix = self.prefix(&raw.endpoints.prefix);
        let server = self.server(&raw);
        let admin = self.admin(&raw.admin, &server.listen);
        let log = log(&raw.log);
        let mut providers = match raw.provider.take() {
            Some(OneOrMany::Many(many)) if !many.is_empty() => OneOrMany::Many(many),
            Some(OneOrMany::One(provider)) => OneOrMany::One(provider),
            Some(OneOrMany::Many(_)) | None => OneOrMany::One(raw::Provider::default()),
        };
        let mut oidc: Vec<Option<oidc::Settings>> = match &mut providers {
            OneOrMany::One(provider) => {
                if !provider.login {
                    self.found.problem("provider.login", NOBODY);
                }
                vec![self.provider("provider", provider, &raw, public.as_ref(), &prefix)]
            }
            OneOrMany::Many(many) => {
                let several = many.iter().filter(|provider| provider.login).count() > 1;
                if many.iter().all(|provider| !provider.login) {
                    self.found.problem("provider", NOBODY);
                }
                let each = many.iter_mut().enumerate().map(|(index, provider)| {
                    let mut own =
                        self.provider(&format!("provider[{index}]"), provider, &raw, public.as_ref(), &prefix);
                    if let Some(own) = own.as_mut().filter(|_| several && provider.login) {
                        own.name.clone_from(&provider.name);
                    }
                    own
                });
                each.collect()
            }
        };
        self.told_apart(&providers, &oidc);
        let services = self.services(&providers, &mut oidc, &raw.route);
        raw.provider = Some(providers);
        let keys = self.keys(&mut raw.session, public.as_ref());
        self.session(&raw.session, public.as_ref());
        if raw.session.store == raw::Store::Redis && raw.redis.is_none() && !self.found.blamed("redis") {
            self.found.problem("session.store", "\"redis\" needs a [redis] section");
        }
        let refresh = self.refresh(&raw);
        let redis = self.redis(raw.redis.as_mut());
        self.family_kill(&raw);
        let csrf = self.csrf(&raw.csrf);
        let logout = self.logout(&raw);
        let claims = self.claims(&raw.claims);
        let routes = routes::routes(self, &raw.route, &prefix, raw.refresh.verify);
        for oidc in oidc.iter_mut().flatten() {
            for (index, route) in raw.route.iter().enumerate().filter(|_| !oidc.openid) {
                let told = "needs OpenID Connect: without an ID token nothing says how, or when, the user logged in";
                let mut refuse = |wished: bool, key: &str| {
                    if wished {
                        self.found.problem(format!("route[{index}].{key}"), told);
                    }
                };
                refuse(route.max_auth_age.is_some(), "max_auth_age");
                refuse(route.acr_values.is_some(), "acr_values");
            }
            for (index, route) in raw.route.iter().enumerate() {
                let raw::RouteToken::Own(own) = &route.token else { continue };
                let target = TokenTarget { scopes: own.scopes.clone().unwrap_or_default(), ..TokenTarget::default() };
                let elsewhere = own.audience.is_some() || own.resource.is_some();
                let asked = oidc.scopes.join(" ");
                let beyond = target.scopes.iter().find(|scope| !oidc.scopes.contains(scope));
                let application = own.client_credentials == Some(true);
                if own.provider.is_some() {
                    continue;
                }
                if let Some(scope) = beyond.filter(|_| !elsewhere && !application && target.is_beyond(&asked)) {
                    let told = format!("{} is not among provider.scopes: the user would not grant it", shown(scope));
                    self.found.problem(format!("route[{index}].token.scopes"), told);
                }
                if oidc.dpop && (application || own.exchange == Some(true)) {
                    let told = "cannot be had together with provider.dpop = \"require\", but by refresh";
                    self.found.problem(format!("route[{index}].token"), told);
                }
                if application && matches!(oidc.client_auth, ClientAuth::None) {
                    let told = "needs a client that can prove itself, not client_auth = \"none\"";
                    self.found.problem(format!("route[{index}].token.client_credentials"), told);
                }
            }
            // What a route wants of a login has to reach the provider.
            let mut pass = |wanted: bool, name: &str| {
                if wanted && !oidc.login_params.iter().any(|known| known == name) {
                    oidc.login_params.push(name.to_owned());
                }
            };
            pass(routes.iter().any(|route| route.max_auth_age.is_some()), "max_age");
            pass(routes.iter().any(|route| !route.acr_values.is_empty()), "acr_values");
        }
        self.by_refresh(&raw);
        if let Some(oidc) = oidc.iter().flatten().find(|oidc| oidc.dialect.placement.is_some()) {
            let key = "provider.dialect.upstream.placement";
            if oidc.dpop {
                self.found.problem(key, "\"query\" cannot be had together with provider.dpop = \"require\"");
            }
            if raw.verify.listen != "off" {
                self.found.problem(key, "\"query\" cannot be had together with [verify]: its answers are headers");
            }
        }
        let verify = self.verify(&raw.verify, &server.listen, admin.listen);
        let tracing = self.tracing(&raw.tracing);

        let (public, (keyring, keyring_is_random)) = (public?, keys?);
        let mut oidc = oidc.into_iter().collect::<Option<Vec<_>>>()?;
        // A template may mean what only the token answer says.
        for claim in routes.iter().filter_map(|route| route.template.as_ref()).map(Template::claim) {
            let head = claim.split('.').next().unwrap_or(claim);
            for keep in oidc.iter_mut().map(|oidc| &mut oidc.dialect.response.keep) {
                for name in [claim, head] {
                    if !keep.iter().any(|kept| kept == name) {
                        keep.push(name.to_owned());
                    }
                }
            }
        }
        let mut sealed: BTreeSet<String> = claims.iter().cloned().collect();
        for placement in oidc.iter().filter_map(|oidc| oidc.dialect.placement.as_ref()) {
            sealed.extend(placement.extra.iter().filter_map(|(_, extra)| match extra {
                Extra::Claim(claim) => Some(claim.clone()),
                Extra::Text(_) => None,
            }));
        }
        for route in &routes {
            sealed.extend(route.template.iter().map(|template| template.claim().to_owned()));
            sealed.extend(route.identity_headers.iter().map(|(_, claim)| claim.clone()));
            sealed.extend(route.require.iter().map(|(claim, _)| claim.clone()));
        }
        // These have places of their own in the session.
        for claim in ["sub", "sid", "auth_time", "acr"] {
            sealed.remove(claim);
        }
        let form_post = oidc.iter().any(|oidc| oidc.form_post);
        let placements = oidc.iter().filter_map(|oidc| oidc.dialect.placement.as_ref());
        let placed = placements.flat_map(|it| std::iter::once(&it.param).chain(it.extra.iter().map(|(name, _)| name)));
        let placed = placed.cloned().collect();
        let keyed = oidc.iter().filter_map(|oidc| Some((oidc.key()?, oidc.issuer.clone())));
        let keyed: Vec<_> = keyed.collect();
        let mut oidc = oidc.into_iter();
        let (oidc, more_oidc) = (oidc.next()?, oidc.collect::<Vec<_>>());
        // With several the session itself says whose it is.
        let (issuer, client_id) = match keyed.is_empty() {
            true => (oidc.issuer.clone(), oidc.client_id.clone()),
            false => ("several providers".to_owned(), String::new()),
        };
        let session = session::Settings {
            cookie_name: raw.session.cookie_name.clone(),
            same_site: match raw.session.same_site {
                raw::SameSite::Strict => session::settings::SameSite::Strict,
                raw::SameSite::Lax => session::settings::SameSite::Lax,
                raw::SameSite::None => session::settings::SameSite::None,
            },
            form_post,
            partitioned: raw.session.partitioned,
            store: match raw.session.store {
                raw::Store::Cookie => session::settings::Store::Cookie,
                raw::Store::Redis => session::settings::Store::Tickets,
            },
            layout: match raw.session.layout {
                raw::Layout::Single => session::settings::Layout::Single,
                raw::Layout::Split => session::settings::Layout::Split,
            },
            prefix: raw.endpoints.prefix.clone(),
            public: public.clone(),
            issuer,
            client_id,
            providers: keyed,
            max_age: duration(&raw.session.max_age),
            idle_timeout: raw.session.idle_timeout.read().flatten(),
            max_refreshes: raw.session.max_refreshes,
            header_budget: bytes(&raw.session.header_budget),
            claims: sealed.into_iter().collect(),
            id_token_needed: routes.iter().any(|route| route.token == gateway::settings::Token::Id),
        };
        let gateway = gateway::settings::Settings {
            public,
            prefix,
            routes,
            csrf: csrf?,
            body_idle: server.net.body_idle,
            head: gateway::settings::HeadLimits {
                header_bytes: server.net.header_bytes,
                header_count: server.net.header_count,
                uri_bytes: server.net.uri_bytes,
            },
            logout: logout?,
            expose: claims,
            trusted_proxies: server.trusted_proxies.clone(),
            replay_refused: raw.refresh.on_upstream_401 == raw::OnUpstream401::Replayable,
            single_replica: server.single_replica,
            verify: routes::verify(raw.refresh.verify),
            placed,
            form_post,
        };
        Some(Config {
            server,
            admin,
            verify,
            log,
            gateway,
            oidc,
            more_oidc,
            services: services?,
            session,
            keyring,
            keyring_is_random,
            tracing,
            refresh,
            redis,
            raw,
            watched_files: Vec::new(),
            warnings: Vec::new(),
        })
    }

    // -----------------------------------------------------------------------------------------------------------------
    // [server], [limits], [admin], [endpoints]
    // -----------------------------------------------------------------------------------------------------------------

    fn public_url(&mut self, text: Option<&str>) -> Option<Origin> {
        const KEY: &str = "server.public_url";
        let Some(text) = text else {
            self.found
                .missing(KEY, "is required: the origin that the browser uses, such as \"https://app.example.com\"");
            return None;
        };
        match Origin::parse(text) {
            Ok(origin) if origin.is_https() || origin.is_loopback() => Some(origin),
            Ok(_) => {
                self.found
                    .problem(KEY, format!("must begin with https:// (http:// only on loopback), not {}", shown(text)));
                None
            }
            Err(error) => {
                self.found.problem(KEY, error.to_string());
                None
            }
        }
    }

    fn server(&mut self, raw: &RawConfig) -> ServerSettings {
        let server = &raw.server;
        let mut listen = Vec::new();
        for (key, text) in each("server.listen", &server.listen) {
            match listen_address(text) {
                Ok(address) if listen.contains(&address) => {
                    self.found.problem(key, format!("{address} is there twice"))
                }
                Ok(address) => listen.push(address),
                Err(text) => self.found.problem(key, text),
            }
        }
        if server.listen.as_slice().is_empty() {
            self.found.problem("server.listen", "is empty: name an address such as \"0.0.0.0:8080\"");
        }
        let trusted_proxies = self.networks("server.trusted_proxies", &server.trusted_proxies);
        if server.proxy_protocol && server.trusted_proxies.is_empty() {
            self.found.problem("server.proxy_protocol", "needs server.trusted_proxies: only those may use it");
        }
        let limits = &raw.limits;
        let settings = ServerSettings {
            listen,
            tls: self.tls(server.tls.as_ref()),
            trusted_proxies,
            proxy_protocol: server.proxy_protocol,
            threads: to_usize(server.threads),
            h2c: server.h2c,
            single_replica: server.single_replica,
            shutdown_delay: duration(&server.shutdown_delay),
            shutdown_drain: duration(&server.shutdown_drain),
            net: net::Settings {
                head_timeout: self.positive("limits.head_timeout", &limits.head_timeout),
                keepalive: duration(&limits.keepalive),
                body_idle: self.positive("limits.body_idle", &limits.body_idle),
                connections: to_usize(limits.connections),
                header_bytes: self.some_bytes("limits.header_bytes", &limits.header_bytes),
                header_count: to_usize(limits.header_count),
                uri_bytes: self.some_bytes("limits.uri_bytes", &limits.uri_bytes),
            },
        };
        if settings.net.header_bytes < bytes(&raw.session.header_budget) {
            self.found.warn(
                "limits.header_bytes",
                "is less than session.header_budget: a browser may get cookies that are refused when they come back",
            );
        }
        settings
    }

    fn networks(&mut self, key: &str, texts: &[String]) -> Vec<IpNet> {
        let mut networks = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            let at = format!("{key}[{index}]");
            match text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from)) {
                Ok(network) => {
                    if network.prefix_len() == 0 {
                        self.found.warn(at, format!("{text} believes X-Forwarded-For of every peer"));
                    }
                    networks.push(network);
                }
                Err(_) => {
                    self.found.problem(at, format!("must be a network such as \"10.0.0.0/8\", not {}", shown(text)))
                }
            }
        }
        networks
    }

    fn tls(&mut self, tls: Option<&raw::ServerTls>) -> Option<TlsFiles> {
        let tls = tls?;
        let client_ca_file = tls.client_ca_file.as_deref();
        if let Some(path) = client_ca_file {
            self.files.certificates("server.tls.client_ca_file", path, &mut self.found);
        }
        let (cert, key) = self.both("server.tls", ["cert_file", "key_file"], [&tls.cert_file, &tls.key_file])?;
        Some(TlsFiles {
            cert_file: PathBuf::from(cert),
            key_file: PathBuf::from(key),
            client_ca_file: client_ca_file.map(PathBuf::from),
        })
    }

    /// Certificate and key: both or a problem; judged together.
    pub(super) fn both<'f>(
        &mut self,
        table: &str,
        names: [&str; 2],
        paths: [&'f Option<String>; 2],
    ) -> Option<(&'f str, &'f str)> {
        match paths.map(Option::as_deref) {
            [Some(cert), Some(key)] => {
                self.files.pair(table, names, [cert, key], &mut self.found);
                Some((cert, key))
            }
            given => {
                for (name, path) in names.into_iter().zip(given) {
                    let key = join(table, name);
                    match path {
                        Some(path) => self.files.there(&key, path, &mut self.found),
                        None => self
                            .found
                            .missing(&key, "is required beside the other one: certificate and key go together"),
                    }
                }
                None
            }
        }
    }

    fn admin(&mut self, admin: &raw::Admin, public: &[ListenAddress]) -> AdminSettings {
        let listen = self.address_or_off("admin.listen", &admin.listen);
        if let Some(address) = listen.filter(|address| address.port() != 0)
            && public.contains(&ListenAddress::Tcp(address))
        {
            self.found
                .problem("admin.listen", format!("{address} is also in server.listen; give it a port of its own"));
        }
        if let Some(path) = &admin.token_file {
            self.files.secret("admin.token_file", path, &mut self.found);
        }
        AdminSettings {
            listen,
            ready_requires_provider: admin.ready_requires_provider,
            token_file: admin.token_file.as_ref().map(PathBuf::from),
        }
    }

    fn address_or_off(&mut self, key: &str, text: &str) -> Option<SocketAddr> {
        if text == "off" {
            return None;
        }
        let address = text.parse().ok();
        if address.is_none() {
            self.found.problem(
                key,
                format!("must be an address such as \"127.0.0.1:9180\", or \"off\", not {}", shown(text)),
            );
        }
        address
    }

    fn verify(
        &mut self,
        verify: &raw::Verify,
        public: &[ListenAddress],
        admin: Option<SocketAddr>,
    ) -> Option<ListenAddress> {
        const KEY: &str = "verify.listen";
        if verify.listen == "off" {
            return None;
        }
        let address = match listen_address(&verify.listen) {
            Ok(address) => address,
            Err(text) => {
                self.found.problem(KEY, format!("{text}; or \"off\""));
                return None;
            }
        };
        let any_port = matches!(&address, ListenAddress::Tcp(socket) if socket.port() == 0);
        if !any_port && (public.contains(&address) || admin.map(ListenAddress::Tcp).as_ref() == Some(&address)) {
            let text = format!("{address} is also another listener's: a page must not be able to read tokens there");
            self.found.problem(KEY, text);
        }
        if matches!(&address, ListenAddress::Tcp(socket) if !socket.ip().is_loopback()) {
            self.found.warn(KEY, "answers carry access tokens: let nobody but the proxy that asks reach it");
        }
        Some(address)
    }

    fn prefix(&mut self, text: &str) -> String {
        let segment = |segment: &str| {
            !segment.is_empty()
                && !matches!(segment, "." | "..")
                && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
        };
        if !text.strip_prefix('/').is_some_and(|rest| rest.split('/').all(segment)) {
            self.found.problem(
                "endpoints.prefix",
                format!("must be a path such as \"/auth\": begins with / and has no / at its end, not {}", shown(text)),
            );
        }
        text.to_owned()
    }

    // -----------------------------------------------------------------------------------------------------------------
    // [provider]
    // -----------------------------------------------------------------------------------------------------------------

    fn provider(
        &mut self,
        at: &str,
        provider: &mut raw::Provider,
        raw: &RawConfig,
        public: Option<&Origin>,
        prefix: &str,
    ) -> Option<oidc::Settings> {
        let key = |name: &str| join(at, name);
        let said = dialect::dialect(self, &key("dialect"), provider.dialect.as_ref());
        let asks_openid = provider.scopes.iter().any(|scope| scope == "openid");
        let speaks_openid = match said.id_token {
            IdToken::Required => true,
            IdToken::ByScope => asks_openid,
            IdToken::None => false,
        };
        let openid = speaks_openid && provider.login;
        let mut endpoints = self.endpoints(&key("endpoints"), &provider.endpoints);
        if !provider.login && endpoints.authorization.is_none() {
            // Nobody is ever sent there.
            endpoints.authorization = endpoints.token.clone();
        }
        let has_issuer = openid || provider.issuer.is_some();
        let issuer = match (&provider.issuer, &endpoints.token) {
            (None, Some(token)) if !openid => Some(token.as_str().to_owned()),
            (None, None) if !openid => None,
            _ => self.issuer(&key("issuer"), provider.issuer.as_deref(), provider.discovery_url.is_some()),
        };
        let allowed_tenants = self.tenants(&key("allowed_tenants"), provider);
        let client_id = provider.client_id.as_deref().filter(|id| !id.trim().is_empty());
        match (&provider.client_id, client_id) {
            (None, _) => {
                self.found.missing(&key("client_id"), "is required: the client id as registered at the provider")
            }
            (Some(_), None) => self.found.problem(key("client_id"), "is empty"),
            _ => {}
        }
        let client_id = client_id.map(str::to_owned);
        if provider.profile.is_some() {
            self.fapi2(at, provider);
        }
        let signing_key = self.signing_key(at, provider);
        let client_certificate = self.client_certificate(at, provider);
        let client_auth = self.client_auth(at, provider, signing_key.as_ref(), said.auth);
        let decryption = self.decryption(at, provider, client_auth.as_ref());
        if provider.request_object == raw::RequestObject::Require && provider.private_key_file.is_none() {
            self.found.missing(&key("private_key_file"), "is required with request_object = \"require\"");
        }
        if provider.response_mode == raw::ResponseMode::FormPost && public.is_some_and(|public| !public.is_https()) {
            self.found.problem(
                key("response_mode"),
                "\"form_post\" needs an https server.public_url: browsers drop its cookie otherwise",
            );
        }
        if let Some(path) = &provider.ca_file {
            self.files.certificates(&key("ca_file"), path, &mut self.found);
        }
        self.scopes(&key("scopes"), &provider.scopes, said.id_token == IdToken::Required);
        let asked = |scope: &String| {
            provider.scopes.iter().chain(provider.user_scopes.iter().flatten()).any(|one| one == scope)
        };
        for scope in provider.required_scopes.iter().filter(|scope| !asked(scope)) {
            let told = format!("{} is not among provider.scopes: what is not asked for is not granted", shown(scope));
            self.found.problem(key("required_scopes"), told);
        }
        let own = |name: &str| OWN_AUTHORIZE_PARAMS.contains(&name);
        for name in provider.authorize_params.keys().filter(|name| own(name)) {
            self.found
                .problem(join(&key("authorize_params"), name), "is set by sidegate itself and cannot be replaced");
        }
        for name in provider.token_params.keys().filter(|name| OWN_TOKEN_PARAMS.contains(&name.as_str())) {
            self.found.problem(join(&key("token_params"), name), "is set by sidegate itself and cannot be replaced");
        }
        for name in provider.login_params.iter().filter(|name| own(name)) {
            self.found
                .problem(key("login_params"), format!("{name:?} is set by sidegate itself; a link must not choose it"));
        }
        let resource: Vec<String> = provider.resource.iter().flat_map(OneOrMany::as_slice).cloned().collect();
        for text in &resource {
            if !Url::parse(text).is_ok_and(|url| url.fragment().is_none()) {
                self.found
                    .problem(key("resource"), format!("must be an absolute URI without fragment, not {}", shown(text)));
            }
        }
        let well_known = |document: &str| {
            let issuer = issuer.as_ref()?.trim_end_matches('/');
            Url::parse(&format!("{issuer}/.well-known/{document}")).ok()
        };
        let mut other_discovery_url = None;
        let discovery_url = match &provider.discovery_url {
            Some(text) => self.provider_url(&key("discovery_url"), text),
            // All is said already.
            None if !openid && endpoints.authorization.is_some() && endpoints.token.is_some() => None,
            None if !has_issuer => {
                for (name, endpoint) in [("authorization", &endpoints.authorization), ("token", &endpoints.token)] {
                    if endpoint.is_none() {
                        self.found.missing(
                            &join(&key("endpoints"), name),
                            "is required where neither issuer nor discovery_url says it",
                        );
                    }
                }
                None
            }
            // With or without an ID token this time: a provider that has them has this document.
            None if said.id_token != IdToken::None => well_known("openid-configuration"),
            None => {
                other_discovery_url = well_known("openid-configuration");
                well_known("oauth-authorization-server")
            }
        };
        let backchannel_base_url = provider.backchannel_base_url.as_ref().and_then(|text| {
            let url = self.provider_url(&key("backchannel_base_url"), text)?;
            if url.path() != "/" || url.query().is_some() {
                self.found.problem(
                    key("backchannel_base_url"),
                    "must be an origin: scheme, host and port, without path or query",
                );
            }
            Some(url)
        });
        let proxy = provider.proxy.as_ref().and_then(|text| self.forward_proxy(&key("proxy"), text));
        let timeout = self.positive(&key("timeout"), &provider.timeout);

        let own_callback = (provider.callback == raw::Callback::Own).then(|| provider.name.clone()).flatten();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if provider.callback == raw::Callback::Own {
            match &own_callback {
                Some(name) if !name.is_empty() && name.bytes().all(plain) => {}
                Some(name) => {
                    let told = format!("\"own\" needs a name of letters, digits, - and _, not {}", shown(name));
                    self.found.problem(key("callback"), told);
                }
                None => self.found.problem(key("callback"), "\"own\" needs a name: the callback is called by it"),
            }
        }

        let public = public?;
        let redirect_uri = match &own_callback {
            Some(name) => format!("{}{prefix}/callback/{name}", public.as_str()),
            None => format!("{}{prefix}/callback", public.as_str()),
        };
        Some(oidc::Settings {
            name: None,
            own_callback,
            issuer: issuer?,
            has_issuer,
            allowed_tenants,
            openid,
            dialect: said.dialect,
            discovery_url,
            other_discovery_url,
            backchannel_base_url,
            client_id: client_id?,
            client_auth: client_auth?,
            signing_key,
            client_certificate,
            par: match provider.par {
                raw::Par::Auto => oidc::settings::Par::Auto,
                raw::Par::Require => oidc::settings::Par::Require,
                raw::Par::Off => oidc::settings::Par::Off,
            },
            request_object: match provider.request_object {
                raw::RequestObject::Auto => oidc::settings::RequestObject::Auto,
                raw::RequestObject::Require => oidc::settings::RequestObject::Require,
            },
            dpop: provider.dpop == raw::Dpop::Require,
            form_post: provider.response_mode == raw::ResponseMode::FormPost,
            iss_required: provider.profile == Some(raw::SecurityProfile::Fapi2),
            ca_file: provider.ca_file.as_ref().map(PathBuf::from),
            scopes: provider.scopes.clone(),
            required_scopes: provider.required_scopes.clone(),
            audience: provider.audience.clone(),
            resource,
            authorize_params: provider.authorize_params.clone().into_iter().collect(),
            token_params: provider
                .token_params
                .iter()
                .map(|(name, value)| (name.clone(), value.expose().to_owned()))
                .collect(),
            login_params: provider.login_params.clone(),
            id_token_alg: algorithm(provider.id_token_alg),
            trusted_audiences: provider.trusted_audiences.clone(),
            userinfo: provider.userinfo,
            endpoints,
            introspection: provider.introspection.then(|| timeout.min(duration(&raw.refresh.timeout))),
            id_token_decryption: decryption,
            timeout,
            clock_skew: duration(&provider.clock_skew),
            proxy,
            default_expires_in: raw.refresh.default_expires_in.as_ref().map(duration),
            redirect_uri,
            post_logout_redirect_uri: format!("{}{prefix}/logout/return", public.as_str()),
            logout_at_provider: raw.logout.provider,
            backchannel_logout: raw.logout.backchannel,
            frontchannel_logout: raw.logout.frontchannel,
            logout_style: said.logout,
            revoke: raw.logout.revoke,
        })
    }

    /// Several providers have names and issuers of their own.
    fn told_apart(&mut self, providers: &OneOrMany<raw::Provider>, read: &[Option<oidc::Settings>]) {
        let OneOrMany::Many(many) = providers else { return };
        if many.len() < 2 {
            return;
        }
        for (index, provider) in many.iter().enumerate() {
            let key = format!("provider[{index}].name");
            let plain = |name: &str| {
                !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_. ".contains(&byte))
            };
            match provider.name.as_deref() {
                None => {
                    self.found.missing(&key, "is required with several providers: /auth/login?provider= calls it so")
                }
                Some(name) if !plain(name) => {
                    self.found
                        .problem(&key, format!("must be letters, digits, blanks, -, _ or ., not {}", shown(name)));
                }
                Some(name) => {
                    if let Some(other) = many.iter().take(index).position(|other| other.name.as_deref() == Some(name)) {
                        self.found.problem(&key, format!("is also the name of provider[{other}]"));
                    }
                }
            }
            let issuer = |own: &Option<oidc::Settings>| own.as_ref().map(|own| own.issuer.clone());
            let own = read.get(index).filter(|_| provider.login).and_then(issuer);
            let earlier = read.iter().zip(many).take(index);
            let same = |(other, raw): (&Option<oidc::Settings>, &raw::Provider)| raw.login && issuer(other) == own;
            if let Some(other) = earlier.into_iter().position(same).filter(|_| own.is_some()) {
                let text = format!("is also the issuer of provider[{other}]: nothing would tell their answers apart");
                self.found.problem(format!("provider[{index}].issuer"), text);
            }
        }
    }

    /// Takes out of the list where nobody logs in. None when something is wrong with one.
    fn services(
        &mut self,
        providers: &OneOrMany<raw::Provider>,
        read: &mut Vec<Option<oidc::Settings>>,
        routes: &[raw::Route],
    ) -> Option<Vec<(String, oidc::Settings)>> {
        let many = providers.as_slice();
        let (logins, services): (Vec<_>, Vec<_>) = read.drain(..).zip(many).partition(|(_, raw)| raw.login);
        read.extend(logins.into_iter().map(|(own, _)| own));
        for (index, route) in routes.iter().enumerate() {
            let raw::RouteToken::Own(own) = &route.token else { continue };
            let known = |name: &&String| services.iter().all(|(_, raw)| raw.name.as_ref() != Some(name));
            if let Some(name) = own.provider.as_ref().filter(known) {
                let told = format!("must name a [[provider]] with login = false, not {}", shown(name));
                self.found.problem(format!("route[{index}].token.provider"), told);
            }
        }
        services.into_iter().map(|(own, raw)| Some((raw.name.clone()?, own?))).collect()
    }

    /// Whose users may come, where the issuer leaves the tenant open.
    fn tenants(&mut self, key: &str, provider: &raw::Provider) -> Vec<String> {
        let open = provider.issuer.as_ref().is_some_and(|issuer| issuer.contains("{tenantid}"));
        match (&provider.allowed_tenants, open) {
            (None, true) => {
                self.found.missing(
                    key,
                    "is required with this tenant: the ids of the tenants whose users may sign in, or [\"*\"] for all",
                );
                Vec::new()
            }
            (Some(tenants), true) if tenants.is_empty() => {
                self.found.problem(key, "is empty: nobody could sign in");
                Vec::new()
            }
            (Some(tenants), true) if tenants.iter().any(|tenant| tenant == "*") => {
                self.found.warn(key, "\"*\": users of every tenant may sign in, and anybody can make a tenant");
                Vec::new()
            }
            (Some(tenants), true) => tenants.clone(),
            (Some(_), false) => {
                self.found.warn(key, "has no effect: the issuer names one tenant");
                Vec::new()
            }
            (None, false) => Vec::new(),
        }
    }

    /// With a discovery URL beside it the issuer may be any text: some providers have such.
    fn issuer(&mut self, key: &str, text: Option<&str>, any: bool) -> Option<String> {
        let Some(text) = text else {
            self.found
                .missing(key, "is required: the provider's issuer, such as \"https://login.example.com/realms/acme\"");
            return None;
        };
        if any && !text.is_empty() && !text.contains("://") && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Some(text.to_owned());
        }
        let url = self.provider_url(key, text)?;
        if url.query().is_some() {
            self.found.problem(key, "must not contain a query");
            return None;
        }
        // Not the parsed form: it is compared byte for byte with what the provider says.
        Some(text.to_owned())
    }

    /// https, or http on loopback; no user, no fragment.
    fn provider_url(&mut self, key: &str, text: &str) -> Option<Url> {
        let clean = text.bytes().all(|byte| byte.is_ascii_graphic());
        let url = Url::parse(text).ok().filter(|url| clean && url.host().is_some());
        let Some(url) = url else {
            self.found.problem(key, format!("must be an absolute https:// URL, not {}", shown(text)));
            return None;
        };
        let local = url.host().is_some_and(|host| is_loopback(&host));
        let complaint = match url.scheme() {
            "https" => None,
            "http" if local => None,
            _ => Some(format!("must begin with https:// (http:// only on loopback), not {}", shown(text))),
        };
        let complaint = complaint.or_else(|| {
            if !url.username().is_empty() || url.password().is_some() {
                Some("must not contain a user or password".to_owned())
            } else {
                url.fragment().map(|_| "must not contain a fragment".to_owned())
            }
        });
        match complaint {
            Some(text) => {
                self.found.problem(key, text);
                None
            }
            None => Some(url),
        }
    }

    fn forward_proxy(&mut self, key: &str, text: &str) -> Option<Url> {
        let url = Url::parse(text).ok().filter(|url| {
            url.scheme() == "http"
                && url.host().is_some()
                && url.username().is_empty()
                && url.password().is_none()
                && url.path() == "/"
                && url.query().is_none()
                && url.fragment().is_none()
        });
        if url.is_none() {
            self.found.problem(key, format!("must be http://host:port, not {}", shown(text)));
        }
        url
    }

    fn endpoints(&mut self, at: &str, raw: &raw::ProviderEndpoints) -> Endpoints {
        let mut read =
            |name: &str, text: &Option<String>| text.as_ref().and_then(|text| self.provider_url(&join(at, name), text));
        Endpoints {
            pushed_authorization_request: read("pushed_authorization_request", &raw.pushed_authorization_request),
            authorization: read("authorization", &raw.authorization),
            token: read("token", &raw.token),
            refresh: read("refresh", &raw.refresh),
            jwks: read("jwks", &raw.jwks),
            userinfo: read("userinfo", &raw.userinfo),
            end_session: read("end_session", &raw.end_session),
            revocation: read("revocation", &raw.revocation),
            introspection: read("introspection", &raw.introspection),
        }
    }

    /// The key of `private_key_file`, whatever it is for.
    fn signing_key(&mut self, at: &str, provider: &raw::Provider) -> Option<Arc<SigningKey>> {
        let at = |name: &str| join(at, name);
        let path = provider.private_key_file.as_deref()?;
        let content = self.files.private(&at("private_key_file"), path, &mut self.found)?;
        let key = match SigningKey::parse(&content, provider.private_key_id.as_deref()) {
            Ok(key) => key,
            Err(error) => {
                self.found.problem(at("private_key_file"), format!("{path} {error}"));
                return None;
            }
        };
        let fapi2 = provider.profile.is_some();
        let wanted = match provider.private_key_alg {
            Some(raw::PrivateKeyAlg::Es256) => Algorithm::Es256,
            Some(raw::PrivateKeyAlg::Rs256) => Algorithm::Rs256,
            Some(raw::PrivateKeyAlg::Ps256) => Algorithm::Ps256,
            Some(raw::PrivateKeyAlg::EdDsa) => Algorithm::EdDsa,
            None if fapi2 && key.algorithm() == Algorithm::Rs256 => Algorithm::Ps256,
            None => key.algorithm(),
        };
        if fapi2 && wanted == Algorithm::Rs256 {
            self.found.problem(
                at("private_key_alg"),
                "must not be \"RS256\" with profile = \"fapi2\"; use \"PS256\", \"ES256\" or \"EdDSA\"",
            );
        }
        let fitting = key.with_algorithm(wanted);
        if fitting.is_none() {
            self.found.problem(
                at("private_key_alg"),
                format!("\"{wanted}\" does not fit the key in {path}; leave it out, and the key decides"),
            );
        }
        fitting.map(Arc::new)
    }

    /// What opens encrypted ID tokens.
    fn decryption(&mut self, at: &str, provider: &raw::Provider, auth: Option<&ClientAuth>) -> Option<Arc<Decryption>> {
        let at = |name: &str| join(at, name);
        let file = at("decryption_key_file");
        let enc = match provider.id_token_encrypted_response_enc {
            raw::IdTokenEncryption::A128Gcm => ContentEncryption::A128Gcm,
            raw::IdTokenEncryption::A256Gcm => ContentEncryption::A256Gcm,
        };
        let alg = match provider.id_token_encrypted_response_alg {
            Some(raw::IdTokenKeyManagement::Dir) => KeyManagement::Dir,
            Some(raw::IdTokenKeyManagement::EcdhEs) => KeyManagement::EcdhEs,
            Some(raw::IdTokenKeyManagement::EcdhEsA128Kw) => KeyManagement::EcdhEsA128Kw,
            Some(raw::IdTokenKeyManagement::EcdhEsA256Kw) => KeyManagement::EcdhEsA256Kw,
            None => {
                if provider.decryption_key_file.is_some() {
                    self.found.problem(file, "needs id_token_encrypted_response_alg, such as \"ECDH-ES\"");
                }
                return None;
            }
        };
        if alg == KeyManagement::Dir {
            if provider.decryption_key_file.is_some() {
                self.found.problem(file, "is not used with \"dir\", whose key is the client secret's");
            }
            let secret = auth.and_then(ClientAuth::secret);
            if auth.is_some() && secret.is_none() {
                let told = "\"dir\" needs a client secret: its key is derived from that";
                self.found.problem(at("id_token_encrypted_response_alg"), told);
            }
            return secret.map(|secret| Arc::new(Decryption::shared(secret, enc)));
        }
        let Some(path) = provider.decryption_key_file.as_deref() else {
            self.found.missing(&file, format!("is required with {}: the P-256 key that it encrypts to", alg.name()));
            return None;
        };
        let content = self.files.private(&file, path, &mut self.found)?;
        match Decryption::parse(&content, alg, enc) {
            Ok(decryption) => Some(Arc::new(decryption)),
            Err(error) => {
                self.found.problem(file, format!("{path} {error}"));
                None
            }
        }
    }

    fn client_certificate(&mut self, at: &str, provider: &raw::Provider) -> Option<CertificateFiles> {
        if provider.tls_cert_file.is_none() && provider.tls_key_file.is_none() {
            return None;
        }
        let paths = [&provider.tls_cert_file, &provider.tls_key_file];
        let (cert, key) = self.both(at, ["tls_cert_file", "tls_key_file"], paths)?;
        Some(CertificateFiles { cert: PathBuf::from(cert), key: PathBuf::from(key) })
    }

    fn client_auth(
        &mut self,
        at: &str,
        provider: &mut raw::Provider,
        signing_key: Option<&Arc<SigningKey>>,
        dialect: Option<dialect::Auth>,
    ) -> Option<ClientAuth> {
        let key = join(at, "client_secret");
        let given = provider.client_secret.is_some() || provider.client_secret_file.is_some();
        let secret = self.secret(&key, &mut provider.client_secret, &mut provider.client_secret_file);
        let method = match dialect {
            None => provider.client_auth,
            Some(dialect::Auth::Basic | dialect::Auth::BasicRaw) => raw::ClientAuth::Basic,
            Some(dialect::Auth::Post | dialect::Auth::Query) => raw::ClientAuth::Post,
            Some(dialect::Auth::QueryIdOnly | dialect::Auth::None) => raw::ClientAuth::None,
        };
        match method {
            raw::ClientAuth::Basic | raw::ClientAuth::Post | raw::ClientAuth::SecretJwt => {
                if !given {
                    let text =
                        format!("or {at}.client_secret_file is required with client_auth = {:?}", method.as_str());
                    if !self.found.blamed(&join(at, "client_secret_file")) {
                        self.found.missing(&key, text);
                    }
                }
                match method {
                    raw::ClientAuth::Post => secret.map(ClientAuth::Post),
                    raw::ClientAuth::SecretJwt => {
                        // RFC 7518 section 3.2: not shorter than the hash.
                        if secret.as_ref().is_some_and(|secret| secret.expose().len() < 32) {
                            self.found.warn(&key, "is shorter than 32 bytes, which client_secret_jwt (HS256) asks for");
                        }
                        secret.map(ClientAuth::SecretJwt)
                    }
                    _ if dialect == Some(dialect::Auth::BasicRaw) => secret.map(ClientAuth::BasicRaw),
                    _ => secret.map(ClientAuth::Basic),
                }
            }
            raw::ClientAuth::PrivateKeyJwt => {
                if provider.private_key_file.is_none() {
                    self.found
                        .missing(&join(at, "private_key_file"), "is required with client_auth = \"private_key_jwt\"");
                }
                signing_key.cloned().map(ClientAuth::PrivateKeyJwt)
            }
            raw::ClientAuth::Tls => {
                if provider.tls_cert_file.is_none() {
                    self.found
                        .missing(&join(at, "tls_cert_file"), "is required with client_auth = \"tls_client_auth\"");
                }
                Some(ClientAuth::Tls)
            }
            raw::ClientAuth::None => {
                if given {
                    self.found.warn(key, "is not used with client_auth = \"none\"");
                }
                Some(ClientAuth::None)
            }
        }
    }

    /// What FAPI 2.0 asks of a client is switched on where nothing is said, and refused where something else is.
    fn fapi2(&mut self, at: &str, provider: &mut raw::Provider) {
        let said = |this: &Self, name: &str| this.found.sources.layer(&join(at, name)).is_some();
        let by_certificate = provider.client_auth == raw::ClientAuth::Tls;
        if !by_certificate && provider.client_auth != raw::ClientAuth::PrivateKeyJwt {
            self.found.problem(
                join(at, "client_auth"),
                "must be \"private_key_jwt\" or \"tls_client_auth\" with profile = \"fapi2\"",
            );
        }
        match provider.par {
            raw::Par::Off => {
                self.found.problem(join(at, "par"), "must not be \"off\" with profile = \"fapi2\"");
            }
            raw::Par::Auto => provider.par = raw::Par::Require,
            raw::Par::Require => {}
        }
        if provider.dpop == raw::Dpop::Off && !by_certificate {
            if said(self, "dpop") {
                self.found.problem(
                    join(at, "dpop"),
                    "must be \"require\" with profile = \"fapi2\", or tokens be bound by tls_client_auth",
                );
            }
            provider.dpop = raw::Dpop::Require;
        }
        if !matches!(provider.id_token_alg, raw::IdTokenAlg::Ps256 | raw::IdTokenAlg::Es256 | raw::IdTokenAlg::EdDsa) {
            if said(self, "id_token_alg") {
                self.found.problem(
                    join(at, "id_token_alg"),
                    format!(
                        "must not be {:?} with profile = \"fapi2\"; use \"PS256\", \"ES256\" or \"EdDSA\"",
                        provider.id_token_alg.as_str()
                    ),
                );
            }
            provider.id_token_alg = raw::IdTokenAlg::Ps256;
        }
    }

    fn scopes(&mut self, key: &str, scopes: &[String], openid: bool) {
        // RFC 6749 section 3.3: one or more of %x21 / %x23-5B / %x5D-7E.
        let token = |scope: &str| {
            !scope.is_empty() && scope.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
        };
        for (index, scope) in scopes.iter().enumerate().filter(|(_, scope)| !token(scope)) {
            self.found.problem(
                format!("{key}[{index}]"),
                format!("must be one scope without blanks, quotes or backslashes, not {}", shown(scope)),
            );
        }
        if openid && !scopes.iter().any(|scope| scope == "openid") && !self.found.blamed(key) {
            self.found.warn(
                key,
                "lacks \"openid\": without it an OpenID Connect provider sends no ID token, and no login holds",
            );
        }
    }

    /// The value of `x`, or what `x_file` holds. Both in one layer is a mistake; of two files the later wins. A file
    /// named by the environment beside a value in a configuration file is refused too: one of them is a left-over, and
    /// guessing which one may put a retired secret back in use.
    fn secret(&mut self, key: &str, value: &mut Option<Secret>, file: &mut Option<String>) -> Option<Secret> {
        let file_key = format!("{key}_file");
        if value.is_some() && file.is_some() {
            match (self.found.sources.layer(key), self.found.sources.layer(&file_key)) {
                (Some(one), Some(other)) if one.rank != other.rank && !other.environment => {
                    if one.rank < other.rank {
                        *value = None
                    } else {
                        *file = None
                    }
                }
                _ => {
                    self.found.problem(&file_key, format!("is set beside {key}; keep one of them"));
                    return None;
                }
            }
        }
        match (&value, &file) {
            (Some(secret), _) if secret.expose().trim().is_empty() => {
                self.found.problem(key, "is blank");
                None
            }
            (Some(secret), _) => Some(secret.clone()),
            (None, Some(path)) => self.files.secret(&file_key, path, &mut self.found),
            (None, None) => None,
        }
    }

    // -----------------------------------------------------------------------------------------------------------------
    // [session], [refresh], [redis]
    // -----------------------------------------------------------------------------------------------------------------

    fn keys(&mut self, session: &mut raw::Session, public: Option<&Origin>) -> Option<(Keyring, bool)> {
        if session.keys.is_some() && session.key_files.is_some() {
            match (self.found.sources.layer("session.keys"), self.found.sources.layer("session.key_files")) {
                (Some(one), Some(other)) if one.rank < other.rank => session.keys = None,
                (Some(one), Some(other)) if one.rank > other.rank => session.key_files = None,
                _ => {
                    self.found.problem("session.key_files", "is set beside session.keys; keep one of them");
                    return None;
                }
            }
        }
        let (at, texts): (&str, Vec<(String, Secret)>) = match (&session.keys, &session.key_files) {
            (Some(keys), _) => {
                let keys = keys.iter().enumerate();
                ("session.keys", keys.map(|(index, key)| (format!("session.keys[{index}]"), key.clone())).collect())
            }
            (None, Some(paths)) => {
                let mut texts = Vec::new();
                for (index, path) in paths.iter().enumerate() {
                    let key = format!("session.key_files[{index}]");
                    let text = self.files.secret(&key, path, &mut self.found)?;
                    texts.push((key, text));
                }
                ("session.key_files", texts)
            }
            (None, None) if public.is_some_and(Origin::is_loopback) && !self.found.blamed("session.keys") => {
                self.found.warn(
                    "session.keys",
                    "no session key is set: a random one is used, and sessions end with this process",
                );
                return Some((Keyring::new(vec![Key::generate()])?, true));
            }
            (None, None) => {
                if !self.found.blamed("session.key_files") {
                    self.found.missing(
                        "session.keys",
                        "a session key is required: set session.key_files to files made by `sidegate keygen`",
                    );
                }
                return None;
            }
        };
        if texts.is_empty() {
            self.found.problem(at, "is empty: it needs at least one key, made by `sidegate keygen`");
            return None;
        }
        let mut keys = Vec::new();
        for (at, text) in &texts {
            match Key::parse(text.expose()) {
                Ok(key) => keys.push(key),
                Err(error) => self.found.problem(at, format!("the key {error}")),
            }
        }
        (keys.len() == texts.len()).then(|| Keyring::new(keys)).flatten().map(|ring| (ring, false))
    }

    fn session(&mut self, session: &raw::Session, public: Option<&Origin>) {
        let name = &session.cookie_name;
        // RFC 6265 section 4.1.1: a token of RFC 9110.
        if !is_token(name) {
            self.found.problem("session.cookie_name", format!("must be letters, digits, - or _, not {}", shown(name)));
        } else if name.to_ascii_lowercase().starts_with("__host-") || name.to_ascii_lowercase().starts_with("__secure-")
        {
            self.found
                .problem("session.cookie_name", "must not begin with a cookie prefix; it is added where it belongs");
        }
        match session.same_site {
            raw::SameSite::Strict => {}
            raw::SameSite::Lax => {
                self.found.warn(
                    "session.same_site",
                    "\"lax\" is weaker than \"strict\": other sites' links arrive with the session",
                );
            }
            raw::SameSite::None if session.partitioned => {
                self.found.warn(
                    "session.same_site",
                    "\"none\" is weaker than \"strict\": only for apps that other sites embed",
                );
                if public.is_some_and(|public| !public.is_https()) {
                    self.found
                        .warn("session.same_site", "\"none\" needs https: most browsers drop such a cookie over http");
                }
            }
            raw::SameSite::None => {
                self.found.problem("session.same_site", "\"none\" needs session.partitioned = true");
            }
        }
        self.positive("session.max_age", &session.max_age);
        if let Some(Some(idle)) = session.idle_timeout.read()
            && idle.is_zero()
        {
            self.found.problem("session.idle_timeout", "must be longer than nothing; use \"off\" to switch it off");
        }
        self.some_bytes("session.header_budget", &session.header_budget);
    }

    fn refresh(&mut self, raw: &RawConfig) -> refresh::settings::Settings {
        let refresh = &raw.refresh;
        refresh::settings::Settings {
            before_expiry: duration(&refresh.before_expiry),
            after: refresh.after.read().flatten(),
            timeout: self.positive("refresh.timeout", &refresh.timeout),
            wait: self.positive("refresh.wait", &refresh.wait),
            grace: duration(&refresh.grace),
            recovery: duration(&refresh.recovery),
            memory: self.some_bytes("refresh.memory", &refresh.memory),
            max_refreshes: raw.session.max_refreshes,
            on_reuse: match raw.refresh.on_reuse {
                raw::OnReuse::Ignore => refresh::OnReuse::Ignore,
                raw::OnReuse::Reauthenticate => refresh::OnReuse::Reauthenticate,
                raw::OnReuse::Revoke => refresh::OnReuse::Revoke,
            },
            rotation: refresh.rotation.map(|rotation| match rotation {
                raw::Rotation::None => refresh::settings::Rotation::None,
                raw::Rotation::Single => refresh::settings::Rotation::Single,
                raw::Rotation::Maybe => refresh::settings::Rotation::Maybe,
            }),
            leeway: refresh.leeway.as_ref().map(duration).unwrap_or_default(),
            kills_access_token: refresh.kills_access_token.unwrap_or_default(),
            replica: (!raw.server.single_replica).then(|| u64::from_be_bytes(crate::crypto::random::bytes())),
        }
    }

    /// Two replicas that spend one refresh token look like a thief to such a provider.
    fn family_kill(&mut self, raw: &RawConfig) {
        let leeway = raw.refresh.leeway.as_ref().map(duration).unwrap_or_default();
        if raw.refresh.reuse == Some(raw::Reuse::Family)
            && raw.refresh.rotation != Some(raw::Rotation::None)
            && leeway.is_zero()
            && raw.redis.is_none()
            && !raw.server.single_replica
        {
            self.found.warn(
                "refresh.reuse",
                "\"family\": this provider ends all tokens of a login when two replicas refresh at once; set [redis], or server.single_replica = true",
            );
        }
    }

    /// Tokens of a route's own by refresh: the refresh token has to come along, and the session's own token to survive.
    fn by_refresh(&mut self, raw: &RawConfig) {
        for (index, route) in raw.route.iter().enumerate() {
            let raw::RouteToken::Own(own) = &route.token else { continue };
            let another = own.exchange == Some(true) || own.client_credentials == Some(true);
            if another || route.static_dir.is_some() {
                continue;
            }
            let mut refuse = |wrong: bool, told: &str| {
                if wrong {
                    self.found.problem(format!("route[{index}].token"), told);
                }
            };
            refuse(
                raw.session.layout == raw::Layout::Split,
                "needs the refresh token, which session.layout = \"split\" keeps from this route: use \"single\", or exchange = true",
            );
            refuse(
                raw.refresh.kills_access_token == Some(true),
                "cannot be had by refresh: this provider then ends the session's access token (refresh.kills_access_token); use exchange = true",
            );
        }
    }

    fn redis(&mut self, redis: Option<&mut raw::Redis>) -> Option<(store::Settings, OnError)> {
        let redis = redis?;
        let given = redis.url.is_some() || redis.url_file.is_some();
        let url = self.secret("redis.url", &mut redis.url, &mut redis.url_file);
        let url = url.and_then(|url| self.redis_url("redis.url", &url));
        let mut urls = Vec::new();
        for (index, url) in redis.urls.iter().flatten().enumerate() {
            urls.extend(self.redis_url(&format!("redis.urls[{index}]"), url));
        }
        let many = redis.urls.as_ref().is_some_and(|urls| !urls.is_empty());
        let deployment = match redis.mode {
            raw::RedisMode::Single => {
                if !given && !self.found.blamed("redis.url_file") {
                    self.found.missing("redis.url", "or redis.url_file is required, such as \"redis://redis:6379\"");
                }
                for (set, key) in [(many, "redis.urls"), (redis.master.is_some(), "redis.master")] {
                    if set {
                        self.found
                            .problem(key, "is for mode = \"sentinel\" or \"cluster\"; a single server has redis.url");
                    }
                }
                url.map(Deployment::Single)
            }
            raw::RedisMode::Sentinel | raw::RedisMode::Cluster => {
                if !many {
                    let text = format!("is required with mode = {:?}: a list of redis:// URLs", redis.mode.as_str());
                    self.found.missing("redis.urls", text);
                }
                if given {
                    let text = format!("has no use with mode = {:?}, which has redis.urls", redis.mode.as_str());
                    self.found.problem("redis.url", text);
                }
                if redis.mode == raw::RedisMode::Sentinel && redis.master.is_none() {
                    self.found.missing("redis.master", "is required with mode = \"sentinel\"");
                }
                if urls.iter().any(|url| url.is_tls() != urls.first().is_some_and(Address::is_tls)) {
                    self.found.problem("redis.urls", "must be all redis:// or all rediss://");
                }
                if redis.mode == raw::RedisMode::Cluster && urls.iter().any(Address::is_unix) {
                    self.found
                        .problem("redis.urls", "a cluster has no unix: URLs: its nodes tell addresses of each other");
                }
                match (redis.mode, redis.master.clone()) {
                    (raw::RedisMode::Cluster, _) => Some(Deployment::Cluster(urls)),
                    (_, master) => master.map(|master| Deployment::Sentinel { sentinels: urls, master }),
                }
            }
        };
        let password = self.secret("redis.password", &mut redis.password, &mut redis.password_file);
        if let Some(path) = &redis.ca_file {
            self.files.certificates("redis.ca_file", path, &mut self.found);
        }
        let mut client = None;
        if redis.cert_file.is_some() || redis.key_file.is_some() {
            let pair = self.both("redis", ["cert_file", "key_file"], [&redis.cert_file, &redis.key_file]);
            client = pair.map(|(cert, key)| (PathBuf::from(cert), PathBuf::from(key)));
        }
        let timeout = self.positive("redis.timeout", &redis.timeout);
        if redis.prefix.is_empty() || !redis.prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
            let text = format!("must be visible ASCII such as \"sidegate:\", not {}", shown(&redis.prefix));
            self.found.problem("redis.prefix", text);
        }
        let tls = store::settings::TlsFiles { ca_file: redis.ca_file.as_ref().map(PathBuf::from), client };
        let on_error = match redis.on_error {
            raw::OnRedisError::Local => OnError::Local,
            raw::OnRedisError::Wait => OnError::Wait,
        };
        let (username, prefix) = (redis.username.clone(), redis.prefix.clone());
        Some((store::Settings { deployment: deployment?, username, password, tls, prefix, timeout }, on_error))
    }

    /// Says nothing of the URL itself: it may hold a password.
    fn redis_url(&mut self, key: &str, url: &Secret) -> Option<Address> {
        match Address::parse(url.expose()) {
            Ok(address) => Some(address),
            Err(reason) => {
                self.found.problem(key, reason);
                None
            }
        }
    }

    // -----------------------------------------------------------------------------------------------------------------
    // [csrf], [logout], [claims], [tracing]
    // -----------------------------------------------------------------------------------------------------------------

    fn csrf(&mut self, csrf: &raw::Csrf) -> Option<gateway::settings::Csrf> {
        let header = HeaderName::from_bytes(csrf.header.as_bytes()).ok();
        if header.is_none() {
            self.found.problem(
                "csrf.header",
                format!("must be a header name such as \"X-CSRF\", not {}", shown(&csrf.header)),
            );
        }
        if header.as_ref().is_some_and(|name| is_sent_unasked(name.as_str())) {
            let told = "browsers send or allow this field on any site's requests, so it proves nothing";
            self.found.problem("csrf.header", format!("{}: {told}", shown(&csrf.header)));
        }
        let mut allowed_origins = Vec::new();
        for (index, text) in csrf.allowed_origins.iter().enumerate() {
            let key = format!("csrf.allowed_origins[{index}]");
            match Origin::parse(text) {
                Ok(origin) if origin.as_str() != text => {
                    self.found.problem(key, format!("must be written as browsers send it: {:?}", origin.as_str()));
                }
                Ok(origin) => {
                    if !origin.is_https() && !origin.is_loopback() {
                        self.found.warn(
                            key,
                            format!("{text} is not https: who sits on its network may call with the session"),
                        );
                    }
                    allowed_origins.push(origin);
                }
                Err(_) => self.found.problem(
                    key,
                    format!("must be an exact origin such as \"https://partner.example.com\", not {}", shown(text)),
                ),
            }
        }
        Some(gateway::settings::Csrf {
            mode: match csrf.mode {
                raw::CsrfMode::FetchMetadata => gateway::settings::CsrfMode::FetchMetadata,
                raw::CsrfMode::Header => gateway::settings::CsrfMode::Header,
            },
            header: header?,
            allowed_origins,
        })
    }

    fn logout(&mut self, raw: &RawConfig) -> Option<gateway::settings::Logout> {
        let logout = &raw.logout;
        let path = &logout.return_to;
        let local = path.starts_with('/')
            && !path.starts_with("//")
            && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
        if !local {
            self.found.problem(
                "logout.return_to",
                format!("must be a path of this origin such as \"/\", not {}", shown(path)),
            );
        }
        for (wanted, key) in [(logout.backchannel, "logout.backchannel"), (logout.frontchannel, "logout.frontchannel")]
        {
            if wanted && raw.redis.is_none() && !raw.server.single_replica {
                self.found
                    .problem(key, "needs [redis], or server.single_replica = true when this is the only instance");
            }
        }
        let clear = logout.clear_site_data.iter().map(|what| format!("{:?}", what.as_str())).collect::<Vec<_>>();
        let clear_site_data = if clear.is_empty() { None } else { HeaderValue::try_from(clear.join(", ")).ok() };
        Some(gateway::settings::Logout {
            return_to: path.clone(),
            clear_site_data,
            backchannel: logout.backchannel,
            frontchannel: logout.frontchannel,
        })
    }

    fn claims(&mut self, claims: &raw::Claims) -> Vec<String> {
        for (index, _) in claims.expose.iter().enumerate().filter(|(_, claim)| claim.is_empty()) {
            self.found.problem(format!("claims.expose[{index}]"), "is empty");
        }
        claims.expose.clone()
    }

    fn tracing(&mut self, tracing: &raw::Tracing) -> Option<spans::Settings> {
        let endpoint = tracing.otlp_endpoint.as_ref().and_then(|text| {
            let key = "tracing.otlp_endpoint";
            let url =
                Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some());
            match &url {
                None => {
                    let (told, _) = text.split_once('?').unwrap_or((text, ""));
                    self.found.problem(key, format!("must be an http:// or https:// URL, not {}", shown(told)));
                }
                Some(url) if !url.username().is_empty() || url.password().is_some() => {
                    self.found.problem(
                        key,
                        "must not contain a user or password: give them as Authorization in tracing.headers_file",
                    );
                }
                Some(_) => {}
            }
            url.map(traces_endpoint)
        });
        let mut headers = Vec::new();
        for (name, value) in &tracing.headers {
            self.trace_header(&join("tracing.headers", name), name, value.expose(), &mut headers);
        }
        if let Some(path) = &tracing.headers_file {
            if !tracing.headers.is_empty() {
                self.found.problem("tracing.headers_file", "is set beside tracing.headers; keep one of them");
            }
            let secret = self.files.secret("tracing.headers_file", path, &mut self.found);
            for line in secret.iter().flat_map(|secret| secret.expose().lines()).filter(|line| !line.trim().is_empty())
            {
                let (name, value) = line.split_once(':').unwrap_or_default();
                self.trace_header("tracing.headers_file", name.trim(), value.trim(), &mut headers);
            }
        }
        let (sample, service_name) = (tracing.sample, tracing.service_name.clone());
        endpoint.map(|endpoint| spans::Settings { endpoint, headers, sample, service_name })
    }

    /// The value is a secret: no message shows it.
    fn trace_header(&mut self, key: &str, name: &str, value: &str, headers: &mut Vec<(HeaderName, HeaderValue)>) {
        match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
            (Ok(name), Ok(mut value)) => {
                value.set_sensitive(true);
                headers.push((name, value));
            }
            _ => self.found.problem(key, "must hold header fields, one a line in a file: `Name: value`"),
        }
    }

    // -----------------------------------------------------------------------------------------------------------------
    // Values
    // -----------------------------------------------------------------------------------------------------------------

    /// A time-out of nothing would let nothing through.
    pub(super) fn positive(&mut self, key: &str, text: &DurationText) -> Duration {
        let duration = duration(text);
        if duration.is_zero() {
            self.found.problem(key, format!("must be longer than nothing, not {:?}", text.as_str()));
        }
        duration
    }

    fn some_bytes(&mut self, key: &str, text: &SizeText) -> usize {
        let bytes = bytes(text);
        if bytes == 0 {
            self.found.problem(key, format!("must be more than nothing, not {:?}", text.as_str()));
        }
        bytes
    }
}

/// One value or several, each with its key path.
pub(super) fn each<'v, T>(key: &str, values: &'v OneOrMany<T>) -> Vec<(String, &'v T)> {
    match values {
        OneOrMany::One(one) => vec![(key.to_owned(), one)],
        OneOrMany::Many(many) => many.iter().enumerate().map(|(index, it)| (format!("{key}[{index}]"), it)).collect(),
    }
}

/// A token of RFC 9110 section 5.6.2.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// The judge let only readable texts through.
pub(super) fn duration(text: &DurationText) -> Duration {
    text.read().unwrap_or_default()
}

fn bytes(text: &SizeText) -> usize {
    text.read().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or_default()
}

fn to_usize(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn listen_address(text: &str) -> Result<ListenAddress, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        // 108 bytes with the final NUL: sockaddr_un.
        return if path.starts_with('/') && path.len() < 108 && !path.contains('\0') {
            Ok(ListenAddress::Unix(PathBuf::from(path)))
        } else {
            Err("unix: needs an absolute path of at most 107 bytes, as in \"unix:/run/sidegate.sock\"".to_owned())
        };
    }
    text.parse().map(ListenAddress::Tcp).map_err(|_| {
        format!("must be an IP address with port such as \"0.0.0.0:8080\", or \"unix:/path\", not {}", shown(text))
    })
}

fn log(log: &raw::Log) -> LogSettings {
    LogSettings {
        format: match log.format {
            Some(raw::LogFormat::Text) => LogFormat::Text,
            Some(raw::LogFormat::Json) | None => LogFormat::Json,
        },
        level: match log.level {
            raw::LogLevel::Error => tracing::Level::ERROR,
            raw::LogLevel::Warn => tracing::Level::WARN,
            raw::LogLevel::Info => tracing::Level::INFO,
            raw::LogLevel::Debug => tracing::Level::DEBUG,
            raw::LogLevel::Trace => tracing::Level::TRACE,
        },
        access: log.access,
    }
}

fn algorithm(alg: raw::IdTokenAlg) -> Algorithm {
    match alg {
        raw::IdTokenAlg::Rs256 => Algorithm::Rs256,
        raw::IdTokenAlg::Rs384 => Algorithm::Rs384,
        raw::IdTokenAlg::Rs512 => Algorithm::Rs512,
        raw::IdTokenAlg::Ps256 => Algorithm::Ps256,
        raw::IdTokenAlg::Ps384 => Algorithm::Ps384,
        raw::IdTokenAlg::Ps512 => Algorithm::Ps512,
        raw::IdTokenAlg::Es256 => Algorithm::Es256,
        raw::IdTokenAlg::Es384 => Algorithm::Es384,
        raw::IdTokenAlg::EdDsa => Algorithm::EdDsa,
    }
}

/// Whether a host of an upstream is this machine.
pub(super) fn is_local(host: &str) -> bool {
    match Host::parse(host) {
        Ok(Host::Domain(name)) => is_loopback(&Host::Domain(name.as_str())),
        Ok(Host::Ipv4(address)) => is_loopback(&Host::Ipv4(address)),
        Ok(Host::Ipv6(address)) => is_loopback(&Host::Ipv6(address)),
        Err(_) => false,
    }
}

/// A field that browsers send by themselves, or that a page of any site may set without a preflight (Fetch sections 2.2.2
/// and 4.4), in lower case.
fn is_sent_unasked(name: &str) -> bool {
    const NAMES: [&str; 32] = [
        "accept",
        "accept-charset",
        "accept-encoding",
        "accept-language",
        "authorization",
        "cache-control",
        "connection",
        "content-language",
        "content-length",
        "content-type",
        "cookie",
        "cookie2",
        "date",
        "dnt",
        "downlink",
        "dpr",
        "expect",
        "host",
        "keep-alive",
        "last-event-id",
        "origin",
        "pragma",
        "priority",
        "range",
        "referer",
        "save-data",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade-insecure-requests",
        "user-agent",
        "via",
    ];
    let families = ["sec-", "proxy-", "if-", "access-control-"];
    NAMES.contains(&name) || families.iter().any(|family| name.starts_with(family))
}
