use proptest::prelude::*;

use super::*;
use crate::session::samples::{self, Noise};

fn sample(access: &str, refresh: Option<&str>) -> Session {
    Session {
        provider: None,
        id: SessionId([1; 16]),
        generation: 3,
        created: Timestamp::from_secs(1_800_000_000),
        last_used: Timestamp::from_secs(1_800_000_100),
        issued: Timestamp::from_secs(1_800_000_090),
        index_key: 0xbeef,
        previous: Some(Handle([2; 16])),
        access_token: AccessToken::new(access),
        access_expires: Some(Timestamp::from_secs(1_800_000_390)),
        refresh_token: refresh.map(PackedToken::pack),
        refresh_expires: None,
        id_token: None,
        elsewhere: None,
        ticket: None,
        scope: Some("openid".into()),
        subject: "alice-4711".into(),
        provider_sid: None,
        auth_time: Some(1_799_999_990),
        acr: None,
        nonce_hash: Some([3; 16]),
        claims: [
            ("email".to_owned(), "a@example.com".into()),
            ("groups".to_owned(), serde_json::json!(["a", {"b": null}])),
        ]
        .into(),
        dpop: None,
        pseudonym: Memo::default(),
    }
}

fn plaintext(session: &Session) -> Vec<u8> {
    encode(session, &PackedToken::pack_plain(session.access_token.expose()), true)
}

fn tokens() -> Vec<String> {
    let mut noise = Noise::new(5);
    vec![
        String::new(),
        "opaque".into(),
        noise.uuid(),
        noise.uuid().to_uppercase(),
        noise.text(40),
        format!("{}==", noise.text(40)),
        "a.b.c.d".into(),
        "....".into(),
        "gho_16C7e42F292c6912E7710c838347Ae178B4a".into(),
        samples::keycloak_access(&mut noise, 0),
        samples::keycloak_access(&mut noise, 150),
        samples::jwt_refresh(&mut noise),
        samples::id_token(&mut noise),
        samples::entra_access(&mut noise, 3),
        samples::entra_access(&mut noise, 200),
        samples::entra_refresh(&mut noise),
        // Five segments: a JWE.
        [20, 256, 12, 900, 16].map(|len| noise.text(len)).join("."),
        // Looks like a JWT whose header and payload are not JSON and hold the mark itself.
        format!(
            "{}.{}.{}",
            URL_SAFE_NO_PAD.encode_to_string([1; 60]),
            URL_SAFE_NO_PAD.encode_to_string([1; 90]),
            noise.text(32)
        ),
        // Empty segments, and an unsigned JWT.
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.".into(),
        "ümläut.♥".into(),
    ]
}

#[test]
fn every_token_comes_back_as_it_was() {
    for token in tokens() {
        for packed in [PackedToken::pack(&token), PackedToken::pack_plain(&token)] {
            assert_eq!(packed.unpack().as_deref(), Some(token.as_str()));
            assert!(packed.len() <= token.len() + 1, "{} > {}", packed.len(), token.len());
        }
    }
}

#[test]
fn non_canonical_base64url_is_kept_to_the_bit() {
    // `QR` and `QQ` decode alike where the decoder is lenient.
    for token in ["QR.QR.QR", "eyJhIjoxfR.eyJhIjoxfR.AB", "AAAAAAAAAAAB.AAB.AB", "QQ==.QQ==.QQ=="] {
        assert_eq!(PackedToken::pack(token).unpack().unwrap(), token);
        assert_eq!(PackedToken::pack_plain(token).unpack().unwrap(), token);
    }
}

#[test]
fn tokens_are_as_small_as_they_should_be() {
    let mut noise = Noise::new(6);
    assert_eq!(PackedToken::pack(&noise.uuid()).len(), 17);
    assert_eq!(PackedToken::pack(&noise.text(300)).len(), 1 + 2 + 300);
    let entra = samples::entra_access(&mut noise, 200);
    assert!((11_800..12_400).contains(&entra.len()), "{}", entra.len());
    let packed = PackedToken::pack(&entra).len();
    assert!(packed < 4500, "{packed}");
    let keycloak = samples::keycloak_access(&mut noise, 0);
    assert!((1350..1500).contains(&keycloak.len()), "{}", keycloak.len());
    assert!(PackedToken::pack_plain(&keycloak).len() * 100 < keycloak.len() * 77);
    assert!(PackedToken::pack(&keycloak).len() * 100 < keycloak.len() * 62);
}

/// DOS-17: a frame that says little and inflates to much more than any token.
#[test]
fn cookie_24_a_bomb_stays_packed() {
    let bomb = |claimed: u64, real: usize| {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, 2);
        put_varint(&mut bytes, 0);
        put_segment(&mut bytes, "AAAA");
        put_varint(&mut bytes, claimed);
        bytes.extend_from_slice(&zstd::bulk::compress(&vec![b'x'; real], 3).unwrap());
        unpack(numbers::JWT_ZSTD, &bytes)
    };
    assert!(bomb(1000, 1000).is_some());
    assert!(bomb(64 * 1024, 64 * 1024).is_some());
    assert!(bomb(64 * 1024 + 1, 64 * 1024 + 1).is_none());
    assert!(bomb(1000, 50_000_000).is_none(), "more comes out than was said");
    assert!(bomb(1000, 999).is_none(), "less comes out than was said");
    assert!(bomb(u64::MAX, 10).is_none());
    // The same by way of UUIDs.
    let mut bytes = Vec::new();
    put_varint(&mut bytes, 0);
    put_varint(&mut bytes, u64::MAX / 16);
    assert!(unpack(numbers::JWT_ZSTD, &bytes).is_none());
}

#[test]
fn a_token_too_long_to_inflate_is_kept_uncompressed() {
    let payload = URL_SAFE_NO_PAD.encode_to_string(vec![b'x'; 70_000]);
    let token = format!("e30.{payload}.AAAA");
    let packed = PackedToken::pack(&token);
    assert_eq!(packed.codec, numbers::SEGMENTS);
    assert_eq!(packed.unpack().unwrap(), token);
}

#[test]
fn unknown_codecs_are_refused() {
    for codec in 4..=u8::MAX {
        assert!(unpack(codec, b"AAAA").is_none());
    }
}

#[test]
fn a_session_comes_back_as_it_was() {
    let session = sample("token", Some("refresh"));
    assert_eq!(decode(&plaintext(&session)), Some(session));
}

#[test]
fn session_fields_take_little() {
    let session = sample("", None);
    assert!(plaintext(&session).len() < 240, "{}", plaintext(&session).len());
}

#[test]
fn the_id_token_can_be_left_out() {
    let mut session = sample("token", Some("refresh"));
    session.id_token = Some(PackedToken::pack("id"));
    assert_eq!(decode(&encode(&session, &PackedToken::pack("token"), true)).unwrap(), session);
    session.id_token = None;
    assert_eq!(decode(&encode(&session, &PackedToken::pack("token"), false)).unwrap(), session);
}

#[test]
fn cookie_21_unknown_plaintexts_are_refused() {
    let good = plaintext(&sample("token", Some("refresh")));
    let mut version = good.clone();
    version[0] = VERSION + 1;
    assert!(decode(&version).is_none());

    let mut unknown = good.clone();
    put_tlv(&mut unknown, Tag::Claim as u8 + 1, b"");
    assert!(decode(&unknown).is_none(), "unknown field");

    let mut double = good.clone();
    put(&mut double, Tag::Subject, b"mallory");
    assert!(decode(&double).is_none(), "field twice");

    let mut claim = Vec::new();
    put_varint(&mut claim, 5);
    claim.extend_from_slice(b"email\0mallory@example.com");
    let mut twice = good.clone();
    put(&mut twice, Tag::Claim, &claim);
    assert!(decode(&twice).is_none(), "claim twice");

    for len in 0..good.len() {
        // Only whole claims may be missing at the end.
        if let Some(session) = decode(&good[..len]) {
            assert!(session.claims.len() < 2, "cut to {len}");
        }
    }
}

#[test]
fn nothing_secret_is_printed() {
    let session = sample("canary-1", Some("canary-2"));
    assert!(!format!("{session:?}").contains("canary"));
}

prop_compose! {
    fn any_session()(
        id: [u8; 16],
        numbers: [u64; 4],
        index_key: u16,
        previous: Option<[u8; 16]>,
        access in "\\PC{0,80}",
        times in (any::<Option<u64>>(), any::<Option<u64>>(), any::<Option<u64>>()),
        tokens in (proptest::option::of("\\PC{0,60}"), proptest::option::of("[A-Za-z0-9_-]{2,40}\\.[A-Za-z0-9_-]{2,40}\\.[A-Za-z0-9_-]{2,40}")),
        texts in (proptest::option::of("\\PC{0,20}"), "\\PC{0,200}", proptest::option::of("\\PC{0,20}"), proptest::option::of("\\PC{0,20}")),
        dpop in proptest::option::of(proptest::collection::vec(any::<u8>(), 96)),
        hashes in any::<(Option<[u8; 16]>, Option<[u8; 16]>)>(),
        claims in proptest::collection::btree_map("\\PC{0,10}", prop_oneof![
            "\\PC{0,30}".prop_map(serde_json::Value::from),
            any::<i64>().prop_map(serde_json::Value::from),
            proptest::collection::vec("[a-z]{0,5}", 0..4).prop_map(serde_json::Value::from),
        ], 0..4),
    ) -> Session {
        Session {
            provider: None,
            id: SessionId(id),
            generation: numbers[0],
            created: Timestamp::from_millis(numbers[1]),
            last_used: Timestamp::from_millis(numbers[2]),
            issued: Timestamp::from_millis(numbers[3]),
            index_key,
            previous: previous.map(Handle),
            access_token: AccessToken::new(access),
            access_expires: times.0.map(Timestamp::from_millis),
            refresh_token: tokens.0.as_deref().map(PackedToken::pack),
            refresh_expires: times.1.map(Timestamp::from_millis),
            id_token: tokens.1.as_deref().map(PackedToken::pack),
            scope: texts.0,
            subject: texts.1,
            provider_sid: texts.2,
            auth_time: times.2,
            acr: texts.3,
            nonce_hash: hashes.0,
            elsewhere: hashes.1.map(Handle),
            ticket: None,
            claims,
            dpop: dpop.as_deref().and_then(DpopKey::from_bytes),
            pseudonym: Memo::default(),
        }
    }
}

proptest! {
    #[test]
    fn session_round_trip(session in any_session()) {
        let bytes = plaintext(&session);
        let back = decode(&bytes);
        prop_assert_eq!(back.as_ref(), Some(&session));
        prop_assert_eq!(plaintext(&back.unwrap()), bytes);
        prop_assert_eq!(decode(&encode(&session, &PackedToken::pack(session.access_token.expose()), true)), Some(session));
    }

    #[test]
    fn token_round_trip(token in prop_oneof![
        "\\PC{0,200}",
        "[A-Za-z0-9_-]{0,50}(\\.[A-Za-z0-9_-]{0,50}){0,4}",
        "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    ]) {
        prop_assert_eq!(PackedToken::pack(&token).unpack(), Some(token.clone()));
        prop_assert_eq!(PackedToken::pack_plain(&token).unpack(), Some(token));
    }

    #[test]
    fn jwt_round_trip(header in proptest::collection::vec(any::<u8>(), 0..60), payload in "[\\x01-\\x7f]{0,300}", uuid in "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}") {
        let text = format!("{payload}{uuid}{payload}");
        let token = format!("{}.{}.c2ln", URL_SAFE_NO_PAD.encode_to_string(header), URL_SAFE_NO_PAD.encode_to_string(text));
        prop_assert_eq!(PackedToken::pack(&token).unpack(), Some(token));
    }

    #[test]
    fn decoding_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), codec: u8) {
        decode(&bytes);
        if let Some(first) = bytes.first_mut() {
            *first = VERSION;
        }
        decode(&bytes);
        unpack(codec % 5, &bytes);
    }

    #[test]
    fn a_damaged_plaintext_never_panics(at in 0usize..300, value: u8) {
        let mut bytes = plaintext(&sample(&samples::keycloak_access(&mut Noise::new(1), 0), Some("a.b.c")));
        let at = at % bytes.len();
        bytes[at] = value;
        if let Some(session) = decode(&bytes) {
            let _ = session.refresh_token.map(|token| token.unpack());
        }
    }
}
