use http::header::COOKIE;

use super::super::model::tests::{NOW, at, settings};
use super::*;
use crate::crypto::keyring::{Key, Keyring};
use crate::session::jar::Jar;
use crate::session::settings::SameSite;

fn attempt(number: u8, started: Timestamp) -> Attempt {
    Attempt {
        provider: None,
        id: [number; 16],
        nonce: Nonce::new("canary-nonce"),
        verifier: PkceVerifier::new("canary-verifier"),
        return_to: ReturnTo::restore("/a?b=c".into()),
        started,
        max_age: Some(60),
        acr_values: Some("gold silver".into()),
        silent: true,
        restarts: 2,
        replaces: Some(SessionId([3; 16])),
        replaces_entry: Some(Name([4; 16])),
        dpop: None,
    }
}

fn logins() -> LoginCookies {
    let jar = Jar::new(settings(), Keyring::new(vec![Key::generate()]).unwrap());
    LoginCookies::new(settings(), Arc::clone(jar.sealer()))
}

/// A browser, as far as it matters here.
#[derive(Default)]
struct Browser(Vec<(String, String)>);

impl Browser {
    fn take(&mut self, cookies: &[HeaderValue]) {
        for cookie in cookies {
            let text = cookie.to_str().unwrap();
            let (name, value) = text.split(';').next().unwrap().split_once('=').unwrap();
            self.0.retain(|(known, _)| known != name);
            if !text.contains("Max-Age=0") {
                self.0.push((name.into(), value.into()));
            }
        }
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.0 {
            headers.append(COOKIE, HeaderValue::from_str(&format!("{name}={value}")).unwrap());
        }
        headers
    }
}

#[test]
fn an_attempt_comes_back_whole() {
    let (logins, mut browser) = (logins(), Browser::default());
    let (state, cookies) = logins.start(&attempt(1, NOW), &browser.headers(), NOW);
    browser.take(&cookies);
    let Finish::Attempt { attempt: back, clear } = logins.finish(state.expose(), &browser.headers(), at(599)) else {
        panic!()
    };
    assert_eq!(*back, attempt(1, NOW));
    browser.take(&clear);
    assert!(browser.0.is_empty());
    assert_eq!(logins.finish(state.expose(), &browser.headers(), at(1)), Finish::Stale { restarts: 2 });
    let bare = Attempt {
        max_age: None,
        acr_values: None,
        silent: false,
        restarts: 0,
        replaces: None,
        replaces_entry: None,
        ..attempt(1, NOW)
    };
    assert_eq!(Attempt::decode(&bare.encode()), Some(bare));
}

#[test]
fn cookie_06_attributes() {
    let cookies = logins().start(&attempt(1, NOW), &HeaderMap::new(), NOW).1;
    let [cookie] = cookies.as_slice() else { panic!() };
    let text = cookie.to_str().unwrap();
    assert!(text.starts_with("__Host-Http-sidegate-login-AQEBAQEB="), "{text}");
    for wanted in ["; HttpOnly", "; Secure", "; SameSite=Lax", "; Path=/", "; Max-Age=600"] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let mut embedded = settings();
    (embedded.same_site, embedded.partitioned) = (SameSite::None, true);
    let jar = Jar::new(embedded.clone(), Keyring::new(vec![Key::generate()]).unwrap());
    let cookies =
        LoginCookies::new(embedded, Arc::clone(jar.sealer())).start(&attempt(1, NOW), &HeaderMap::new(), NOW).1;
    let text = cookies[0].to_str().unwrap();
    assert!(text.contains("SameSite=None") && text.contains("Partitioned"), "{text}");
}

#[test]
fn cookie_06_an_attempt_is_over_after_ten_minutes_whatever_the_browser_keeps() {
    let (logins, mut browser) = (logins(), Browser::default());
    let (state, cookies) = logins.start(&attempt(1, NOW), &browser.headers(), NOW);
    browser.take(&cookies);
    assert_eq!(logins.finish(state.expose(), &browser.headers(), at(600)), Finish::Stale { restarts: 2 });
}

#[test]
fn cookie_07_parallel_attempts_finish_in_any_order_and_are_capped() {
    let (logins, mut browser) = (logins(), Browser::default());
    let mut states = Vec::new();
    for number in 0..30 {
        let (state, cookies) =
            logins.start(&attempt(number, at(u64::from(number))), &browser.headers(), at(u64::from(number)));
        browser.take(&cookies);
        assert!(browser.0.len() <= 5);
        states.push(state);
    }
    for number in [27, 29, 25, 26, 28_u8] {
        let finish = logins.finish(states[usize::from(number)].expose(), &browser.headers(), at(40));
        let Finish::Attempt { attempt, clear } = finish else { panic!("{number}") };
        assert_eq!(attempt.id, [number; 16]);
        browser.take(&clear);
    }
    assert!(browser.0.is_empty());
    assert_eq!(logins.finish(states[24].expose(), &browser.headers(), at(40)), Finish::Stale { restarts: 2 });
}

#[test]
fn cookie_07_garbage_goes_before_attempts() {
    let (logins, mut browser) = (logins(), Browser::default());
    for number in 0..4 {
        browser.take(&logins.start(&attempt(number, NOW), &browser.headers(), NOW).1);
    }
    browser.0.push(("__Host-Http-sidegate-login-garbage".into(), "x".into()));
    browser.take(&logins.start(&attempt(4, NOW), &browser.headers(), NOW).1);
    assert_eq!(browser.0.len(), 5);
    assert!(browser.0.iter().all(|(name, _)| !name.ends_with("garbage")));
}

#[test]
fn a_state_from_elsewhere_is_foreign() {
    let logins = logins();
    let (state, cookies) = logins.start(&attempt(1, NOW), &HeaderMap::new(), NOW);
    assert!(state.expose().len() >= 22);
    let mut browser = Browser::default();
    browser.take(&cookies);
    let other = self::logins().start(&attempt(1, NOW), &HeaderMap::new(), NOW).0;
    let mut changed = state.expose().to_owned();
    changed.replace_range(50..51, if &changed[50..51] == "A" { "B" } else { "A" });
    // The attempt's own cookie is no state.
    for foreign in
        ["", "x", other.expose(), &changed, browser.0[0].1.as_str(), &state.expose()[1..], &"A".repeat(100_000)]
    {
        assert_eq!(logins.finish(foreign, &browser.headers(), NOW), Finish::Foreign);
    }
}

#[test]
fn an_attempt_does_not_serve_another_ones_state() {
    let logins = logins();
    let (first, _) = logins.start(&attempt(1, NOW), &HeaderMap::new(), NOW);
    let (_, cookies) = logins.start(&attempt(2, NOW), &HeaderMap::new(), NOW);
    let mut browser = Browser::default();
    browser.take(&cookies);
    browser.0[0].0 = "__Host-Http-sidegate-login-AQEBAQEB".into();
    assert_eq!(logins.finish(first.expose(), &browser.headers(), NOW), Finish::Stale { restarts: 2 });
}

#[test]
fn cookie_27_nothing_is_readable() {
    let (state, cookies) = logins().start(&attempt(1, NOW), &HeaderMap::new(), NOW);
    let value = cookies[0].to_str().unwrap().split(['=', ';']).nth(1).unwrap().to_owned();
    for text in [value.as_str(), state.expose()] {
        let bytes = base64_simd::URL_SAFE_NO_PAD.decode_to_vec(text).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("canary"));
    }
    assert!(!format!("{:?}", attempt(1, NOW)).contains("canary"));
}

#[test]
fn a_very_long_target_gives_way_to_the_start_page() {
    let long = Attempt { return_to: ReturnTo::restore(format!("/{}", "a".repeat(10_000))), ..attempt(1, NOW) };
    let (state, cookies) = logins().start(&long, &HeaderMap::new(), NOW);
    assert!(cookies[0].len() < 4096, "{}", state.expose().len());
    assert_eq!(Attempt::decode(&long.encode()).unwrap().return_to, ReturnTo::home());
}

#[test]
fn every_cut_or_changed_plaintext_is_refused_or_read_without_panic() {
    let bytes = attempt(1, NOW).encode();
    for len in 0..bytes.len() {
        Attempt::decode(&bytes[..len]);
        let mut changed = bytes.clone();
        changed[len] ^= 0xff;
        Attempt::decode(&changed);
    }
    assert!(Attempt::decode(&[&bytes[..], &[11, 0]].concat()).is_none(), "unknown field");
    assert!(Attempt::decode(&[&[2], &bytes[1..]].concat()).is_none(), "unknown version");
}
