use http::header::COOKIE;
use proptest::prelude::*;

use super::super::model::tests::{NOW, at, session, settings, tokens};
use super::*;
use crate::crypto::keyring::Key;
use crate::oidc::types::IdToken;
use crate::session::SessionId;
use crate::session::lifecycle::Ended;
use crate::session::samples::{self, Noise};
use crate::session::settings::SameSite;
use crate::web::origin::Origin;

const NAME: &str = "__Host-Http-sidegate";

fn ring(keys: &[&Key]) -> Keyring {
    Keyring::new(keys.iter().copied().cloned().collect()).unwrap()
}

fn jar() -> Jar {
    Jar::new(settings(), ring(&[&Key::generate()]))
}

/// A session of opaque tokens that seals into about `size` bytes.
fn of_size(size: usize) -> Session {
    session(tokens(&Noise::new(size as u64).text(size), Some("refresh")))
}

fn seal(jar: &Jar, session: &Session) -> Vec<(String, String)> {
    set(&jar.seal(session, &Presented::default(), NOW).unwrap())
}

fn set(cookies: &[HeaderValue]) -> Vec<(String, String)> {
    let pair = |cookie: &HeaderValue| {
        let text = cookie.to_str().unwrap();
        let (name, value) = text.split(';').next().unwrap().split_once('=').unwrap();
        (name.to_owned(), value.to_owned())
    };
    cookies.iter().map(pair).collect()
}

fn names(cookies: &[HeaderValue]) -> Vec<String> {
    set(cookies).into_iter().map(|(name, _)| name).collect()
}

fn fields(fields: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for field in fields {
        headers.append(COOKIE, HeaderValue::from_bytes(field.as_bytes()).unwrap());
    }
    headers
}

fn request(pairs: &[(String, String)]) -> HeaderMap {
    fields(&[&pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ")])
}

fn opened(jar: &Jar, pairs: &[(String, String)]) -> Option<Session> {
    match jar.open(&request(pairs), NOW).state {
        State::Open(session) => Some(Session::clone(&session)),
        _ => None,
    }
}

#[test]
fn no_cookie_is_no_session() {
    let opened = jar().open(&fields(&["a=b; c=d", "sidegate=x", ""]), NOW);
    assert_eq!(opened.state, State::Absent);
    assert!(opened.presented.is_empty());
}

#[test]
fn cookie_01_attributes_over_https() {
    let cookies = jar().seal(&of_size(100), &Presented::default(), NOW).unwrap();
    let [cookie] = cookies.as_slice() else { panic!("{cookies:?}") };
    let text = cookie.to_str().unwrap();
    assert!(text.starts_with("__Host-Http-sidegate=E"), "{text}");
    let attributes: Vec<_> = text.split("; ").skip(1).collect();
    for wanted in ["HttpOnly", "Secure", "SameSite=Strict", "Path=/", "Max-Age=43200"] {
        assert!(attributes.contains(&wanted), "{wanted}: {attributes:?}");
    }
    assert_eq!(attributes.len(), 5, "no Domain, no Partitioned: {attributes:?}");
    assert!(!format!("{cookie:?}").contains("sidegate"), "a log must not show it");
}

#[test]
fn cookie_01_attributes_over_http_and_partitioned() {
    let mut settings = settings();
    settings.public = Origin::parse("http://localhost:8080").unwrap();
    settings.same_site = SameSite::Lax;
    let jar = Jar::new(settings.clone(), ring(&[&Key::generate()]));
    let cookie = jar.seal(&of_size(100), &Presented::default(), NOW).unwrap().remove(0);
    let text = cookie.to_str().unwrap();
    assert!(text.starts_with("sidegate=") && text.contains("SameSite=Lax") && !text.contains("Secure"), "{text}");

    settings.public = Origin::parse("https://app.example.com").unwrap();
    settings.same_site = SameSite::None;
    settings.partitioned = true;
    let jar = Jar::new(settings, ring(&[&Key::generate()]));
    let cookie = jar.seal(&of_size(100), &Presented::default(), NOW).unwrap().remove(0);
    let text = cookie.to_str().unwrap();
    assert!(text.contains("SameSite=None") && text.contains("Partitioned") && text.contains("Secure"), "{text}");
}

#[test]
fn cookie_01_names_are_compared_exactly() {
    let jar = jar();
    let value = seal(&jar, &of_size(100)).remove(0).1;
    for name in [
        "__host-http-sidegate",
        "__HOST-HTTP-sidegate",
        " __Host-Http-sidegate",
        "\t__Host-Http-sidegate",
        "__Host-Http-sidegate%20",
        "__Host-Http-sidegate.",
        "__Host-Http-sidegate ",
        "\"__Host-Http-sidegate\"",
        "__Host-sidegate",
        "sidegate",
    ] {
        let request = fields(&[&format!("a=b; {name}={value}")]);
        assert_eq!(jar.open(&request, NOW).state, State::Absent, "{name}");
    }
    assert!(matches!(jar.open(&fields(&[&format!("a=b;{NAME}={value}")]), NOW).state, State::Open(_)));
}

#[test]
fn owns_exactly_its_names() {
    let jar = jar();
    for prefix in ["", "__Host-Http-", "__Host-", "__Secure-", "__Http-", "__host-http-"] {
        for ours in ["", "-1", "-8", "-12", "-login-AbC_-9", "-verify", "-returned", "-refresh", "-refresh-1"] {
            assert!(jar.owns(&format!("{prefix}sidegate{ours}")), "{prefix} {ours}");
        }
        for other in [
            "-0",
            "-01",
            "-",
            "-x",
            "-login-",
            "-login-a b",
            "-verify2",
            "-1x",
            "x",
            "-+1",
            "-1000000000",
            "-refresh-0",
            "-refreshed",
            "%20",
            ".",
            " ",
        ] {
            assert!(!jar.owns(&format!("{prefix}sidegate{other}")), "{prefix} {other}");
        }
    }
    for other in
        ["__Host-Http-sidegat", "", "SIDEGATE", "__Host-", "x__Host-sidegate", " sidegate", "__Host-__Host-sidegate"]
    {
        assert!(!jar.owns(other), "{other}");
    }
}

#[test]
fn cookie_03_of_two_with_one_name_the_authentic_one_counts_in_any_order() {
    let jar = jar();
    let good = seal(&jar, &of_size(100)).remove(0).1;
    let bad = seal(&self::jar(), &of_size(100)).remove(0).1;
    let mut flipped = good.clone();
    flipped.replace_range(60..61, if &good[60..61] == "A" { "B" } else { "A" });
    for bad in [bad.as_str(), flipped.as_str(), "", "x", "0", "02AAAAAAxyz"] {
        for line in [
            vec![format!("{NAME}={bad}; {NAME}={good}")],
            vec![format!("{NAME}={good}; {NAME}={bad}")],
            vec![format!("{NAME}={bad}"), format!("{NAME}={good}")],
            vec![format!("{NAME}={good}"), format!("{NAME}={bad}")],
        ] {
            let line: Vec<&str> = line.iter().map(String::as_str).collect();
            assert!(matches!(jar.open(&fields(&line), NOW).state, State::Open(_)), "{line:?}");
        }
    }
}

#[test]
fn cookie_03_of_two_that_open_the_newest_counts() {
    let jar = jar();
    let old = of_size(100);
    let new = old.refreshed(tokens("second", None), Handle([1; 16]), 0, NOW);
    let mut later = old.clone();
    (later.id, later.created) = (SessionId([9; 16]), at(1));
    let (old, new, later) = (seal(&jar, &old).remove(0), seal(&jar, &new).remove(0), seal(&jar, &later).remove(0));
    for request in [[old.clone(), new.clone()], [new.clone(), old.clone()]] {
        assert_eq!(opened(&jar, &request).unwrap().generation, 1);
    }
    assert_eq!(opened(&jar, &[later, new, old]).unwrap().id, SessionId([9; 16]));
}

#[test]
fn cookie_04_a_strange_cookie_line_hides_nothing() {
    let jar = jar();
    let value = seal(&jar, &of_size(100)).remove(0).1;
    let noise: String = (0..10_000).map(|n| format!("c{n}=v{n}; ")).collect();
    for strange in
        ["$Version=1", "=", "==", ";;", "\"", "a=\"x;y\"", "a,b=c", "ümläut=ö", "novalue", " ", "a=b=c", &noise]
    {
        for line in [format!("{strange}; {NAME}={value}"), format!("{NAME}={value}; {strange}")] {
            assert!(matches!(jar.open(&fields(&[&line]), NOW).state, State::Open(_)), "{}", &line[..40]);
        }
    }
    for odd in [format!("{NAME}=\"{value}\""), format!("{NAME}={value}="), NAME.to_owned(), format!("{NAME}={value} x")]
    {
        assert!(!matches!(jar.open(&fields(&[&odd]), NOW).state, State::Open(_)));
    }
}

#[test]
fn cookie_08_sizes_at_every_boundary() {
    let mut settings = settings();
    settings.header_budget = 40_000;
    let jar = Jar::new(settings, ring(&[&Key::generate()]));
    let mut seen = std::collections::BTreeSet::new();
    for size in (100..25_300).step_by(487).chain(2600..2720).chain(5440..5600) {
        let session = of_size(size);
        let Ok(cookies) = jar.seal(&session, &Presented::default(), NOW) else { panic!("{size}") };
        let pairs = set(&cookies);
        seen.insert(pairs.len());
        assert!(pairs.iter().all(|(name, value)| name.len() + value.len() <= 4096));
        let sum: usize = pairs.iter().map(|(name, value)| name.len() + value.len()).sum();
        let plain = codec::encode(&session, &PackedToken::pack_plain(session.access_token.expose()), true).len();
        assert_eq!(sum, jar.names.total(Series::Session, Sealer::sealed_len(plain)), "{size}");
        assert_eq!(opened(&jar, &pairs).as_ref(), Some(&session), "{size}");
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), (1..=9).collect::<Vec<_>>());
    let error = jar.seal(&of_size(28_000), &Presented::default(), NOW).unwrap_err();
    assert!(error.session > 34_200 && error.access_token > 28_000);
}

#[test]
fn cookie_08_above_the_budget_it_is_refused_with_the_sizes() {
    let jar = jar();
    let largest =
        (5000..6000).rev().find(|size| jar.seal(&of_size(*size), &Presented::default(), NOW).is_ok()).unwrap();
    let pairs = seal(&jar, &of_size(largest));
    let sum: usize = pairs.iter().map(|(name, value)| name.len() + value.len()).sum();
    assert!((7500..=7600).contains(&sum), "{sum}");
    let error = jar.seal(&of_size(largest + 32), &Presented::default(), NOW).unwrap_err();
    assert_eq!((error.limit, error.refresh_token), (7600, 8));
    assert!(error.session > 7600 && error.to_string().contains("limit 7600"), "{error}");
}

#[test]
fn cookie_09_incomplete_swapped_or_mixed_parts_are_no_session() {
    let jar = jar();
    let parts = seal(&jar, &of_size(5000));
    assert_eq!(parts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), [NAME, "__Host-Http-sidegate-1"]);
    let other = seal(&jar, &of_size(5000).refreshed(tokens(&Noise::new(1).text(5000), None), Handle([1; 16]), 0, NOW));
    let swapped = [(parts[0].0.clone(), parts[1].1.clone()), (parts[1].0.clone(), parts[0].1.clone())];
    let relabelled = [
        (parts[0].0.clone(), format!("0{}", &parts[1].1[1..])),
        (parts[1].0.clone(), format!("1{}", &parts[0].1[1..])),
    ];
    let fewer = [(parts[0].0.clone(), parts[0].1[8..].to_owned())];
    let mixed_ids = [parts[0].clone(), (parts[1].0.clone(), format!("{}{}", &parts[1].1[..8], &other[1].1[8..]))];
    for broken in
        [&parts[..1], &parts[1..], &swapped, &relabelled, &fewer, &mixed_ids, &[parts[0].clone(), other[1].clone()]]
    {
        let opened = jar.open(&request(broken), NOW);
        assert_eq!(opened.state, State::Broken);
        assert_eq!(names(&jar.expire(&opened.presented)).len(), broken.len(), "cleaned up");
    }
    // Both generations whole, in any order: the higher one.
    let both = [other[1].clone(), parts[0].clone(), parts[1].clone(), other[0].clone()];
    assert_eq!(opened(&jar, &both).unwrap().generation, 1);
    // One whole, of the other a part is missing.
    assert_eq!(opened(&jar, &[other[0].clone(), parts[1].clone(), parts[0].clone()]).unwrap().generation, 0);
    // A forged part of the same group beside the real one.
    let forged = (parts[1].0.clone(), format!("{}{}", &parts[1].1[..8], "A".repeat(100)));
    assert!(opened(&jar, &[forged.clone(), parts[0].clone(), parts[1].clone(), forged]).is_some());
    // A single session beside an old part.
    let single = seal(&jar, &of_size(100));
    assert!(opened(&jar, &[parts[1].clone(), single[0].clone()]).is_some());
}

#[test]
fn cookie_10_what_a_shorter_session_leaves_over_is_removed() {
    let jar = jar();
    let presented = jar.open(&request(&seal(&jar, &of_size(5000))), NOW).presented;
    let cookies = jar.seal(&of_size(100), &presented, NOW).unwrap();
    assert_eq!(names(&cookies), [NAME, "__Host-Http-sidegate-1"]);
    let gone = cookies[1].to_str().unwrap();
    assert!(
        gone.starts_with("__Host-Http-sidegate-1=;")
            && gone.contains("Max-Age=0")
            && gone.contains("Expires=Thu, 01 Jan 1970"),
        "{gone}"
    );
    assert_eq!(jar.seal(&of_size(5000), &presented, NOW).unwrap().len(), 2);
}

#[test]
fn cookie_11_counts_from_the_client_are_bounded() {
    let jar = jar();
    let many: String = (1..1000).map(|n| format!("{NAME}-{n}=09AAAAAA{n}; ")).collect();
    let opened = jar.open(&fields(&[&many]), NOW);
    assert_eq!(opened.state, State::Broken);
    assert!(opened.presented.found.len() <= MAX_LOOKED_AT);
    // Thirty values for each of nine places would be 30^9 combinations.
    let every: String = (0..9)
        .flat_map(|n| (0..7).map(move |k| (n, k)))
        .map(|(n, k)| {
            let name = if n == 0 { NAME.to_owned() } else { format!("{NAME}-{n}") };
            format!("{name}={n}9AAAAAAEQAA{k}; ")
        })
        .collect();
    assert_eq!(jar.open(&fields(&[&every]), NOW).state, State::Broken);
    for odd in ["99AAAAAAx", "0", "00AAAAAAx", "01AAAAAAx", "0:AAAAAAx", "02AAAAAA", "-2AAAAAAx"] {
        assert_eq!(jar.open(&fields(&[&format!("{NAME}={odd}")]), NOW).state, State::Broken, "{odd}");
    }
}

#[test]
fn cookie_12_deletion_names_the_cookie_exactly_as_it_was_set() {
    let mut settings = settings();
    settings.partitioned = true;
    settings.same_site = SameSite::None;
    let jar = Jar::new(settings, ring(&[&Key::generate()]));
    let line = format!(
        "{NAME}=x; {NAME}-1=x; {NAME}-1=y; {NAME}-verify=x; {NAME}-login-ab=x; __Secure-sidegate-refresh=x; other=y"
    );
    let presented = jar.open(&fields(&[&line]), NOW).presented;
    let all = jar.expire_all(&presented);
    let expected = [
        NAME,
        "__Host-Http-sidegate-1",
        "__Host-Http-sidegate-verify",
        "__Host-Http-sidegate-login-ab",
        "__Secure-sidegate-refresh",
    ];
    assert_eq!(names(&all), expected);
    for cookie in &all {
        let text = cookie.to_str().unwrap();
        let path = if text.starts_with("__Secure") { "Path=/auth/;" } else { "Path=/;" };
        assert!(
            text.contains("Secure")
                && text.contains("Max-Age=0")
                && text.contains("Partitioned")
                && text.contains(path),
            "{text}"
        );
    }
    assert_eq!(names(&jar.expire(&presented)), [expected[0], expected[1], expected[2], expected[4]]);
    assert_eq!(names(&jar.expire_all(&Presented::default())), [NAME]);
    assert!(jar.expire(&Presented::default()).is_empty() && jar.expire_presented(&Presented::default()).is_empty());
}

#[test]
fn cookie_13_max_age_is_what_is_left() {
    let mut settings = settings();
    settings.idle_timeout = Some(Duration::from_secs(600));
    let jar = Jar::new(settings, ring(&[&Key::generate()]));
    let mut session = of_size(100);
    let max_age = |session: &Session, now| {
        let cookie = jar.seal(session, &Presented::default(), now).unwrap().remove(0);
        let text = cookie.to_str().unwrap().to_owned();
        text.split("Max-Age=").nth(1).unwrap().split(';').next().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(max_age(&session, NOW), 600);
    session.refresh_expires = Some(at(400));
    assert_eq!(max_age(&session, NOW), 400);
    assert_eq!(max_age(&session, at(399)), 1);
    assert_eq!(max_age(&session, at(500)), 1, "a live cookie is never written as a deletion");
}

#[test]
fn cookie_20_an_unknown_key_is_left_alone() {
    let (ours, theirs) =
        (Jar::new(settings(), ring(&[&Key::generate()])), Jar::new(settings(), ring(&[&Key::generate()])));
    for size in [100, 5000] {
        let pairs = seal(&theirs, &of_size(size));
        let opened = ours.open(&request(&pairs), NOW);
        assert_eq!(opened.state, State::Absent);
        assert!(!opened.presented.is_empty());
        assert!(ours.expire(&opened.presented).is_empty());
        // Even when a part of it is missing, as long as the first says whose it is.
        let opened = ours.open(&request(&pairs[..1]), NOW);
        assert!(ours.expire(&opened.presented).is_empty());
        // A logout and a new login know no mercy.
        assert_eq!(ours.expire_all(&opened.presented).len(), 1);
    }
    let mut pairs = seal(&theirs, &of_size(5000));
    pairs.push((format!("{NAME}-2"), "x".into()));
    let opened = ours.open(&request(&pairs), NOW);
    assert_eq!(opened.state, State::Broken);
    assert_eq!(names(&ours.expire(&opened.presented)), [format!("{NAME}-2")]);
    assert_eq!(
        names(&ours.seal(&of_size(100), &opened.presented, NOW).unwrap()),
        [NAME.to_owned(), format!("{NAME}-1"), format!("{NAME}-2")]
    );
}

#[test]
fn cookie_23_a_session_opens_only_in_its_application() {
    let key = Key::generate();
    let pairs = seal(&Jar::new(settings(), ring(&[&key])), &of_size(100));
    let moved: [fn(&mut Settings); 4] = [
        |settings| settings.cookie_name = "other".into(),
        |settings| settings.public = Origin::parse("https://app2.example.com").unwrap(),
        |settings| settings.issuer = "https://login2.example.com".into(),
        |settings| settings.client_id = "app2".into(),
    ];
    for change in moved {
        let mut settings = settings();
        change(&mut settings);
        let jar = Jar::new(settings, ring(&[&key]));
        let pairs = [(jar.names.full(&Found::Part(0)), pairs[0].1.clone())];
        assert_eq!(jar.open(&request(&pairs), NOW).state, State::Broken);
    }
}

#[test]
fn cookie_25_an_expired_session_is_told_and_removed() {
    let jar = jar();
    let request = request(&seal(&jar, &of_size(100)));
    let opened = jar.open(&request, at(12 * 3600));
    assert!(matches!(opened.state, State::Over(Ended::Expired, _)));
    assert_eq!(names(&jar.expire(&opened.presented)), [NAME]);
}

#[test]
fn cookie_30_crumbs_are_read_together() {
    let jar = jar();
    let pairs = seal(&jar, &of_size(5000));
    let crumbs: Vec<String> = [("a".to_owned(), "b".to_owned())]
        .iter()
        .chain(&pairs)
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let crumbs: Vec<&str> = crumbs.iter().map(String::as_str).collect();
    assert!(matches!(jar.open(&fields(&crumbs), NOW).state, State::Open(_)));
}

#[test]
fn the_id_token_stays_while_it_costs_no_cookie() {
    let mut settings = settings();
    let key = Key::generate();
    let mut noise = Noise::new(3);
    let mut with_id = |access: &str, bytes| {
        let mut set = tokens(access, Some("refresh"));
        set.id_token = Some(IdToken::new(noise.text(bytes)));
        session(set)
    };
    let kept = |jar: &Jar, session: &Session| opened(jar, &seal(jar, session)).unwrap().id_token.is_some();

    let jar = Jar::new(settings.clone(), ring(&[&key]));
    let (small, large) = (with_id(&"a".repeat(100), 1000), with_id(&"a".repeat(100), 3000));
    assert!(kept(&jar, &small));
    assert!(!kept(&jar, &large), "it would cost a second cookie");
    assert_eq!(seal(&jar, &large).len(), 1);
    settings.id_token_needed = true;
    let needed = Jar::new(settings, ring(&[&key]));
    assert!(kept(&needed, &large));
    assert_eq!(seal(&needed, &large).len(), 2);
    assert!(needed.seal(&with_id("a", 6000), &Presented::default(), NOW).is_err(), "a route would fail without it");
    assert!(!kept(&jar, &with_id("a", 6000)));
}

#[test]
fn the_access_token_is_compressed_only_to_save_a_cookie() {
    let jar = jar();
    let mut noise = Noise::new(4);
    let codec_of = |session: &Session| {
        let plain = jar.encode(session).unwrap().front;
        (plain.len(), plain == codec::encode(session, &PackedToken::pack_plain(session.access_token.expose()), true))
    };
    let small = session(tokens(&samples::keycloak_access(&mut noise, 0), Some(&samples::jwt_refresh(&mut noise))));
    assert!(codec_of(&small).1);
    let large = session(tokens(&samples::keycloak_access(&mut noise, 150), Some(&samples::jwt_refresh(&mut noise))));
    assert!(!codec_of(&large).1);
    assert_eq!(seal(&jar, &large).len(), 1);
}

/// The sizes that the design promises, in characters of all cookies.
#[test]
fn sessions_are_as_small_as_promised() {
    let jar = jar();
    let mut noise = Noise::new(7);
    let chars = |session: &Session| -> usize { seal(&jar, session).iter().map(|(_, value)| value.len()).sum() };
    let (access, refresh) = (noise.uuid(), noise.uuid());
    let uuids = chars(&session(tokens(&access, Some(&refresh))));
    assert!(uuids <= 320, "{uuids}");
    let (access, refresh) = (samples::keycloak_access(&mut noise, 0), samples::jwt_refresh(&mut noise));
    assert!(access.len() >= 1400 && refresh.len() >= 1300, "{} {}", access.len(), refresh.len());
    let two_jwts = chars(&session(tokens(&access, Some(&refresh))));
    assert!(two_jwts <= 2800, "{two_jwts}");
    let (access, refresh) = (samples::entra_access(&mut noise, 200), samples::entra_refresh(&mut noise));
    assert!(access.len() >= 12_000 && refresh.len() >= 1100, "{} {}", access.len(), refresh.len());
    let entra = session(tokens(&access, Some(&refresh)));
    assert!(chars(&entra) <= 7600, "{}", chars(&entra));
    assert_eq!(opened(&jar, &seal(&jar, &entra)).unwrap(), entra);
}

#[test]
fn a_handle_names_one_generation_of_one_token() {
    let (a, b) = (Key::generate(), Key::generate());
    let jar = Jar::new(settings(), ring(&[&a, &b]));
    let mut first = session(tokens("x", Some("refresh")));
    first.index_key = jar.sealing_key_id(NOW);
    let handle = jar.handle(&first).unwrap();

    // The same after a round trip, on a replica with the keys in another order, with another access token.
    let mut other = opened(&jar, &seal(&jar, &first)).unwrap();
    other.access_token = crate::oidc::types::AccessToken::new("y");
    assert_eq!(Jar::new(settings(), ring(&[&b, &a])).handle(&other), Some(handle));

    // A provider that does not rotate: another generation, another handle; the link goes back.
    let second = first.refreshed(tokens("z", None), handle, first.index_key, NOW);
    assert_eq!(second.refresh_token, first.refresh_token);
    assert_ne!(jar.handle(&second), Some(handle));
    assert_eq!(opened(&jar, &seal(&jar, &second)).unwrap().previous, Some(handle));

    let mut client = settings();
    client.client_id = "app2".into();
    assert_ne!(Jar::new(client, ring(&[&a])).handle(&first), Some(handle));
    assert_eq!(jar.handle(&session(tokens("x", None))), None);
}

#[test]
fn key_replacement_reaches_login_cookies_too() {
    let (a, b) = (Key::generate(), Key::generate());
    let jar = Jar::new(settings(), ring(&[&a]));
    jar.replace_keys(ring(&[&b]), NOW);
    assert_eq!(jar.sealing_key_id(NOW), b.id().0);
    assert_eq!(jar.sealer().sealing_key_id(NOW), b.id());
}

#[test]
fn a_marker_lives_ten_seconds() {
    let jar = jar();
    let marker = Marker { handle: [5; 8], hops: 1, dances: 2 };
    let cookie = jar.mark(marker, NOW).unwrap();
    assert!(cookie.to_str().unwrap().contains("Max-Age=10"));
    let request = request(&set(&[cookie]));
    assert_eq!(jar.marker(&request, at(9)), Some(marker));
    assert_eq!(jar.marker(&request, at(10)), None);
    assert_eq!(jar.open(&request, NOW).state, State::Absent);
    assert_eq!(names(&jar.expire(&jar.open(&request, NOW).presented)), [format!("{NAME}-verify")]);
    let session = seal(&jar, &of_size(10)).remove(0).1;
    assert_eq!(jar.marker(&fields(&[&format!("{NAME}-verify={session}")]), NOW), None);
}

#[test]
fn types_do_not_print_secrets() {
    let jar = jar();
    let opened = jar.open(&request(&seal(&jar, &session(tokens("canary-a", Some("canary-r"))))), NOW);
    assert!(!format!("{opened:?}{jar:?}{:?}", SessionId([1; 16])).contains("canary"));
}

proptest! {
    #[test]
    fn opening_never_panics(lines in proptest::collection::vec("[ -~]{0,60}", 0..4), values in proptest::collection::vec(("(|-1|-2|-9|-verify|-login-x)", "[0-9A-Za-z_-]{0,80}"), 0..8)) {
        let jar = jar();
        let ours: String = values.iter().map(|(suffix, value)| format!("{NAME}{suffix}={value}; ")).collect();
        let mut lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        lines.push(&ours);
        let opened = jar.open(&fields(&lines), NOW);
        prop_assert!(!matches!(opened.state, State::Open(_)));
        jar.expire_all(&opened.presented);
        jar.marker(&fields(&lines), NOW);
    }
}

/// What replicas hand each other opens for who presents the spent token of that very session and generation.
#[test]
fn a_result_opens_for_the_holder_of_the_spent_token_only() {
    let (key, settings) = (Key::generate(), settings());
    let jar = Jar::new(settings.clone(), ring(&[&key]));
    let mut spent = session(tokens("a", Some("rt-1")));
    spent.index_key = jar.sealing_key_id(NOW);
    let handle = jar.handle(&spent).unwrap();
    let next = spent.refreshed(tokens("b", Some("rt-2")), handle, spent.index_key, at(10));
    let sealed = jar.seal_result(&spent, handle, &next).unwrap();

    let replica = Jar::new(settings, ring(&[&Key::generate(), &key]));
    assert_eq!(replica.open_result(&spent, handle, &sealed), Some(next));
    let thief = Session { refresh_token: Some(PackedToken::pack("rt-0")), ..spent.clone() };
    assert_eq!(jar.open_result(&thief, handle, &sealed), None);
    assert_eq!(jar.open_result(&Session { id: SessionId([9; 16]), ..spent.clone() }, handle, &sealed), None);
    assert_eq!(jar.open_result(&Session { generation: 1, ..spent.clone() }, handle, &sealed), None);
    assert_eq!(jar.open_result(&spent, Handle([9; 16]), &sealed), None);
    assert_eq!(Jar::new(jar.settings().clone(), ring(&[&Key::generate()])).open_result(&spent, handle, &sealed), None);
}

// -- The split layout ----------------------------------------------------------------------------------------------

const REFRESH: &str = "__Secure-sidegate-refresh";

fn split_settings() -> Settings {
    Settings { layout: Layout::Split, prefix: "/own/auth".into(), ..settings() }
}

/// A session with all its tokens, its next generation, and jars of one key.
fn split_jars() -> (Jar, Jar, Session, Session) {
    let key = Key::generate();
    let (single, split) = (Jar::new(settings(), ring(&[&key])), Jar::new(split_settings(), ring(&[&key])));
    let mut set = tokens("access", Some("refresh-0"));
    set.id_token = Some(IdToken::new("id-0"));
    let first = session(set);
    let own = split.handle(&first).unwrap();
    let second = first.refreshed(tokens("access-1", Some("refresh-1")), own, 7, at(100));
    (single, split, first, second)
}

fn whole(jar: &Jar, pairs: &[(String, String)]) -> Option<Session> {
    match jar.open_whole(&request(pairs), at(100)).state {
        State::Open(session) => Some(Session::clone(&session)),
        _ => None,
    }
}

#[test]
fn split_cookies_and_their_attributes() {
    let (_, jar, session, _) = split_jars();
    let cookies = jar.seal(&session, &Presented::default(), NOW).unwrap();
    let [front, back] = cookies.as_slice() else { panic!("{cookies:?}") };
    let (front, back) = (front.to_str().unwrap(), back.to_str().unwrap());
    assert!(front.starts_with("__Host-Http-sidegate=E") && front.contains("; Path=/;"), "{front}");
    assert!(back.starts_with("__Secure-sidegate-refresh=U"), "{back}");
    let attributes: Vec<_> = back.split("; ").skip(1).collect();
    for wanted in ["HttpOnly", "Secure", "SameSite=Strict", "Path=/own/auth/", "Max-Age=43200"] {
        assert!(attributes.contains(&wanted), "{wanted}: {attributes:?}");
    }
    assert_eq!(attributes.len(), 5, "no Domain: {attributes:?}");
    for ours in [REFRESH, "__Secure-sidegate-refresh-1"] {
        assert!(jar.owns(ours), "{ours}");
    }
    for other in ["__Secure-sidegate-refresh-0", "__Secure-sidegate-refresh-x"] {
        assert!(!jar.owns(other), "{other}");
    }
}

#[test]
fn a_split_session_alone_names_its_refresh_token_and_does_not_hold_it() {
    let (_, jar, session, _) = split_jars();
    let pairs = seal(&jar, &session);
    let alone = opened(&jar, &pairs[..1]).unwrap();
    assert_eq!((alone.refresh_token.as_ref(), alone.id_token.as_ref()), (None, None));
    assert_eq!(alone.elsewhere, jar.handle(&session));
    assert_eq!(jar.handle(&alone), jar.handle(&session));
    assert_eq!(alone.ends(jar.settings()), session.ends(jar.settings()), "it can be refreshed");
    assert_eq!(opened(&jar, &pairs), Some(session.clone()), "both together are all of it");
    assert_eq!(whole(&jar, &pairs), Some(session));
    let lost = whole(&jar, &pairs[..1]).unwrap();
    assert_eq!((lost.has_refresh_token(), lost.ends(jar.settings())), (false, at(300)), "the browser has it no more");
    assert_eq!(jar.open(&request(&pairs[1..]), NOW).state, State::Absent, "the refresh cookie alone is nobody");
}

#[test]
fn a_session_alone_is_sealed_anew_without_touching_the_refresh_cookie() {
    let (_, jar, session, _) = split_jars();
    let pairs = seal(&jar, &session);
    let mut alone = opened(&jar, &pairs[..1]).unwrap();
    alone.touch(at(50));
    let again = jar.seal(&alone, &jar.presented(&request(&pairs)), at(50)).unwrap();
    assert_eq!(names(&again), [NAME]);
    let touched = whole(&jar, &[set(&again), pairs[1..].to_vec()].concat()).unwrap();
    assert_eq!((touched.last_used, &touched.refresh_token), (at(50), &session.refresh_token));
}

/// Contract 4: it counts only beside a session cookie of the same session, and the higher generation wins.
#[test]
fn which_refresh_cookie_counts() {
    let (_, jar, first, second) = split_jars();
    let (old, new) = (seal(&jar, &first), seal(&jar, &second));
    let mut stranger = first.clone();
    (stranger.id, stranger.generation) = (SessionId([9; 16]), 7);
    let foreign = seal(&jar, &stranger);
    let with = |front: &[(String, String)], backs: &[&[(String, String)]]| {
        let backs = backs.iter().map(|pairs| pairs[1].clone()).collect::<Vec<_>>();
        whole(&jar, &[&front[..1], &backs[..]].concat()).unwrap()
    };
    for backs in [[&foreign[..], &old[..]], [&old[..], &foreign[..]]] {
        assert_eq!(with(&old, &backs), first);
    }
    assert!(!with(&old, &[&foreign[..]]).has_refresh_token(), "somebody else's");
    for backs in [[&old[..], &new[..]], [&new[..], &old[..]]] {
        assert_eq!(with(&old, &backs), first, "its own before a newer one");
        assert_eq!(with(&new, &backs), second);
    }
    // Of two answers: the refresh token says where the session stands, and a refresh follows.
    for (front, back, stands) in [(&old, &new, &second), (&new, &old, &first)] {
        let mixed = with(front, &[&back[..]]);
        assert_eq!(jar.handle(&mixed), jar.handle(stands));
        assert_eq!((mixed.generation, mixed.previous), (stands.generation, stands.previous));
        assert!(mixed.access_expires.unwrap() <= at(100));
    }
}

#[test]
fn a_rotation_that_changes_nothing_needs_no_new_refresh_cookie() {
    let (_, jar, first, _) = split_jars();
    let own = jar.handle(&first).unwrap();
    let kept = first.refreshed(tokens("access-1", None), own, 7, at(100));
    let mixed = [&seal(&jar, &kept)[..1], &seal(&jar, &first)[1..]].concat();
    assert_eq!(whole(&jar, &mixed), Some(kept));
}

#[test]
fn the_layouts_read_each_other() {
    let (single, split, session, _) = split_jars();
    let (one, two) = (seal(&single, &session), seal(&split, &session));
    assert_eq!(opened(&split, &one), Some(session.clone()));
    assert_eq!(opened(&single, &two), Some(session.clone()));
    let to_two = split.seal(&session, &split.presented(&request(&one)), NOW).unwrap();
    assert_eq!(names(&to_two), [NAME, REFRESH]);
    let to_one = single.seal(&session, &single.presented(&request(&two)), NOW).unwrap();
    assert_eq!(names(&to_one), [NAME, REFRESH], "the second one is removed");
    assert!(to_one[1].to_str().unwrap().contains("Max-Age=0"));
}

/// COOKIE-12
#[test]
fn a_split_session_is_expired_wherever_it_is_noticed() {
    let (_, jar, session, _) = split_jars();
    let pairs = seal(&jar, &session);
    for pairs in [&pairs[..], &pairs[..1]] {
        let presented = jar.presented(&request(pairs));
        assert_eq!(names(&jar.expire(&presented)), [NAME, REFRESH]);
        assert_eq!(names(&jar.expire_all(&presented)), [NAME, REFRESH]);
    }
    assert!(jar.expire(&Presented::default()).is_empty());
    let expiry = jar.expire(&jar.presented(&request(&pairs[..1]))).remove(1);
    assert!(expiry.to_str().unwrap().contains("Path=/own/auth/"));
}

/// COOKIE-08
#[test]
fn a_split_session_is_cut_where_it_must_be() {
    let settings = Settings { header_budget: 16_000, ..split_settings() };
    let jar = Jar::new(settings.clone(), ring(&[&Key::generate()]));
    let mut noise = Noise::new(9);
    let mut set = tokens(&noise.text(4000), Some(&noise.text(4000)));
    set.id_token = Some(IdToken::new(noise.text(500)));
    let session = session(set);
    let pairs = seal(&jar, &session);
    let names: Vec<_> = pairs.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, [NAME, "__Host-Http-sidegate-1", REFRESH, "__Secure-sidegate-refresh-1"]);
    assert!(pairs.iter().all(|(name, value)| name.len() + value.len() <= 4096));
    assert_eq!(whole(&jar, &pairs), Some(session.clone()), "the ID token costs no cookie");
    assert!(!whole(&jar, &pairs[..3]).unwrap().has_refresh_token(), "half of it is none of it");
    let tight = Jar::new(Settings { header_budget: 7600, ..settings }, ring(&[&Key::generate()]));
    assert!(tight.seal(&session, &Presented::default(), NOW).is_err(), "the budget is for all of them");
}

#[test]
fn an_id_token_that_a_route_sends_stays_with_the_session() {
    let jar = Jar::new(Settings { id_token_needed: true, ..split_settings() }, ring(&[&Key::generate()]));
    let (_, _, session, _) = split_jars();
    let pairs = seal(&jar, &session);
    assert_eq!(opened(&jar, &pairs[..1]).unwrap().id_token, session.id_token);
    assert_eq!(whole(&jar, &pairs), Some(session));
}
