//! What sealing and opening a session costs, and what the compressors do to tokens.
//!
//! `cargo bench --bench session_codec` prints two tables. They are the reasons for the numbers in `session::codec`.
#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use base64_simd::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue};
use sidegate::clock::Timestamp;
use sidegate::crypto::keyring::{Key, Keyring};
use sidegate::crypto::seal::Purpose;
use sidegate::oidc::types::{AccessToken, IdToken, Identity, Login, RefreshToken, TokenSet};
use sidegate::session::codec::{self, PackedToken};
use sidegate::session::jar::{Jar, Presented};
use sidegate::session::lifecycle::State;
use sidegate::session::settings::{Layout, SameSite, Settings, Store};
use sidegate::session::{Session, SessionId};
use sidegate::web::origin::Origin;

mod samples;
use samples::Noise;

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

/// Nanoseconds per call: the best of twenty rounds, so that a busy machine does not count.
fn nanos(mut call: impl FnMut()) -> u128 {
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let start = Instant::now();
        for _ in 0..500 {
            call();
        }
        best = best.min(start.elapsed());
    }
    best.as_nanos() / 500
}

/// The same for a call and for dropping its result, which wipes the access token.
fn open_and_drop<T>(mut call: impl FnMut() -> T) -> (u128, u128) {
    let (mut best, mut best_drop) = (Duration::MAX, Duration::MAX);
    let mut kept = Vec::with_capacity(32);
    for _ in 0..300 {
        let start = Instant::now();
        kept.extend((0..32).map(|_| call()));
        best = best.min(start.elapsed());
        let start = Instant::now();
        black_box(&mut kept).clear();
        best_drop = best_drop.min(start.elapsed());
    }
    (best.as_nanos() / 32, best_drop.as_nanos() / 32)
}

fn settings() -> Settings {
    Settings {
        cookie_name: "sidegate".into(),
        same_site: SameSite::Strict,
        form_post: false,
        partitioned: false,
        public: Origin::parse("https://app.example.com").expect("an origin"),
        issuer: "https://login.example.com/realms/production".into(),
        providers: Vec::new(),
        client_id: "spa-gateway".into(),
        store: Store::Cookie,
        layout: Layout::Single,
        prefix: "/auth".into(),
        max_age: Duration::from_secs(12 * 3600),
        idle_timeout: None,
        max_refreshes: 0,
        header_budget: 7600,
        claims: ["name", "preferred_username", "email", "picture"].map(str::to_owned).to_vec(),
        id_token_needed: false,
    }
}

fn session(settings: &Settings, access: &str, refresh: &str, id: Option<&str>) -> Session {
    let claims: BTreeMap<_, _> = [
        ("name", "Zoë Müller"),
        ("preferred_username", "zoe.mueller"),
        ("email", "zoe.mueller@example.com"),
        ("picture", "https://cdn.example.com/u/4711.png"),
    ]
    .map(|(name, value)| (name.to_owned(), value.into()))
    .into();
    let tokens = TokenSet {
        access_token: AccessToken::new(access),
        access_expires: Some(NOW + Duration::from_secs(300)),
        refresh_token: Some(RefreshToken::new(refresh)),
        refresh_expires: Some(NOW + Duration::from_secs(1800)),
        id_token: id.map(IdToken::new),
        scope: Some("openid email profile offline_access".into()),
    };
    let identity = Identity {
        subject: "5b1cd0f2-0a51-4b3c-9c2e-6f0f3f0f8a11".into(),
        sid: Some("0e1d5f9a-2d7a-4f4b-8f57-7a1b8a7e5a10".into()),
        auth_time: Some(1_799_999_990),
        acr: Some("1".into()),
        claims,
    };
    Session::begin(Login { tokens, identity, dpop: None }, [7; 16], SessionId([9; 16]), 0, settings, NOW)
}

fn sessions() {
    let mut noise = Noise::new(1);
    let keycloak = samples::keycloak_access(&mut noise, 0);
    let refresh = samples::jwt_refresh(&mut noise);
    let roles = samples::keycloak_access(&mut noise, 120);
    let id = samples::id_token(&mut noise);
    let entra20 = samples::entra_access(&mut noise, 20);
    let entra200 = samples::entra_access(&mut noise, 200);
    let opaque = samples::entra_refresh(&mut noise);
    let (small, small_refresh) = (noise.uuid(), noise.uuid());
    let cases: [(&str, &str, &str, Option<&str>); 7] = [
        ("two UUIDs", &small, &small_refresh, None),
        ("AT 1.4 kB, RT 1.3 kB", &keycloak, &refresh, None),
        ("the same with ID token", &keycloak, &refresh, Some(&id)),
        ("AT with 120 roles, RT, ID", &roles, &refresh, Some(&id)),
        ("Entra 20 groups, opaque RT", &entra20, &opaque, None),
        ("Entra 200 groups, opaque RT", &entra200, &opaque, None),
        ("the same with ID token", &entra200, &opaque, Some(&id)),
    ];
    println!(
        "{:28} {:>6} {:>6} {:>7} {:>6} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "session", "AT", "RT", "cookies", "chars", "open ns", "unseal", "decode", "drop", "seal ns"
    );
    for (name, access, refresh, id) in cases {
        let settings = settings();
        let key = Key::generate();
        let jar = Jar::new(settings.clone(), Keyring::new(vec![key]).expect("a key"));
        let session = session(&settings, access, refresh, id);
        let cookies = match jar.seal(&session, &Presented::default(), NOW) {
            Ok(cookies) => cookies,
            Err(error) => {
                println!("{name:28} {error}");
                continue;
            }
        };
        let pairs: Vec<String> = cookies
            .iter()
            .map(|cookie| cookie.to_str().expect("text").split(';').next().unwrap_or_default().to_owned())
            .collect();
        let mut headers = HeaderMap::new();
        let line = pairs.join("; ");
        headers.insert("cookie", HeaderValue::from_str(&line).expect("a header"));
        assert!(matches!(jar.open(&headers, NOW).state, State::Open(_)));
        let (open, dropped) = open_and_drop(|| jar.open(black_box(&headers), NOW));
        let value = pairs.first().and_then(|pair| pair.split_once('=')).map_or("", |(_, value)| value).as_bytes();
        // One cookie only: the parts of several do not open alone.
        let unseal = nanos(|| drop(black_box(jar.sealer().open(Purpose::Session, black_box(value)))));
        let plain = codec::encode(&session, &PackedToken::pack_plain(access), true);
        let decode = nanos(|| drop(black_box(codec::decode(black_box(&plain)))));
        let seal = nanos(|| drop(black_box(jar.seal(black_box(&session), &Presented::default(), NOW))));
        let chars = line.len() - 3 * pairs.len() + 2;
        println!(
            "{name:28} {:6} {:6} {:7} {chars:6} {open:8} {unseal:8} {decode:8} {:8} {seal:8}",
            access.len(),
            refresh.len(),
            pairs.len(),
            dropped,
        );
    }
}

/// Header and payload of a JWT, decoded.
fn text(token: &str) -> Vec<u8> {
    let parts = token.split('.').take(2);
    parts.flat_map(|part| URL_SAFE_NO_PAD.decode_to_vec(part).unwrap_or_default()).collect()
}

fn compressors() {
    let mut noise = Noise::new(2);
    let cases = [
        ("Keycloak", text(&samples::keycloak_access(&mut noise, 0))),
        ("Keycloak 120 roles", text(&samples::keycloak_access(&mut noise, 120))),
        ("ID token", text(&samples::id_token(&mut noise))),
        ("Entra 20 groups", text(&samples::entra_access(&mut noise, 20))),
        ("Entra 200 groups", text(&samples::entra_access(&mut noise, 200))),
    ];
    println!("\n{:20} {:>6}  compressor      bytes  deflate ns  inflate ns", "JWT text", "bytes");
    for (name, text) in &cases {
        let row = |compressor: &str, packed: usize, pack: u128, unpack: u128| {
            println!("{name:20} {:6}  {compressor:12} {packed:8} {pack:11} {unpack:11}", text.len());
        };
        for level in [1, 3, 9, 19] {
            let packed = zstd::bulk::compress(text, level).expect("zstd compresses");
            let mut context = zstd::bulk::Decompressor::new().expect("a context");
            let mut out = Vec::with_capacity(text.len());
            let unpack = nanos(|| {
                out.clear();
                context.decompress_to_buffer(black_box(&packed), &mut out).expect("zstd inflates");
            });
            assert_eq!(&out, text);
            let pack = nanos(|| drop(black_box(zstd::bulk::compress(black_box(text), level))));
            row(&format!("zstd {level}"), packed.len(), pack, unpack);
        }
        let packed = lz4_flex::block::compress(text);
        let unpack = nanos(|| drop(black_box(lz4_flex::block::decompress(black_box(&packed), text.len()))));
        let pack = nanos(|| drop(black_box(lz4_flex::block::compress(black_box(text)))));
        row("lz4", packed.len(), pack, unpack);

        let deflate = || {
            let mut packed = Vec::with_capacity(text.len() + 64);
            let mut context = flate2::Compress::new(flate2::Compression::new(6), false);
            context.compress_vec(text, &mut packed, flate2::FlushCompress::Finish).expect("zlib deflates");
            packed
        };
        let packed = deflate();
        let mut context = flate2::Decompress::new(false);
        let mut out = Vec::with_capacity(text.len() + 64);
        let unpack = nanos(|| {
            out.clear();
            context.reset(false);
            context
                .decompress_vec(black_box(&packed), &mut out, flate2::FlushDecompress::Finish)
                .expect("zlib inflates");
        });
        assert_eq!(&out, text);
        row("deflate 6", packed.len(), nanos(|| drop(black_box(deflate()))), unpack);
    }
}

fn main() {
    sessions();
    compressors();
}
