use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

fn binding() -> Binding {
    Binding {
        cookie_name: "sidegate".into(),
        origin: "https://app.example.com".into(),
        issuer: "https://login.example.com".into(),
        client_id: "app".into(),
    }
}

fn ring(keys: &[&Key]) -> Keyring {
    Keyring::new(keys.iter().copied().cloned().collect()).unwrap()
}

fn sealer(keys: &[&Key]) -> Sealer {
    Sealer::new(&binding(), ring(keys))
}

fn plain(opened: Opened) -> Option<Vec<u8>> {
    match opened {
        Opened::Plain(plain) => Some(plain.to_vec()),
        _ => None,
    }
}

fn kid(text: &str) -> KeyId {
    header(&URL_SAFE_NO_PAD.decode_to_vec(text).unwrap(), Purpose::Session).unwrap().0
}

#[test]
fn what_is_sealed_opens_and_has_the_stated_size() {
    let sealer = sealer(&[&Key::generate()]);
    for len in [0, 1, 31, 32, 33, 1000, 2027] {
        let bytes = vec![7; len];
        let text = sealer.seal(Purpose::Session, &bytes, NOW);
        assert_eq!(text.len(), Sealer::sealed_len(len), "{len}");
        assert_eq!(plain(sealer.open(Purpose::Session, text.as_bytes())), Some(bytes));
    }
    assert_eq!(Sealer::sealed_len(0), (44 + 32usize) * 4 / 3 + 1);
}

/// Another process with the same keys has another salt and no remembered cipher.
#[test]
fn another_replica_opens_it() {
    let key = Key::generate();
    let text = sealer(&[&key]).seal(Purpose::Session, b"x", NOW);
    let other = sealer(&[&key]);
    for _ in 0..3 {
        assert_eq!(plain(other.open(Purpose::Session, text.as_bytes())).unwrap(), b"x");
    }
}

/// ASVS-7.2.2, ASVS-11.3.4.
#[test]
fn cookie_18_nonces_differ_and_the_salt_is_drawn_anew() {
    let sealer = sealer(&[&Key::generate()]);
    let parts = |text: String| {
        let (_, salt, nonce) = header(&URL_SAFE_NO_PAD.decode_to_vec(text).unwrap(), Purpose::Session).unwrap();
        (salt, nonce)
    };
    let seen: Vec<_> = (0..500).map(|_| parts(sealer.seal(Purpose::Session, b"", NOW))).collect();
    assert_eq!(seen.iter().map(|(salt, _)| *salt).collect::<HashSet<_>>().len(), 1);
    assert_eq!(seen.iter().map(|(_, nonce)| *nonce).collect::<HashSet<_>>().len(), 500);

    sealer.salts.lock().values_mut().for_each(|salt| salt.left = 0);
    let text = sealer.seal(Purpose::Session, b"later", NOW);
    assert_eq!(plain(sealer.open(Purpose::Session, text.as_bytes())).unwrap(), b"later");
    assert_ne!(parts(text).0, seen[0].0);
}

#[test]
fn cookie_19_a_blob_of_one_purpose_is_garbage_for_another() {
    let sealer = sealer(&[&Key::generate()]);
    let all = [Purpose::Session, Purpose::Login, Purpose::Marker, Purpose::State];
    for made in all {
        let text = sealer.seal(made, b"x", NOW);
        for wanted in all {
            assert_eq!(plain(sealer.open(wanted, text.as_bytes())).is_some(), made == wanted, "{made:?} as {wanted:?}");
        }
        // Not even with the type byte rewritten.
        let mut blob = URL_SAFE_NO_PAD.decode_to_vec(&text).unwrap();
        for wanted in all.into_iter().filter(|wanted| *wanted != made) {
            blob[0] = wanted as u8;
            let text = URL_SAFE_NO_PAD.encode_to_string(&blob);
            assert!(matches!(sealer.open(wanted, text.as_bytes()), Opened::Broken));
        }
    }
}

#[test]
fn cookie_20_the_first_key_seals_and_all_open() {
    let (a, b) = (Key::generate(), Key::generate());
    let text = sealer(&[&a]).seal(Purpose::Session, b"x", NOW);
    let both = sealer(&[&b, &a]);
    assert!(plain(both.open(Purpose::Session, text.as_bytes())).is_some());
    assert_eq!(kid(&both.seal(Purpose::Session, b"x", NOW)), b.id());
    let without = sealer(&[&b]);
    assert!(matches!(without.open(Purpose::Session, text.as_bytes()), Opened::UnknownKey));
    assert!(without.is_of_unknown_key(Purpose::Session, &text.as_bytes()[..40]));
    assert!(!both.is_of_unknown_key(Purpose::Session, text.as_bytes()));
    assert!(!without.is_of_unknown_key(Purpose::Session, &text.as_bytes()[..20]));
}

#[test]
fn cookie_20_a_remembered_cipher_goes_with_its_key() {
    let (a, b) = (Key::generate(), Key::generate());
    let sealer = sealer(&[&a]);
    let text = sealer.seal(Purpose::Session, b"x", NOW);
    assert!(plain(sealer.open(Purpose::Session, text.as_bytes())).is_some());
    sealer.replace_keys(ring(&[&b]), NOW);
    assert!(matches!(sealer.open(Purpose::Session, text.as_bytes()), Opened::UnknownKey));
}

#[test]
fn cookie_22_a_key_newly_in_front_waits_a_minute() {
    let (a, b, c) = (Key::generate(), Key::generate(), Key::generate());
    let sealer = sealer(&[&a]);
    let at = |seconds| NOW + Duration::from_secs(seconds);

    sealer.replace_keys(ring(&[&b, &a]), at(0));
    assert_eq!(sealer.sealing_key_id(at(59)), a.id());
    assert_eq!(sealer.sealing_key_id(at(60)), b.id());
    // The same ring read again does not start the minute anew.
    sealer.replace_keys(ring(&[&b, &a]), at(30));
    assert_eq!(sealer.sealing_key_id(at(60)), b.id());
    // Once it seals it is no longer new.
    sealer.replace_keys(ring(&[&b, &a]), at(61));
    assert_eq!(sealer.sealing_key_id(at(61)), b.id());
    // With the old key gone there is nothing to wait for.
    sealer.replace_keys(ring(&[&c]), at(70));
    assert_eq!(sealer.sealing_key_id(at(70)), c.id());
    // A ring replaced while another one waits: the key that really seals goes on.
    sealer.replace_keys(ring(&[&b, &c]), at(80));
    sealer.replace_keys(ring(&[&a, &b, &c]), at(90));
    assert_eq!(sealer.sealing_key_id(at(149)), c.id());
    assert_eq!(sealer.sealing_key_id(at(150)), a.id());
}

/// ASVS-11.2.2.
#[test]
fn cookie_21_unknown_versions_and_flags_are_refused() {
    let sealer = sealer(&[&Key::generate()]);
    let text = sealer.seal(Purpose::Session, b"x", NOW);
    let blob = URL_SAFE_NO_PAD.decode_to_vec(&text).unwrap();
    for (at, value) in [(0, 0x12), (0, 0x10), (0, 0x00), (1, 0x01), (1, 0x80)] {
        let mut blob = blob.clone();
        blob[at] = value;
        let text = URL_SAFE_NO_PAD.encode_to_string(&blob);
        assert!(matches!(sealer.open(Purpose::Session, text.as_bytes()), Opened::Broken), "{at} {value}");
    }
}

#[test]
fn cookie_23_a_blob_opens_only_where_it_was_made() {
    let key = Key::generate();
    let text = sealer(&[&key]).seal(Purpose::Session, b"x", NOW);
    let moved: [fn(&mut Binding); 5] = [
        |binding| binding.cookie_name = "other".into(),
        |binding| binding.origin = "https://app.example.com:8443".into(),
        |binding| binding.issuer = "https://login.example.com/".into(),
        |binding| binding.client_id = "app2".into(),
        // The same bytes cut at another place.
        |binding| (binding.issuer, binding.client_id) = ("https://login.example.coma".into(), "pp".into()),
    ];
    for change in moved {
        let mut binding = binding();
        change(&mut binding);
        let other = Sealer::new(&binding, ring(&[&key]));
        assert!(matches!(other.open(Purpose::Session, text.as_bytes()), Opened::Broken), "{binding:?}");
    }
}

/// ASVS-11.3.3.
#[test]
fn cookie_26_every_flipped_bit_is_noticed() {
    let key = Key::generate();
    let text = sealer(&[&key]).seal(Purpose::Session, b"some plaintext of some length, longer than a block", NOW);
    let blob = URL_SAFE_NO_PAD.decode_to_vec(&text).unwrap();
    let sealer = sealer(&[&key]);
    for bit in 0..blob.len() * 8 {
        let mut blob = blob.clone();
        blob[bit / 8] ^= 1 << (bit % 8);
        let text = URL_SAFE_NO_PAD.encode_to_string(&blob);
        assert!(plain(sealer.open(Purpose::Session, text.as_bytes())).is_none(), "bit {bit}");
    }
    for len in 0..blob.len() {
        let text = URL_SAFE_NO_PAD.encode_to_string(&blob[..len]);
        assert!(plain(sealer.open(Purpose::Session, text.as_bytes())).is_none(), "cut to {len}");
    }
}

#[test]
fn what_is_too_long_is_not_even_decoded() {
    let sealer = sealer(&[&Key::generate()]);
    assert!(matches!(sealer.open(Purpose::Session, &vec![b'E'; MAX_TEXT + 1]), Opened::Broken));
}

#[test]
fn the_memory_of_ciphers_is_bounded() {
    let key = Key::generate();
    let sealer = sealer(&[&key]);
    let first = sealer.seal(Purpose::Session, b"first", NOW);
    for _ in 0..2 * MAX_CIPHERS {
        sealer.salts.lock().clear();
        sealer.seal(Purpose::Session, b"x", NOW);
        assert!(sealer.ring.load().ciphers.read().len() <= MAX_CIPHERS);
    }
    assert!(plain(sealer.open(Purpose::Session, first.as_bytes())).is_some());
}

#[test]
fn index_depends_on_the_key_of_the_id_only() {
    let (a, b, c) = (Key::generate(), Key::generate(), Key::generate());
    let one = sealer(&[&a, &b]).index(a.id(), &[b"x", b"y"]);
    assert_eq!(one, sealer(&[&b, &a]).index(a.id(), &[b"xy"]));
    assert_ne!(one, sealer(&[&a, &b]).index(b.id(), &[b"x", b"y"]));
    // A key that is gone: the first one stands in, on every replica alike.
    assert_eq!(sealer(&[&c]).index(a.id(), &[b"x"]), sealer(&[&c, &b]).index(a.id(), &[b"x"]));
}

#[test]
fn nothing_secret_is_printed() {
    let sealer = sealer(&[&Key::generate()]);
    let text = sealer.seal(Purpose::Session, b"canary", NOW);
    assert!(!format!("{sealer:?} {:?}", sealer.open(Purpose::Session, text.as_bytes())).contains("canary"));
}

proptest! {
    #[test]
    fn opening_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let sealer = sealer(&[&Key::generate()]);
        prop_assert!(plain(sealer.open(Purpose::Session, &bytes)).is_none());
        let mut blob = vec![0x11, 0];
        blob.extend_from_slice(&sealer.sealing_key_id(NOW).0.to_be_bytes());
        blob.extend_from_slice(&bytes);
        let text = URL_SAFE_NO_PAD.encode_to_string(&blob);
        prop_assert!(plain(sealer.open(Purpose::Session, text.as_bytes())).is_none());
        sealer.is_of_unknown_key(Purpose::Session, &bytes);
    }

    #[test]
    fn round_trip(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let sealer = sealer(&[&Key::generate()]);
        let text = sealer.seal(Purpose::Login, &bytes, NOW);
        prop_assert_eq!(plain(sealer.open(Purpose::Login, text.as_bytes())), Some(bytes));
    }
}

/// What stands in a store opens only with the secret, the server's key, and in its place.
#[test]
fn what_is_sealed_for_somebody_opens_for_nobody_else() {
    let (key, other) = (Key::generate(), Key::generate());
    let ours = sealer(&[&key]);
    let sealed = ours.seal_for(key.id(), &[b"token", b"sid"], &[b"handoff1"], b"place", b"plain").unwrap();
    let open = |sealer: &Sealer, secret: &[&[u8]], info: &[u8], aad: &[u8], sealed: &[u8]| {
        sealer.open_for(key.id(), secret, &[info], aad, sealed).map(|plain| plain.to_vec())
    };
    let replica = sealer(&[&other, &key]);
    assert_eq!(open(&replica, &[b"token", b"sid"], b"handoff1", b"place", &sealed).unwrap(), b"plain");
    assert_eq!(open(&ours, &[b"tokens", b"id"], b"handoff1", b"place", &sealed), None, "another secret");
    assert_eq!(open(&ours, &[b"token", b"sid"], b"handoff2", b"place", &sealed), None, "another purpose");
    assert_eq!(open(&ours, &[b"token", b"sid"], b"handoff1", b"places", &sealed), None, "another place");
    assert_eq!(open(&sealer(&[&other]), &[b"token", b"sid"], b"handoff1", b"place", &sealed), None, "another server");
    for cut in 0..sealed.len() {
        assert_eq!(open(&ours, &[b"token", b"sid"], b"handoff1", b"place", &sealed[..cut]), None);
    }
    let again = ours.seal_for(key.id(), &[b"token", b"sid"], &[b"handoff1"], b"place", b"plain").unwrap();
    assert_ne!(sealed, again, "the nonce is fresh");
}
