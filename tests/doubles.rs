//! The doubles prove themselves: a provider that is not strict, or a browser that sends cookies where none does, would
//! make every test above them worthless.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic, reason = "test code")]

mod support;

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};
use support::client::{Ask, Browser, Initiator, Response, SameSite};
use support::jose;
use support::leak::Canaries;
use support::provider::*;
use support::text::{self, b64u, form, get, percent, random};
use support::upstream::{Gate, Script, Upstream, feed};
use support::wire::Answer;

const APP: &str = "http://localhost:1";

/// What a client knows of a login that it started.
struct Started {
    verifier: String,
    nonce: String,
    state: String,
    answer: Response,
}

/// The client's side of the protocol, by hand.
struct Client<'a> {
    provider: &'a ProviderDouble,
    browser: Browser,
}

impl<'a> Client<'a> {
    fn of(provider: &'a ProviderDouble) -> Self {
        provider.register(APP);
        Self { provider, browser: Browser::new(&provider.issuer) }
    }

    async fn authorize(&self, more: &[(&str, &str)]) -> Started {
        let (verifier, nonce, state) = (b64u(random(32)), b64u(random(16)), b64u(random(16)));
        let id = self.provider.client_id();
        let challenge = b64u(jose::sha256(verifier.as_bytes()));
        let mut pairs = vec![
            ("client_id", id.as_str()),
            ("redirect_uri", "http://localhost:1/auth/callback"),
            ("response_type", "code"),
            ("scope", "openid offline_access"),
            ("state", &state),
            ("nonce", &nonce),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
        ];
        pairs.retain(|(k, _)| !more.iter().any(|(m, _)| m == k));
        pairs.extend(more.iter().filter(|(_, v)| !v.is_empty()));
        let url = format!("{}?{}", self.provider.url(Endpoint::Authorize), form(&pairs));
        let answer = self.browser.send(Ask::navigate(&url).stay()).await;
        Started { verifier, nonce, state, answer }
    }

    fn basic(&self) -> String {
        let pair = [self.provider.client_id(), self.provider.client_secret()].map(|part| {
            let encoded = form(&[("", part.as_str())]);
            encoded.strip_prefix('=').unwrap_or(&encoded).to_owned()
        });
        format!("Basic {}", base64_simd::STANDARD.encode_to_string(pair.join(":")))
    }

    async fn post(&self, endpoint: Endpoint, pairs: &[(&str, &str)]) -> Response {
        let ask = Ask::fetch(&self.provider.url(endpoint)).header("Authorization", &self.basic()).form(pairs);
        self.browser.send(ask).await
    }

    async fn exchange(&self, started: &Started) -> Response {
        let code = started.answer.location_param("code").unwrap_or_default();
        let pairs = [
            ("grant_type", "authorization_code"),
            ("code", &code),
            ("redirect_uri", "http://localhost:1/auth/callback"),
            ("code_verifier", &started.verifier),
        ];
        self.post(Endpoint::Token, &pairs).await
    }

    async fn refresh(&self, token: &str) -> Response {
        self.post(Endpoint::Token, &[("grant_type", "refresh_token"), ("refresh_token", token)]).await
    }

    async fn login(&self) -> Tokens {
        let started = self.authorize(&[]).await;
        Tokens::of(&self.exchange(&started).await)
    }
}

struct Tokens {
    access: String,
    refresh: String,
}

impl Tokens {
    fn of(answer: &Response) -> Self {
        assert_eq!(answer.status, 200, "{}", answer.text());
        let json = answer.json();
        let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
        Self { access: text("access_token"), refresh: text("refresh_token") }
    }
}

// -- The provider --------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_code_flow_by_hand() {
    let provider = ProviderDouble::start().await;
    provider.set(|s| s.client_secret = "a:b%+ \u{e9}/".to_owned());
    let client = Client::of(&provider);

    let document = client.browser.fetch("/.well-known/openid-configuration").await.json();
    assert_eq!(document["issuer"], provider.issuer);
    assert_eq!(document["token_endpoint"], provider.url(Endpoint::Token));

    let started = client.authorize(&[]).await;
    assert_eq!(started.answer.status, 302);
    assert!(started.answer.location().unwrap().starts_with("http://localhost:1/auth/callback?code="));
    assert_eq!(started.answer.location_param("state").unwrap(), started.state);
    assert_eq!(started.answer.location_param("iss").unwrap(), provider.issuer);

    let answer = client.exchange(&started).await;
    let json = answer.json();
    assert_eq!((&json["token_type"], &json["expires_in"]), (&json!("Bearer"), &json!(3600)));
    let token = json["id_token"].as_str().unwrap();
    let jwks = client.browser.fetch(document["jwks_uri"].as_str().unwrap()).await.json();
    assert_eq!(strict(token, &jwks, &provider, &started.nonce), Ok(()));

    let tokens = Tokens::of(&answer);
    assert!(provider.is_active(&tokens.access) && provider.is_refreshable(&tokens.refresh));
    let userinfo = Ask::fetch("/userinfo").header("Authorization", &format!("Bearer {}", tokens.access));
    assert_eq!(client.browser.send(userinfo).await.json()["sub"], "alice-4711");

    assert_eq!(client.post(Endpoint::Revocation, &[("token", &tokens.refresh)]).await.status, 200);
    assert!(!provider.is_active(&tokens.access) && !provider.is_refreshable(&tokens.refresh));
    assert_eq!((provider.code_exchanges(), provider.refreshes()), (1, 0));
    assert_eq!(provider.violations(), Vec::<String>::new());
    let order: Vec<Endpoint> = provider.calls().iter().map(|c| c.endpoint).collect();
    assert_eq!(
        order,
        [
            Endpoint::Discovery,
            Endpoint::Authorize,
            Endpoint::Token,
            Endpoint::Jwks,
            Endpoint::Userinfo,
            Endpoint::Revocation
        ]
    );
    assert_eq!(get(&provider.calls_to(Endpoint::Token)[0].form, "code_verifier"), Some(started.verifier.as_str()));
}

#[tokio::test]
async fn the_authorization_endpoint_is_strict() {
    let provider = ProviderDouble::start().await;
    let client = Client::of(&provider);
    // What cannot be trusted is not redirected to.
    for more in [("client_id", "other"), ("redirect_uri", "http://localhost:1/auth/callback/")] {
        assert_eq!(client.authorize(&[more]).await.answer.status, 400, "{more:?}");
    }
    let asked = [
        ("response_type", "token", "unsupported_response_type"),
        ("code_challenge_method", "plain", "invalid_request"),
        ("code_challenge", "", "invalid_request"),
        ("state", "", "invalid_request"),
    ];
    for (name, value, error) in asked {
        let answer = client.authorize(&[(name, value)]).await.answer;
        assert_eq!(answer.location_param("error").as_deref(), Some(error), "{name}");
        assert_eq!(answer.location_param("code"), None);
    }
    assert_eq!(provider.violations().len(), 6);

    provider.set(|s| s.signed_in = false);
    let silent = client.authorize(&[("prompt", "none")]).await.answer;
    assert_eq!(silent.location_param("error").as_deref(), Some("login_required"));
    provider.set(|s| {
        s.authorization = Authorization::OnlyState;
        s.iss_parameter = IssParameter::Is("https://other.example".to_owned());
    });
    let refusal = client.authorize(&[]).await;
    let query = refusal.answer.location().unwrap().split_once('?').unwrap().1.to_owned();
    assert_eq!(query, form(&[("state", refusal.state.as_str()), ("iss", "https://other.example")]));
}

#[tokio::test]
async fn the_token_endpoint_is_strict() {
    let provider = ProviderDouble::start().await;
    let client = Client::of(&provider);
    let error = |r: &Response| r.json()["error"].as_str().unwrap_or_default().to_owned();

    let mut wrong = client.authorize(&[]).await;
    wrong.verifier = b64u(random(32));
    assert_eq!(error(&client.exchange(&wrong).await), "invalid_grant");

    let started = client.authorize(&[]).await;
    let tokens = Tokens::of(&client.exchange(&started).await);
    assert_eq!(error(&client.exchange(&started).await), "invalid_grant");
    assert!(!provider.is_active(&tokens.access), "a code used twice ends the session");

    let wider = [("grant_type", "refresh_token"), ("refresh_token", &client.login().await.refresh), ("scope", "admin")];
    assert_eq!(error(&client.post(Endpoint::Token, &wider).await), "invalid_scope");
    let twice = [("grant_type", "refresh_token"), ("refresh_token", "a"), ("refresh_token", "b")];
    assert_eq!(error(&client.post(Endpoint::Token, &twice).await), "invalid_request");
    let json = Ask::fetch("/token").header("Authorization", &client.basic()).json(&json!({"grant_type": "x"}));
    assert_eq!(error(&client.browser.send(json).await), "invalid_request");
}

/// OIDC suite: oidcc-client-test-client-secret-basic.
#[tokio::test]
async fn client_authentication_is_checked_to_the_letter() {
    let provider = ProviderDouble::start().await;
    provider.set(|s| s.client_secret = "a:b%+ \u{e9}/".to_owned());
    let client = Client::of(&provider);
    let (id, secret) = (provider.client_id(), provider.client_secret());
    let raw = format!("Basic {}", base64_simd::STANDARD.encode_to_string(format!("{id}:{secret}")));
    let encoded = client.basic();
    let none: &[(&str, &str)] = &[];
    let posted: &[(&str, &str)] = &[("client_id", &id), ("client_secret", &secret)];
    let public: &[(&str, &str)] = &[("client_id", &id)];
    // Which of these a provider takes that wants: Basic, post, none.
    let ways = [
        (Some(&encoded), none, [true, false, false]),
        (Some(&raw), none, [false, false, false]),
        (None, posted, [false, true, false]),
        (Some(&encoded), posted, [false, false, false]),
        (None, public, [false, false, true]),
        (None, none, [false, false, false]),
    ];
    for (i, how) in [ClientAuth::Basic, ClientAuth::Post, ClientAuth::None].into_iter().enumerate() {
        provider.set(|s| s.client_auth = how.clone());
        for (header, pairs, taken) in &ways {
            let pairs = [&[("grant_type", "refresh_token"), ("refresh_token", "x")], *pairs].concat();
            let mut ask = Ask::fetch("/token").form(&pairs);
            if let Some(header) = header {
                ask = ask.header("Authorization", header);
            }
            let answer = client.browser.send(ask).await;
            // The right client fails for its made-up refresh token only.
            let expected = if taken[i] { (400, "invalid_grant") } else { (401, "invalid_client") };
            assert_eq!(
                (answer.status, answer.json()["error"].as_str().unwrap()),
                expected,
                "{how:?} {header:?} {pairs:?}"
            );
        }
    }
}

#[tokio::test]
async fn rotation_by_token_spends_one_and_by_family_ends_all() {
    for (rotation, survives) in [(Rotation::Token, true), (Rotation::Family, false)] {
        let provider = ProviderDouble::start().await;
        provider.set(|s| s.rotation = rotation);
        let client = Client::of(&provider);
        let first = client.login().await;
        let second = Tokens::of(&client.refresh(&first.refresh).await);
        assert_ne!(first.refresh, second.refresh);
        assert!(provider.is_active(&first.access), "a refresh leaves the old access token alone");

        let reuse = client.refresh(&first.refresh).await;
        assert_eq!(reuse.json()["error"], "invalid_grant");
        assert_eq!(provider.reuse_alarms(), 1);
        assert_eq!(provider.is_active(&second.access), survives, "{rotation:?}");
        assert_eq!(client.refresh(&second.refresh).await.status == 200, survives);
    }
}

#[tokio::test]
async fn without_rotation_a_refresh_token_stays() {
    let provider = ProviderDouble::start().await;
    provider.set(|s| {
        s.refresh_token_tail = "+&=%\"\\; ".to_owned();
        s.kills_access_token = true;
    });
    let client = Client::of(&provider);
    let first = client.login().await;
    let second = Tokens::of(&client.refresh(&first.refresh).await);
    assert_eq!(first.refresh, second.refresh);
    assert!(!provider.is_active(&first.access) && provider.is_active(&second.access));
    provider.set(|s| s.refresh_token_at_refresh = false);
    assert_eq!(Tokens::of(&client.refresh(&first.refresh).await).refresh, "");
    assert_eq!(provider.reuse_alarms(), 0);
    provider.kill_all_sessions();
    assert_eq!(client.refresh(&first.refresh).await.json()["error"], "invalid_grant");
}

#[tokio::test]
async fn leeway_ends_by_time_and_by_count() {
    let provider = ProviderDouble::start().await;
    provider.set(|s| {
        s.rotation = Rotation::Family;
        s.leeway = Duration::from_secs(10);
        s.leeway_answer = LeewayAnswer::Same;
    });
    let client = Client::of(&provider);
    let old = client.login().await;
    let new = Tokens::of(&client.refresh(&old.refresh).await);
    provider.advance(5);
    assert_eq!(Tokens::of(&client.refresh(&old.refresh).await).refresh, new.refresh);
    provider.advance(30);
    assert_eq!(client.refresh(&old.refresh).await.status, 400);
    assert!(!provider.is_refreshable(&new.refresh));

    provider.set(|s| {
        (s.leeway, s.leeway_count, s.leeway_answer) = (Duration::ZERO, Some(1), LeewayAnswer::Fresh);
    });
    let old = client.login().await;
    let one = Tokens::of(&client.refresh(&old.refresh).await);
    let two = Tokens::of(&client.refresh(&old.refresh).await);
    assert_ne!(one.refresh, two.refresh);
    assert_eq!(client.refresh(&old.refresh).await.status, 400);
}

#[tokio::test]
async fn an_answer_lost_after_the_commit_spends_the_token() {
    let provider = ProviderDouble::start().await;
    provider.set(|s| {
        s.rotation = Rotation::Token;
        s.fail_refresh_times(Outage::Drop, 1);
        s.fail_refresh_times(Outage::Status(503), 1);
        s.fail_refresh_times(Outage::DropAfterCommit, 1);
    });
    let client = Client::of(&provider);
    let first = client.login().await;
    assert_eq!(client.refresh(&first.refresh).await.status, 0);
    assert_eq!(client.refresh(&first.refresh).await.status, 503);
    assert!(provider.is_refreshable(&first.refresh), "nothing was done yet");
    assert_eq!(client.refresh(&first.refresh).await.status, 0);
    assert!(!provider.is_refreshable(&first.refresh));
    assert_eq!(provider.last_session().refresh_tokens.len(), 2);
    assert_eq!(client.refresh(&first.refresh).await.status, 400);
    assert_eq!(provider.refreshes(), 4);
    let statuses: Vec<Option<u16>> = provider.calls().iter().filter(|c| c.is_refresh()).map(|c| c.status).collect();
    assert_eq!(statuses, [Some(0), Some(503), Some(0), Some(400)]);
}

#[tokio::test]
async fn a_gate_holds_requests_and_answers() {
    let provider = ProviderDouble::start().await;
    provider.set(|s| s.rotation = Rotation::Token);
    let client = Client::of(&provider);
    let first = client.login().await;

    let gate = provider.hold_token_endpoint();
    let (answer, ()) = tokio::join!(client.refresh(&first.refresh), async {
        gate.wait_for(1).await;
        assert!(provider.is_refreshable(&first.refresh), "held before it acts");
        gate.release_one();
    });
    let second = Tokens::of(&answer);
    drop(gate);

    let gate = provider.hold_token_answers();
    let (answer, ()) = tokio::join!(client.refresh(&second.refresh), async {
        gate.wait_for(1).await;
        assert!(!provider.is_refreshable(&second.refresh), "held after it acted");
        gate.release();
    });
    assert_eq!(answer.status, 200);
    assert_eq!(client.login().await.refresh.len(), first.refresh.len(), "an open gate holds nobody");
}

#[tokio::test]
async fn dialects_of_answers_and_errors() {
    let provider = ProviderDouble::start().await;
    let client = Client::of(&provider);
    let good = client.login().await.refresh;
    let mut seen = HashSet::new();
    for style in [
        ErrorStyle::Standard,
        ErrorStyle::Auth0,
        ErrorStyle::Status200,
        ErrorStyle::Errcode,
        ErrorStyle::OkFalse,
        ErrorStyle::DexClaimed,
        ErrorStyle::DexExpired,
        ErrorStyle::Hydra,
        ErrorStyle::TextPlain,
        ErrorStyle::Form,
    ] {
        provider.set(|s| s.error_style = style);
        let answer = client.refresh("unknown").await;
        let mut text = answer.text();
        if let Some(at) = text.find("rid:") {
            text.truncate(at);
        }
        seen.insert((answer.status, answer.header("content-type").map(str::to_owned), text));
    }
    assert_eq!(seen.len(), 10, "{seen:#?}");
    assert!(seen.iter().any(|(status, _, text)| *status == 200 && text.contains("\"errcode\":40030")));
    assert!(seen.iter().any(|(status, _, text)| *status == 200 && text.contains("\"ok\":false")));

    let expiries = [("\"3600\"", json!("3600")), ("3599.5", json!(3599.5)), ("-5", json!(-5)), ("1e300", json!(1e300))];
    for (text, value) in expiries {
        provider.set(|s| s.expires_in = ExpiresIn::Json(text.to_owned()));
        assert_eq!(client.refresh(&good).await.json()["expires_in"], value);
    }
    provider.set(|s| (s.expires_in, s.token_type) = (ExpiresIn::Missing, None));
    let answer = client.refresh(&good).await.json();
    assert_eq!((answer.get("expires_in"), answer.get("token_type")), (None, None));
    provider.set(|s| s.answer_style = AnswerStyle::Form);
    let pairs = text::unform(&client.refresh(&good).await.body);
    assert!(get(&pairs, "access_token").is_some_and(|t| provider.is_active(t)));
    provider.set(|s| s.answer_style = AnswerStyle::Array);
    assert!(client.refresh(&good).await.json().is_array());
    provider.set(|s| {
        s.answer_style = AnswerStyle::Json;
        s.access_token = AccessToken::With("\r\nX: 1".to_owned());
    });
    assert!(client.refresh(&good).await.json()["access_token"].as_str().unwrap().ends_with("\r\nX: 1"));
    provider.set(|s| s.fail_refresh(Outage::TooMany(Some("3".to_owned()))));
    let busy = client.refresh(&good).await;
    assert_eq!((busy.status, busy.header("retry-after")), (429, Some("3")));
}

/// Judges an ID token as the contract's section 2.4 asks; written apart from both the double and the program.
fn strict(token: &str, jwks: &Value, provider: &ProviderDouble, nonce: &str) -> Result<(), String> {
    let must = |ok: bool, what: &str| if ok { Ok(()) } else { Err(what.to_owned()) };
    must(token.len() <= 64 * 1024, "size")?;
    let parts: Vec<&str> = token.split('.').collect();
    must(parts.len() == 3, "parts")?;
    let decode = |part: &str| text::unb64u(part).ok_or("base64url").map(|b| String::from_utf8_lossy(&b).into_owned());
    let (header_text, claims_text) = (decode(parts[0])?, decode(parts[1])?);
    let header: Value = serde_json::from_str(&header_text).map_err(|e| e.to_string())?;
    let claims: Value = serde_json::from_str(&claims_text).map_err(|e| e.to_string())?;
    for (text, name) in [(&header_text, "\"alg\":"), (&claims_text, "\"iss\":")] {
        must(text.matches(name).count() == 1, "duplicate or missing member")?;
    }
    must(header["alg"] == "RS256" && header.get("crit").is_none(), "alg or crit")?;
    must(header.get("typ").is_none_or(|t| t == "JWT"), "typ")?;
    let kid = header.get("kid").cloned();
    let fits = |k: &&Value| kid.is_none() || k.get("kid") == kid.as_ref();
    let keys: Vec<Value> = jwks["keys"].as_array().unwrap().iter().filter(fits).cloned().collect();
    must(jose::verified_rs256(token, &json!({ "keys": keys })), "signature")?;
    let now = provider.now();
    let time = |name: &str| claims[name].as_i64().ok_or_else(|| format!("{name} is no time"));
    let us = provider.client_id();
    must(claims["iss"] == provider.issuer, "iss")?;
    must(claims["aud"] == us || claims["aud"] == json!([us]), "aud")?;
    must(claims.get("azp").is_none_or(|a| *a == us), "azp")?;
    must(claims["sub"].as_str().is_some_and(|s| (1..=255).contains(&s.len())), "sub")?;
    must(claims["nonce"] == nonce, "nonce")?;
    must(time("exp")? > now - 60 && time("iat")? < now + 60 && time("iat")? > now - 3600, "exp or iat")?;
    must(claims.get("nbf").is_none() || time("nbf")? < now + 60, "nbf")?;
    let access = provider.last_session().access_tokens.last().cloned().unwrap();
    must(claims.get("at_hash").is_none_or(|h| *h == jose::half_hash(&access, "RS256")), "at_hash")?;
    must(claims.get("c_hash").is_none(), "c_hash")
}

#[tokio::test]
async fn every_fault_is_one_that_a_strict_client_sees() {
    let provider = ProviderDouble::start().await;
    let client = Client::of(&provider);
    let mut reasons = HashSet::new();
    for fault in Fault::ALL {
        provider.set(|s| s.fault = Some(*fault));
        let started = client.authorize(&[]).await;
        let answer = client.exchange(&started).await.json();
        let token = answer["id_token"].as_str().unwrap();
        let judged = strict(token, &provider.jwks(), &provider, &started.nonce);
        let taken = fault.verdict() != Verdict::Refused;
        assert_eq!(judged.is_ok(), taken, "{fault:?}: {judged:?}");
        reasons.extend(judged.err());
    }
    assert!(reasons.len() >= 12, "{reasons:?}");
}

#[tokio::test]
async fn keys_rotate_and_decoys_mislead() {
    let provider = ProviderDouble::start().await;
    let client = Client::of(&provider);
    let before = provider.jwks();
    provider.set(|s| s.rotate_before_signing = true);
    let started = client.authorize(&[]).await;
    let token = client.exchange(&started).await.json()["id_token"].as_str().unwrap().to_owned();
    assert!(strict(&token, &before, &provider, &started.nonce).is_err());
    assert_eq!(strict(&token, &provider.jwks(), &provider, &started.nonce), Ok(()));

    provider.publish_odd_keys();
    provider.publish_decoys();
    provider.publish_several_keys();
    let started = client.authorize(&[]).await;
    let token = client.exchange(&started).await.json()["id_token"].as_str().unwrap().to_owned();
    assert_eq!(strict(&token, &provider.jwks(), &provider, &started.nonce), Ok(()));
    let kid = jose::parse(&token).unwrap().0["kid"].clone();
    let same = provider.jwks()["keys"].as_array().unwrap().iter().filter(|k| k["kid"] == kid).count();
    assert_eq!(same, 6);
}

/// The 1024-bit signature is a real one, so that only the key's size can be the reason to refuse it.
#[tokio::test]
async fn the_small_key_signs_correctly() {
    let key = jose::Key::small_rsa("small");
    let modulus = text::unb64u(key.jwk()["n"].as_str().unwrap()).unwrap();
    let signature = key.sign(b"text");
    let public = ring::rsa::PublicKeyComponents { n: modulus, e: vec![1, 0, 1] };
    let lenient = &ring::signature::RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY;
    public.verify(lenient, b"text", &signature).expect("a good signature");
}

#[tokio::test]
async fn discovery_misbehaves_on_demand() {
    let provider = ProviderDouble::start().await;
    let browser = Browser::new(&provider.issuer);
    let path = "/.well-known/openid-configuration";
    provider.set(|s| {
        s.omit.push("token_endpoint".to_owned());
        s.document.insert("userinfo_endpoint".to_owned(), "javascript:alert(1)".into());
        s.document_issuer = Some("https://other.example".to_owned());
        s.announce_iss = false;
    });
    let document = browser.fetch(path).await.json();
    assert_eq!((document.get("token_endpoint"), &document["issuer"]), (None, &json!("https://other.example")));
    assert_eq!(document.get("authorization_response_iss_parameter_supported"), None);
    assert_eq!(document["userinfo_endpoint"], "javascript:alert(1)");
    provider.set(|s| s.document_doubled.push(("issuer".to_owned(), "\"https://first.example\"".to_owned())));
    assert_eq!(browser.fetch(path).await.text().matches("\"issuer\":").count(), 2);

    provider.set(|s| {
        s.fail_times(Endpoint::Discovery, Outage::Html(200), 1);
        s.fail_times(Endpoint::Discovery, Outage::Huge(2 << 20), 1);
        s.fail_times(Endpoint::Discovery, Outage::Redirect("http://localhost:1/".to_owned()), 1);
    });
    assert_eq!(browser.fetch(path).await.header("content-type"), Some("text/html"));
    assert!(browser.fetch(path).await.body.len() > 2 << 20);
    assert_eq!(browser.send(Ask::fetch(path).stay()).await.status, 302);
    assert_eq!(browser.fetch(path).await.status, 200);

    provider.go_down().await;
    let refused = browser.fetch(path).await;
    assert!(refused.error.unwrap().contains("refused"));
    provider.come_back().await;
    assert_eq!(browser.fetch(path).await.status, 200);
}

#[tokio::test]
async fn a_stalled_endpoint_answers_nothing_and_others_go_on() {
    let provider = ProviderDouble::start().await;
    let client = Client::of(&provider);
    provider.set(|s| s.fail(Endpoint::Jwks, Outage::Stall));
    let stalled = client.browser.launch(&Ask::fetch(&provider.url(Endpoint::Jwks))).await;
    provider.wait_for_calls(Endpoint::Jwks, 1).await;
    client.login().await;
    assert_eq!(provider.calls_to(Endpoint::Jwks)[0].status, None);
    stalled.abort();
    provider.wait_for_answers(Endpoint::Jwks, 1).await;
}

#[tokio::test]
async fn logout_at_the_provider() {
    let provider = ProviderDouble::start().await;
    let client = Client::of(&provider);
    let tokens = client.login().await;
    let session = provider.last_session();
    let back = "http://localhost:1/auth/logout/return";
    let url = |hint: &str, back: &str| {
        let pairs = [("id_token_hint", hint), ("post_logout_redirect_uri", back), ("state", "xyz")];
        format!("{}?{}", provider.url(Endpoint::EndSession), form(&pairs))
    };
    assert_eq!(client.browser.navigate(&url("forged", back)).await.status, 400);
    assert_eq!(client.browser.navigate(&url(&session.id_tokens[0], "http://evil.example/")).await.status, 400);
    provider.set(|s| s.logout_return = LogoutReturn::Right);
    let answer = client.browser.send(Ask::navigate(&url(&session.id_tokens[0], back)).stay()).await;
    assert_eq!(answer.location(), Some(format!("{back}?state=xyz").as_str()));
    assert!(!provider.is_active(&tokens.access));
}

#[tokio::test]
async fn logout_tokens_with_every_fault() {
    let provider = ProviderDouble::start().await;
    let good = provider.logout_token(Some("alice"), Some("sid-1"), None);
    let mut made = HashSet::from([good.clone()]);
    let (header, claims) = jose::parse(&good).unwrap();
    assert_eq!((&header["typ"], &claims["sid"]), (&json!("logout+jwt"), &json!("sid-1")));
    assert!(claims["events"].get("http://schemas.openid.net/event/backchannel-logout").is_some());
    assert!(jose::verified_rs256(&good, &provider.jwks()));
    for fault in LogoutFault::ALL {
        assert!(made.insert(provider.logout_token(Some("alice"), Some("sid-1"), Some(*fault))));
    }
    let without = jose::parse(&provider.logout_token(None, Some("x"), Some(LogoutFault::NoEvent))).unwrap().1;
    assert_eq!((without.get("sub"), without.get("events")), (None, None));
}

#[tokio::test]
async fn every_module_prepares_the_provider() {
    let names: HashSet<&str> = MODULES.iter().map(|m| m.name).collect();
    assert_eq!(names.len(), MODULES.len());
    for module in MODULES {
        let provider = ProviderDouble::start().await;
        (module.prepare)(&provider);
        let client = Client::of(&provider);
        let started = client.authorize(&[]).await;
        if started.answer.location_param("code").is_none() {
            assert_eq!(module.name, "oidcc-client-test-form-post-error");
            continue;
        }
        let answer = client.exchange(&started).await;
        let token = answer.json()["id_token"].as_str().unwrap().to_owned();
        let judged = strict(&token, &provider.jwks(), &provider, &started.nonce);
        match module.expect {
            Expect::Refusal if !module.userinfo => assert!(judged.is_err(), "{}", module.name),
            _ => assert_eq!(judged, Ok(()), "{}", module.name),
        }
        let refresh = Tokens::of(&answer).refresh;
        assert_eq!(client.refresh(&refresh).await.status, 200, "{}", module.name);
    }
}

#[tokio::test]
async fn pushed_requests_are_used_once() {
    let provider = ProviderDouble::start().await;
    provider.set(|s| s.par = Par::Required);
    let client = Client::of(&provider);
    assert_eq!(client.authorize(&[]).await.answer.status, 400, "a plain request is refused");
    let challenge = b64u(jose::sha256(b"verifier"));
    let id = provider.client_id();
    let pairs = [
        ("client_id", id.as_str()),
        ("redirect_uri", "http://localhost:1/auth/callback"),
        ("response_type", "code"),
        ("state", "0123456789abcdef"),
        ("code_challenge", &challenge),
        ("code_challenge_method", "S256"),
    ];
    let pushed = client.post(Endpoint::Par, &pairs).await;
    assert_eq!(pushed.status, 201);
    let name = pushed.json()["request_uri"].as_str().unwrap().to_owned();
    let url = format!("/authorize?client_id={id}&request_uri={}", percent(&name));
    for expected in [302, 400] {
        assert_eq!(client.browser.send(Ask::navigate(&url).stay()).await.status, expected);
    }
}

#[tokio::test]
async fn canaries_are_found_however_they_are_written() {
    let provider = ProviderDouble::start().await;
    let client = Client::of(&provider);
    let tokens = client.login().await;
    let canaries = provider.canaries();
    let inside = |text: &str| canaries.scan("here", text).len();
    assert_eq!(inside("nothing to see"), 0);
    assert_eq!(inside(&tokens.access), 1);
    assert_eq!(inside(&format!("a={}&b={}", tokens.access, tokens.refresh)), 2);
    for pad in ["", "x", "xy"] {
        let wrapped = format!("{pad}{}..", tokens.refresh);
        assert_eq!(inside(&b64u(&wrapped)), 1, "{pad}");
        assert_eq!(inside(&base64_simd::STANDARD.encode_to_string(&wrapped)), 1);
    }
    let mut own = Canaries::default();
    own.add("secret", "a:b%+ \u{e9}/\"");
    for text in
        ["a%3Ab%25%2B%20%C3%A9%2F%22", "a%3ab%25%2b%20%c3%a9%2f%22", "a%3Ab%25%2B+%C3%A9%2F%22", "a:b%+ \u{e9}/\\\""]
    {
        assert_eq!(own.scan("there", text).len(), 1, "{text}");
    }
    assert_eq!(canaries.only(&["id token"]).scan("here", &tokens.access).len(), 0);
}

// -- The upstream --------------------------------------------------------------------------------------------------

#[tokio::test]
async fn the_upstream_echoes_and_keeps_the_bytes() {
    let upstream = Upstream::start().await;
    let browser = Browser::new(&upstream.url());
    assert!(upstream.untouched());
    let bytes = b"POST /a?b=%2F HTTP/1.1\r\nHost: h\r\nx-OdD:  two \r\nTransfer-Encoding: chunked\r\n\r\n3;x=1\r\nabc\r\n0\r\nT: 1\r\n\r\n";
    let raw = browser.raw(bytes).await;
    assert!(raw.starts_with(b"HTTP/1.1 200 OK\r\n"));
    let request = upstream.last();
    assert_eq!(request.raw(), bytes);
    assert_eq!((request.body.as_slice(), get(&request.trailers, "T")), (b"abc".as_slice(), Some("1")));
    assert_eq!(upstream.bytes(), bytes);
    upstream.forget();
    let echo =
        browser.send(Ask::fetch("/echo?x=1").header("Authorization", "Bearer t").body("text/plain", "hi")).await.json();
    assert_eq!((&echo["method"], &echo["target"]), (&json!("POST"), &json!("/echo?x=1")));
    assert_eq!((&echo["token"], &echo["body"]), (&json!("t"), &json!("hi")));
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn the_upstream_plays_its_scripts() {
    let upstream = Upstream::start().await;
    let browser = Browser::new(&upstream.url());
    upstream.on("/raw", Script::RawThenClose(b"HTTP/1.1 299 Odd\r\nA: 1\r\nA: 2\r\n\r\nrest".to_vec()));
    let odd = browser.fetch("/raw").await;
    assert_eq!((odd.status, odd.header_all("a"), odd.text().as_str()), (299, vec!["1", "2"], "rest"));
    upstream.on("/half", Script::HalfClose(b"HTTP/1.1 200 OK\r\n\r\nhalf".to_vec()));
    assert_eq!(browser.fetch("/half").await.text(), "half");
    for script in [Script::Close, Script::Reset, Script::ResetBeforeBody] {
        upstream.on("/gone", script);
        assert_eq!(browser.fetch("/gone").await.status, 0);
    }
    upstream.on("/early", Script::Early(Answer::new(413, "text/plain", "too much")));
    let mut conn = browser.dial().await;
    conn.send(b"POST /early HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n").await.unwrap();
    let early = support::wire::read_reply(&mut conn, "POST").await.unwrap().unwrap();
    assert_eq!(early.status, 413);

    upstream.on("/seq", Script::sequence([Script::invalid_token(), Script::text(200, "fine")]));
    let statuses =
        [browser.fetch("/seq").await.status, browser.fetch("/seq").await.status, browser.fetch("/seq").await.status];
    assert_eq!(statuses, [401, 200, 200]);
    upstream.on("/tokens", Script::tokens(|t| t == "good"));
    for (token, status) in [("good", 200), ("bad", 401)] {
        let ask = Ask::fetch("/tokens").header("Authorization", &format!("Bearer {token}"));
        assert_eq!(browser.send(ask).await.status, status);
    }

    let gate = Gate::default();
    upstream.on("/held", Script::Held(gate.clone(), Box::new(Script::text(200, "at last"))));
    let (answers, ()) = tokio::join!(browser.fetch_many("/held", 3), async {
        gate.wait_for(3).await;
        gate.open();
    });
    assert!(answers.iter().all(|a| a.text() == "at last"));
    assert_eq!(upstream.requests_to("/held").len(), 3);

    upstream.go_down().await;
    assert!(browser.fetch("/").await.error.unwrap().contains("refused"));
    upstream.come_back().await;
    assert_eq!(browser.fetch("/").await.status, 200);
}

#[tokio::test]
async fn streams_and_sockets() {
    let upstream = Upstream::start().await;
    let browser = Browser::new(&upstream.url());
    let (feed, script) = feed("text/event-stream");
    upstream.on("/sse", script);
    let mut stream = browser.open(&Ask::fetch("/sse")).await;
    assert_eq!(stream.response.header("content-type"), Some("text/event-stream"));
    feed.send("data: 1\n\nda");
    assert_eq!(stream.read_until("\n\n").await.as_deref(), Some("data: 1\n\n"));
    feed.send("ta: 2\n\n");
    assert_eq!(stream.read_until("\n\n").await.as_deref(), Some("data: 2\n\n"));
    stream.abort();
    feed.closed().await;
    upstream.on("/events", Script::Events(3));
    assert_eq!(browser.fetch("/events").await.text().matches("data: ").count(), 3);

    let mut socket = browser.websocket("/ws", Initiator::SameOrigin).await.unwrap();
    socket.send_text("hello").await.unwrap();
    assert_eq!(socket.next().await.unwrap().text(), "hello");
    let long = "x".repeat(70_000);
    socket.send_text(&long).await.unwrap();
    assert_eq!(socket.next().await.unwrap().text(), long);
    assert_eq!(socket.close(1000).await.unwrap().close_code(), Some(1000));
    upstream.wait_for_socket(0, |s| s.over && s.close.is_some()).await;
    let origin = upstream.last().header("origin").map(str::to_owned);
    assert_eq!(origin, Some(upstream.url()));
    upstream.on("/no", Script::text(401, "no"));
    assert_eq!(browser.websocket("/no", Initiator::CrossSite).await.err().map(|r| r.status), Some(401));
}

// -- The browser ---------------------------------------------------------------------------------------------------

/// An app on `localhost` with one cookie of each kind, and a browser that has been there.
async fn visited() -> (Upstream, Browser, String) {
    let upstream = Upstream::start().await;
    let app = upstream.url().replace("127.0.0.1", "localhost");
    let browser = Browser::new(&app);
    let answer = Answer::new(200, "text/html", "hello")
        .with("Set-Cookie", "strict=1; Path=/; HttpOnly; SameSite=Strict")
        .with("Set-Cookie", "lax=1; Path=/; HttpOnly; SameSite=Lax")
        .with("Set-Cookie", "none=1; Path=/; Secure; SameSite=None")
        .with("Set-Cookie", "below=1; Path=/auth/; SameSite=Strict");
    upstream.on("/set", Script::Answer(answer));
    browser.navigate("/set").await;
    (upstream, browser, app)
}

fn sent(response: &Response) -> Vec<String> {
    let mut names: Vec<String> = response
        .sent_header("cookie")
        .map(|line| line.split("; ").map(|p| p.split('=').next().unwrap_or_default().to_owned()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

#[tokio::test]
async fn same_site_cookies_stay_at_home() {
    let (_upstream, browser, _) = visited().await;
    let all = ["lax", "none", "strict"];
    assert_eq!(sent(&browser.navigate("/").await), all);
    assert_eq!(sent(&browser.fetch("/").await), all);
    assert_eq!(sent(&browser.navigate_from(Initiator::SameSite, "/").await), all);
    assert_eq!(sent(&browser.navigate_from(Initiator::CrossSite, "/").await), ["lax", "none"]);
    let post = Ask::navigate("/").from(Initiator::CrossSite).form(&[("a", "b")]);
    assert_eq!(sent(&browser.send(post).await), ["none"]);
    for ask in [Ask::fetch("/"), Ask::image("/"), Ask::frame("/")] {
        assert_eq!(sent(&browser.send(ask.from(Initiator::CrossSite)).await), ["none"]);
    }
    assert_eq!(sent(&browser.fetch("/auth/x").await), ["below", "lax", "none", "strict"]);
}

#[tokio::test]
async fn fetch_metadata_tells_who_asks() {
    let (_upstream, browser, app) = visited().await;
    let meta = |r: &Response| {
        ["site", "mode", "dest"].map(|n| r.sent_header(&format!("sec-fetch-{n}")).unwrap_or_default().to_owned())
    };
    assert_eq!(meta(&browser.navigate("/").await), ["none", "navigate", "document"]);
    assert_eq!(meta(&browser.fetch("/").await), ["same-origin", "cors", "empty"]);
    assert_eq!(meta(&browser.send(Ask::image("/").from(Initiator::SameSite)).await), ["same-site", "no-cors", "image"]);
    let foreign = browser.send(Ask::fetch("/").from(Initiator::CrossSite)).await;
    assert_eq!(meta(&foreign), ["cross-site", "cors", "empty"]);
    assert_eq!(foreign.sent_header("origin"), Some("https://evil.example"));
    let own = browser.post("/").await;
    assert_eq!((own.sent_header("origin"), own.sent_header("content-length")), (Some(app.as_str()), None));
    assert_eq!(browser.fetch("/").await.sent_header("origin"), None);
}

#[tokio::test]
async fn a_redirect_through_a_foreign_site_withholds_strict_cookies_until_the_page_navigates() {
    let (upstream, browser, app) = visited().await;
    // The same server under another site's name plays the provider.
    let provider = upstream.url();
    let to = |url: String| Script::Answer(Answer::empty(302).with("Location", &url));
    upstream.on("/login", to(format!("{provider}/authorize?x=1")));
    upstream.on("/authorize", to(format!("{app}/callback#f")));
    upstream.on("/callback", to("/hop".to_owned()));
    let hop = "<!doctype html><meta http-equiv=\"refresh\" content=\"0;url=/home?a=1&amp;b=2\">";
    upstream.on("/hop", Script::Answer(Answer::new(200, "text/html", hop)));

    let end = browser.navigate_from(Initiator::SameOrigin, "/login").await;
    let paths: Vec<String> = end.via.iter().map(Response::path).collect();
    assert_eq!(paths, ["/login", "/authorize", "/callback", "/hop"]);
    assert_eq!(end.url, format!("{app}/home?a=1&b=2"));
    let site = |r: &Response| r.sent_header("sec-fetch-site").unwrap_or_default().to_owned();
    let sites: Vec<String> = end.via.iter().map(site).collect();
    assert_eq!(sites, ["same-origin", "cross-site", "cross-site", "cross-site"]);
    assert_eq!(sent(&end.via[0]), ["lax", "none", "strict"]);
    assert_eq!(sent(&end.via[1]), Vec::<String>::new(), "another host");
    assert_eq!(sent(&end.via[2]), ["lax", "none"]);
    assert_eq!(sent(&end.via[3]), ["lax", "none"]);
    assert_eq!((site(&end).as_str(), sent(&end).len()), ("same-origin", 3));
    assert_eq!(end.via[3].hops_to().as_deref(), Some("/home?a=1&b=2"));
    assert_eq!(browser.history().len(), 6);

    let script = browser.fetch("/login").await;
    assert_eq!(script.status, 0, "a script's redirect to another origin is an error");
    let mut lenient = browser.fork();
    lenient.chain_aware = false;
    let end = lenient.navigate_from(Initiator::SameOrigin, "/login").await;
    assert_eq!(sent(&end.via[2]).len(), 3, "some browsers look at the initiator only");
}

#[tokio::test]
async fn the_jar_keeps_what_a_browser_keeps() {
    let (upstream, browser, app) = visited().await;
    let url = url::Url::parse(&app).unwrap();
    let mut jar = browser.jar();
    jar.store(&url, "strict=; Path=/; Max-Age=0");
    assert!(jar.get("strict").is_none() && browser.cookie("strict").is_some(), "a jar is a copy");
    jar.store(&url, "lax=; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT");
    assert!(jar.get("lax").is_none());
    jar.store(&url, "short=1; Path=/; Max-Age=60");
    assert!(jar.get("short").is_some());
    jar.advance(61);
    assert!(jar.get("short").is_none());

    let secure = url::Url::parse("https://app.example/").unwrap();
    for (line, stored) in [
        ("__Host-a=1; Path=/; Secure; HttpOnly", true),
        ("__Host-b=1; Path=/; Secure; Domain=app.example", false),
        ("__Host-c=1; Path=/x; Secure", false),
        ("__Host-d=1; Path=/", false),
        ("__Host-Http-e=1; Path=/; Secure", false),
        ("__Host-Http-f=1; Path=/; Secure; HttpOnly; SameSite=Strict", true),
        ("__Secure-g=1; Path=/auth/; Secure", true),
        ("h=1; SameSite=None", false),
        ("i=1; Domain=other.example", false),
        ("j=1; Domain=example", true),
    ] {
        let name = line.split('=').next().unwrap();
        jar.store(&secure, line);
        assert_eq!(jar.get(name).is_some(), stored, "{line}");
    }
    jar.store(&secure, &format!("k={}", "x".repeat(4096)));
    assert!(jar.get("k").is_none());
    let plain = url::Url::parse("http://app.example/").unwrap();
    jar.store(&plain, "l=1; Secure");
    assert!(jar.get("l").is_none());

    let cookie = browser.navigate("/set").await.set_cookie("strict").unwrap();
    assert_eq!((cookie.same_site, cookie.http_only, cookie.host_only), (SameSite::Strict, true, true));
    assert_eq!(sent(&browser.send(Ask::fetch("/").cookie("mine=1")).await), ["mine"]);
    assert_eq!(upstream.last().header("cookie"), Some("mine=1"));
}

#[tokio::test]
async fn answers_may_land_in_another_order() {
    let (upstream, browser, _) = visited().await;
    let set = |value: &str| Script::Answer(Answer::empty(204).with("Set-Cookie", &format!("v={value}; Path=/")));
    upstream.on("/v", Script::sequence([set("old"), set("new")]));
    let first = browser.launch(&Ask::fetch("/v")).await.answer().await;
    let second = browser.launch(&Ask::fetch("/v")).await.answer().await;
    assert_eq!(browser.cookie("v"), None);
    browser.land(&second);
    browser.land(&first);
    assert_eq!(browser.cookie("v").as_deref(), Some("old"));
    let other = browser.fork();
    other.with_jar(|jar| jar.remove("v"));
    assert_eq!(browser.cookie("v").as_deref(), Some("old"));
    let tab = browser.clone();
    tab.fetch("/v").await;
    assert_eq!(browser.cookie("v").as_deref(), Some("new"), "tabs share the jar");
}

#[tokio::test]
async fn a_form_post_page_submits_itself() {
    let provider = ProviderDouble::start().await;
    let upstream = Upstream::start().await;
    let app = upstream.url().replace("127.0.0.1", "localhost");
    provider.register(&app);
    let callback = format!("{app}/auth/callback");
    let id = provider.client_id();
    let challenge = b64u(jose::sha256(b"verifier"));
    let pairs = [
        ("client_id", id.as_str()),
        ("redirect_uri", &callback),
        ("response_type", "code"),
        ("response_mode", "form_post"),
        ("state", "0123456789\"<&abcdef"),
        ("code_challenge", &challenge),
        ("code_challenge_method", "S256"),
    ];
    let url = format!("{}?{}", provider.url(Endpoint::Authorize), form(&pairs));
    Browser::new(&app).navigate(&url).await;
    let arrived = upstream.last();
    assert_eq!((arrived.method.as_str(), arrived.path()), ("POST", "/auth/callback"));
    assert_eq!(get(&arrived.form(), "state"), Some("0123456789\"<&abcdef"));
    assert_eq!(arrived.header("origin"), Some(provider.issuer.as_str()));
    assert_eq!(arrived.header("sec-fetch-site"), Some("cross-site"));
}

// -- The program ---------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_configuration_can_be_changed_by_key() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let mut config = support::gateway::config(&provider, &upstream);
    support::gateway::set(&mut config, "refresh.before_expiry", "\"5s\"");
    support::gateway::set(&mut config, "server.single_replica", "true");
    let again: toml::Table = config.to_string().parse().unwrap();
    assert_eq!(again["refresh"]["before_expiry"].as_str(), Some("5s"));
    assert_eq!(again["provider"]["client_secret"].as_str(), Some(provider.client_secret().as_str()));
    assert_eq!(again["route"].as_array().map(Vec::len), Some(3));
    let ports: HashSet<u16> = (0..50).map(|_| support::gateway::free_port()).collect();
    assert_eq!(ports.len(), 50);
}

#[test]
fn metrics_are_summed_by_label() {
    let text = "# TYPE a counter\na{x=\"1\",y=\"2\"} 3\na{x=\"1\",y=\"3\"} 4\na{x=\"2\"} 5\nab 6\n";
    let sum = |name: &str, labels: &[(&str, &str)]| support::gateway::metric_in(text, name, labels);
    assert_eq!((sum("a", &[("x", "1")]), sum("a", &[]), sum("ab", &[])), (7.0, 12.0, 6.0));
}
