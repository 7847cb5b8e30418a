//! What can be wrong with an ID token or a logout token, and how a token with that fault is made.

use serde_json::{Map, Value, json};

use super::super::jose::{self, Key};
use super::super::text::{b64u, filler, mark, unb64u};

/// What a client that keeps the rules does with such a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is taken.
    Fine,
    /// It is refused.
    Refused,
    /// It is taken at a login, and refused at a refresh.
    RefusedAtRefresh,
    /// It is refused when `max_age` or `acr_values` were asked for.
    RefusedWhenAsked,
}

macro_rules! faults {
    ($(#[$outer:meta])* $enum:ident { $($(#[$doc:meta])* $name:ident => $verdict:ident,)* }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $enum { $($(#[$doc])* $name,)* }

        impl $enum {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// What becomes of a token with it.
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$name => Verdict::$verdict,)* }
            }
        }
    };
}

faults! {
    /// One thing that is wrong, or only unusual, about an ID token. The doc line names the suite's module or the row.
    Fault {
        /// oidcc-client-test-nonce-invalid: a character more.
        NonceInvalid => Refused,
        /// The nonce is missing although one was sent.
        NonceMissing => Refused,
        /// IDT-07: the nonce is a number.
        NonceNumber => Refused,

        /// oidcc-client-test-missing-iat.
        MissingIat => Refused,
        /// IDT-02: two minutes ahead.
        IatFuture => Refused,
        /// IDT-02: a day old.
        IatOld => Refused,
        /// IDT-07: a text.
        IatText => Refused,

        /// oidcc-client-test-missing-aud.
        MissingAud => Refused,
        /// oidcc-client-test-invalid-aud: `client_id` and a `1`.
        InvalidAud => Refused,
        /// oidcc-client-test-invalid-aud: the beginning of `client_id`.
        AudPrefix => Refused,
        /// oidcc-client-test-invalid-aud: the end of `client_id`.
        AudSuffix => Refused,
        /// oidcc-client-test-invalid-aud: in capitals.
        AudCase => Refused,
        /// IDT-03: a list with us only.
        AudList => Fine,
        /// IDT-03: a list with us and an audience that nobody trusts.
        AudListUntrusted => Refused,
        /// IDT-03: the same, and `azp` is us.
        AudListUntrustedAzpOurs => Refused,
        /// An empty list.
        AudListEmpty => Refused,
        /// IDT-07: an object.
        AudObject => Refused,
        /// IDT-03: `azp` is us.
        AzpOurs => Fine,
        /// IDT-03: `azp` is another client.
        AzpOther => Refused,

        /// oidcc-client-test-missing-sub.
        MissingSub => Refused,
        /// oidcc-client-test-missing-sub: empty.
        SubEmpty => Refused,
        /// oidcc-client-test-missing-sub: a number.
        SubNumber => Refused,
        /// oidcc-client-test-missing-sub: 256 characters.
        SubLong => Refused,
        /// oidcc-client-test-refresh-token-invalid-sub (RFR-04): another user.
        SubOther => RefusedAtRefresh,

        /// oidcc-client-test-invalid-iss, oidcc-client-test-refresh-token-invalid-issuer: a `1` at the end.
        InvalidIss => Refused,
        /// oidcc-client-test-invalid-iss: a slash at the end.
        IssTrailingSlash => Refused,
        /// oidcc-client-test-invalid-iss: the same server by another spelling of its host.
        IssHost => Refused,
        /// oidcc-client-test-invalid-iss: https for http.
        IssScheme => Refused,
        /// No `iss`.
        MissingIss => Refused,

        /// IDT-01: no `exp`.
        MissingExp => Refused,
        /// IDT-01: two minutes ago.
        Expired => Refused,
        /// IDT-01: half a minute ago, within the skew.
        ExpiredWithinSkew => Fine,
        /// IDT-07: a text.
        ExpText => Refused,
        /// IDT-07: `1e300`.
        ExpHuge => Refused,
        /// IDT-07: 2^63.
        ExpOverflow => Refused,
        /// IDT-07: negative.
        ExpNegative => Refused,
        /// IDT-02: `nbf` two minutes ahead.
        NbfFuture => Refused,
        /// IDT-02: `nbf` now.
        NbfNow => Fine,

        /// oidcc-client-test-idtoken-sig-none: `none`.
        SigNone => Refused,
        /// oidcc-client-test-idtoken-sig-none: `nOnE`.
        SigNoneCase => Refused,
        /// oidcc-client-test-idtoken-sig-none: `none` with a signature that is right for RS256.
        SigNoneSigned => Refused,
        /// oidcc-client-test-idtoken-sig-none: RS256 with an empty signature.
        SigEmpty => Refused,
        /// oidcc-client-test-idtoken-sig-rs256: nothing is wrong.
        SigRs256 => Fine,
        /// oidcc-client-test-invalid-sig-rs256: one bit flipped.
        InvalidSigRs256 => Refused,
        /// oidcc-client-test-invalid-sig-es256: one bit flipped.
        InvalidSigEs256 => Refused,
        /// oidcc-client-test-invalid-sig-es256: r and s are zero.
        SigEs256Zero => Refused,
        /// oidcc-client-test-invalid-sig-es256: the signature in DER.
        SigEs256Der => Refused,
        /// IDT-04: a good ES256 signature of the provider's EC key, while RS256 is pinned.
        SigEs256 => Refused,
        /// IDT-04: a good PS256 signature of the provider's RSA key, while RS256 is pinned.
        SigPs256 => Refused,
        /// oidcc-client-test-invalid-sig-hs256: by another secret.
        InvalidSigHs256 => Refused,
        /// IDT-04: by the client secret, while RS256 is pinned.
        SigHs256 => Refused,
        /// IDT-04: HS256 with the public key's PEM as secret.
        SigHs256Pem => Refused,
        /// IDT-04: HS256 with the public key's DER as secret.
        SigHs256Der => Refused,
        /// IDT-04: HS256 with the public key's JWK as secret.
        SigHs256Jwk => Refused,
        /// oidcc-client-test-kid-absent-multiple-jwks: by a key outside the set, under the `kid` of one inside.
        SigOutsider => Refused,
        /// oidcc-client-test-kid-absent-multiple-jwks: by a key outside the set, without `kid`.
        SigOutsiderWithoutKid => Refused,
        /// KEY-06: a `kid` that is nowhere.
        KidUnknown => Refused,
        /// oidcc-client-test-kid-absent-single-jwks: no `kid` in the header.
        KidAbsent => Fine,
        /// KEY-04: by a key that is published for encryption.
        SigEncryptionKey => Refused,
        /// IDT-14: by a published RSA key of 1024 bits.
        SigSmallKey => Refused,

        /// oidcc-client-test-missing-athash.
        MissingAthash => Fine,
        /// oidcc-client-test-invalid-athash.
        InvalidAthash => Refused,
        /// oidcc-client-test-missing-chash / -invalid-chash: a wrong one where none is needed.
        InvalidChash => Refused,

        /// IDT-06: `typ: logout+jwt`.
        TypLogout => Refused,
        /// IDT-06: `typ: at+jwt`.
        TypAccess => Refused,
        /// IDT-06: `typ: oauth-authz-resp+jwt`.
        TypJarm => Refused,
        /// No `typ`.
        TypMissing => Fine,
        /// IDT-05: an extension that must be understood.
        Crit => Refused,
        /// IDT-05: signed by a key that the header brings along.
        EmbeddedJwk => Refused,
        /// IDT-05: signed by a key that `jku` points to.
        EmbeddedJku => Refused,
        /// IDT-05: signed by a key whose certificate `x5c` would bring along.
        EmbeddedX5c => Refused,

        /// IDT-07: `iss` twice in the payload.
        DuplicateMembers => Refused,
        /// IDT-07: `alg` twice in the header.
        DuplicateHeader => Refused,
        /// IDT-07: the payload is a list.
        PayloadArray => Refused,
        /// IDT-07: the payload is no JSON.
        PayloadText => Refused,
        /// IDT-12: two parts.
        TwoParts => Refused,
        /// IDT-12: four parts.
        FourParts => Refused,
        /// IDT-12: five parts.
        FiveParts => Refused,
        /// IDT-12: `=` at the end.
        Padding => Refused,
        /// IDT-12: a line feed inside.
        Newline => Refused,
        /// IDT-12: 2 MiB.
        Huge => Refused,
        /// IDT-13: encrypted.
        Jwe => Refused,
        /// IDT-13: encrypted with RSA1_5.
        JweRsa15 => Refused,
        /// IDT-13: encrypted and compressed.
        JweZip => Refused,

        /// IDT-10: no `auth_time`. At a refresh that is fine, too.
        AuthTimeMissing => RefusedWhenAsked,
        /// IDT-10, RFR-04: `auth_time` a day ago.
        AuthTimeOld => RefusedAtRefresh,
        /// IDT-10: another `acr`.
        AcrOther => RefusedWhenAsked,
        /// RFR-04: an `iat` a minute before the first token's.
        IatEarlier => RefusedAtRefresh,
    }
}

/// What is needed to make a token, with or without a fault.
pub(super) struct Draft<'a> {
    pub(super) header: Map<String, Value>,
    pub(super) claims: Map<String, Value>,
    pub(super) key: &'a Key,
    pub(super) ec: &'a Key,
    pub(super) outsider: &'a Key,
    pub(super) encryption: &'a Key,
    pub(super) small: &'a Key,
    pub(super) client_secret: &'a str,
    pub(super) issuer: &'a str,
    pub(super) now: i64,
}

impl Draft<'_> {
    /// The compact token.
    pub(super) fn finish(self) -> String {
        let (header, claims) = (text_of(&self.header), text_of(&self.claims));
        jose::compact(&header, &claims, self.key)
    }

    fn signed_by(mut self, key: &Key) -> String {
        self.header.insert("alg".to_owned(), key.alg.into());
        if self.header.contains_key("kid") {
            self.header.insert("kid".to_owned(), key.kid.clone().into());
        }
        jose::compact(&text_of(&self.header), &text_of(&self.claims), key)
    }

    fn hmac(mut self, secret: &[u8]) -> String {
        self.header.insert("alg".to_owned(), "HS256".into());
        let input = jose::input(&text_of(&self.header), &text_of(&self.claims));
        let tag = jose::hs256(secret, input.as_bytes());
        format!("{input}.{}", b64u(tag))
    }

    fn with_claim(mut self, name: &str, value: impl Into<Value>) -> String {
        self.claims.insert(name.to_owned(), value.into());
        self.finish()
    }

    fn without_claim(mut self, name: &str) -> String {
        self.claims.shift_remove(name);
        self.finish()
    }

    fn with_header(mut self, name: &str, value: impl Into<Value>) -> String {
        self.header.insert(name.to_owned(), value.into());
        self.finish()
    }

    fn with_header_by_outsider(mut self, name: &str, value: Value) -> String {
        self.header.insert(name.to_owned(), value);
        let key = self.outsider;
        self.signed_by(key)
    }

    fn unsigned(mut self, alg: &str, keep_signature: bool) -> String {
        self.header.insert("alg".to_owned(), alg.into());
        let input = jose::input(&text_of(&self.header), &text_of(&self.claims));
        let signature = if keep_signature { b64u(self.key.sign(input.as_bytes())) } else { String::new() };
        format!("{input}.{signature}")
    }

    fn jwe(self, alg: &str, zip: bool) -> String {
        let mut header = json!({"alg": alg, "enc": "A256GCM", "kid": self.encryption.kid, "cty": "JWT"});
        if zip {
            header["zip"] = "DEF".into();
        }
        let parts = [256, 12, 600, 16].map(|n| b64u(super::super::text::random(n)));
        format!("{}.{}", b64u(header.to_string()), parts.join("."))
    }

    /// The token with this fault.
    pub(super) fn with(mut self, fault: Fault) -> String {
        let text = |claims: &Map<String, Value>, name: &str| claims[name].as_str().unwrap_or_default().to_owned();
        let us = text(&self.claims, "aud");
        match fault {
            Fault::NonceInvalid => {
                let nonce = self.claims.get("nonce").and_then(Value::as_str).unwrap_or("none").to_owned();
                self.with_claim("nonce", nonce + "x")
            }
            Fault::NonceMissing => self.without_claim("nonce"),
            Fault::NonceNumber => self.with_claim("nonce", 17),
            Fault::MissingIat => self.without_claim("iat"),
            Fault::IatFuture => {
                let at = self.now + 120;
                self.with_claim("iat", at)
            }
            Fault::IatOld => {
                let at = self.now - 86_400;
                self.with_claim("iat", at)
            }
            Fault::IatText => {
                let at = self.now.to_string();
                self.with_claim("iat", at)
            }
            Fault::IatEarlier => {
                let at = self.now - 60;
                self.with_claim("iat", at)
            }
            Fault::MissingAud => self.without_claim("aud"),
            Fault::InvalidAud => self.with_claim("aud", us + "1"),
            Fault::AudPrefix => self.with_claim("aud", &us[..us.len() - 1]),
            Fault::AudSuffix => self.with_claim("aud", &us[1..]),
            Fault::AudCase => self.with_claim("aud", us.to_ascii_uppercase()),
            Fault::AudList => self.with_claim("aud", json!([us])),
            Fault::AudListUntrusted => self.with_claim("aud", json!([us, "another-client"])),
            Fault::AudListUntrustedAzpOurs => {
                self.claims.insert("azp".to_owned(), us.clone().into());
                self.with_claim("aud", json!([us, "another-client"]))
            }
            Fault::AudListEmpty => self.with_claim("aud", json!([])),
            Fault::AudObject => self.with_claim("aud", json!({})),
            Fault::AzpOurs => self.with_claim("azp", us),
            Fault::AzpOther => self.with_claim("azp", "another-client"),
            Fault::MissingSub => self.without_claim("sub"),
            Fault::SubEmpty => self.with_claim("sub", ""),
            Fault::SubNumber => self.with_claim("sub", 4711),
            Fault::SubLong => self.with_claim("sub", "s".repeat(256)),
            Fault::SubOther => self.with_claim("sub", "mallory-666"),
            Fault::InvalidIss => {
                let iss = format!("{}1", self.issuer);
                self.with_claim("iss", iss)
            }
            Fault::IssTrailingSlash => {
                let iss = format!("{}/", self.issuer);
                self.with_claim("iss", iss)
            }
            Fault::IssHost => {
                let iss = self.issuer.replace("127.0.0.1", "LOCALHOST");
                self.with_claim("iss", iss)
            }
            Fault::IssScheme => {
                let iss = self.issuer.replace("http:", "https:");
                self.with_claim("iss", iss)
            }
            Fault::MissingIss => self.without_claim("iss"),
            Fault::MissingExp => self.without_claim("exp"),
            Fault::Expired => {
                let at = self.now - 120;
                self.claims.insert("iat".to_owned(), (self.now - 180).into());
                self.with_claim("exp", at)
            }
            Fault::ExpiredWithinSkew => {
                let at = self.now - 30;
                self.claims.insert("iat".to_owned(), (self.now - 40).into());
                self.with_claim("exp", at)
            }
            Fault::ExpText => {
                let at = (self.now + 300).to_string();
                self.with_claim("exp", at)
            }
            Fault::ExpHuge => self.with_claim("exp", 1e300),
            Fault::ExpOverflow => self.with_claim("exp", 1u64 << 63),
            Fault::ExpNegative => self.with_claim("exp", -5),
            Fault::NbfFuture => {
                let at = self.now + 120;
                self.with_claim("nbf", at)
            }
            Fault::NbfNow => {
                let at = self.now;
                self.with_claim("nbf", at)
            }
            Fault::SigNone => self.unsigned("none", false),
            Fault::SigNoneCase => self.unsigned("nOnE", false),
            Fault::SigNoneSigned => self.unsigned("none", true),
            Fault::SigEmpty => self.unsigned("RS256", false),
            Fault::SigRs256 => self.finish(),
            Fault::InvalidSigRs256 => flip_signature(&self.finish()),
            Fault::InvalidSigEs256 => {
                let key = self.ec;
                flip_signature(&self.signed_by(key))
            }
            Fault::SigEs256 => {
                let key = self.ec;
                self.signed_by(key)
            }
            Fault::SigEs256Zero => {
                let key = self.ec;
                replace_signature(&self.signed_by(key), &[0; 64])
            }
            Fault::SigEs256Der => {
                let key = self.ec;
                let token = self.signed_by(key);
                let signature = token.rsplit('.').next().and_then(unb64u).unwrap_or_default();
                replace_signature(&token, &der_signature(&signature))
            }
            Fault::SigPs256 => {
                let key = self.key.clone().with_alg("PS256");
                self.signed_by(&key)
            }
            Fault::InvalidSigHs256 => self.hmac(b"not the client secret, but as long"),
            Fault::SigHs256 => {
                let secret = self.client_secret;
                self.hmac(secret.as_bytes())
            }
            Fault::SigHs256Pem => {
                let secret = self.key.public_pem();
                self.hmac(secret.as_bytes())
            }
            Fault::SigHs256Der => {
                let secret = self.key.public_der();
                self.hmac(&secret)
            }
            Fault::SigHs256Jwk => {
                let secret = self.key.jwk().to_string();
                self.hmac(secret.as_bytes())
            }
            Fault::SigOutsider => {
                let mut key = self.outsider.clone();
                key.kid.clone_from(&self.key.kid);
                self.signed_by(&key)
            }
            Fault::SigOutsiderWithoutKid => {
                let key = self.outsider;
                self.header.shift_remove("kid");
                self.signed_by(key)
            }
            Fault::KidUnknown => {
                let mut key = self.outsider.clone();
                key.kid = mark("nowhere-");
                self.header.insert("kid".to_owned(), key.kid.clone().into());
                self.signed_by(&key)
            }
            Fault::KidAbsent => {
                self.header.shift_remove("kid");
                self.finish()
            }
            Fault::SigEncryptionKey => {
                let key = self.encryption;
                self.signed_by(key)
            }
            Fault::SigSmallKey => {
                let key = self.small;
                self.signed_by(key)
            }
            Fault::MissingAthash => self.without_claim("at_hash"),
            Fault::InvalidAthash => self.with_claim("at_hash", jose::half_hash("another token", "RS256")),
            Fault::InvalidChash => self.with_claim("c_hash", jose::half_hash("another code", "RS256")),
            Fault::TypLogout => self.with_header("typ", "logout+jwt"),
            Fault::TypAccess => self.with_header("typ", "at+jwt"),
            Fault::TypJarm => self.with_header("typ", "oauth-authz-resp+jwt"),
            Fault::TypMissing => {
                self.header.shift_remove("typ");
                self.finish()
            }
            Fault::Crit => {
                self.header.insert("x".to_owned(), 1.into());
                self.with_header("crit", json!(["x"]))
            }
            Fault::EmbeddedJwk => {
                let jwk = self.outsider.jwk();
                self.with_header_by_outsider("jwk", jwk)
            }
            Fault::EmbeddedJku => {
                let url = format!("{}/elsewhere/jku.json", self.issuer);
                self.with_header_by_outsider("jku", url.into())
            }
            Fault::EmbeddedX5c => self.with_header_by_outsider("x5c", json!(["bm8gY2VydGlmaWNhdGU="])),
            Fault::DuplicateMembers => {
                let claims = text_of(&self.claims);
                let doubled = format!("{{\"iss\":\"https://other.example\",{}", &claims[1..]);
                jose::compact(&text_of(&self.header), &doubled, self.key)
            }
            Fault::DuplicateHeader => {
                let header = text_of(&self.header);
                let doubled = format!("{{\"alg\":\"none\",{}", &header[1..]);
                jose::compact(&doubled, &text_of(&self.claims), self.key)
            }
            Fault::PayloadArray => {
                let claims = format!("[{}]", text_of(&self.claims));
                jose::compact(&text_of(&self.header), &claims, self.key)
            }
            Fault::PayloadText => jose::compact(&text_of(&self.header), "not json", self.key),
            Fault::TwoParts => {
                let token = self.finish();
                token.rsplit_once('.').map_or_else(String::new, |(input, _)| input.to_owned())
            }
            Fault::FourParts => self.finish() + ".AAAA",
            Fault::FiveParts => self.finish() + ".AAAA.AAAA",
            Fault::Padding => self.finish() + "==",
            Fault::Newline => self.finish().replacen('.', "\n.", 1),
            Fault::Huge => self.with_claim("filler", filler(1_600_000)),
            Fault::Jwe => self.jwe("RSA-OAEP-256", false),
            Fault::JweRsa15 => self.jwe("RSA1_5", false),
            Fault::JweZip => self.jwe("RSA-OAEP-256", true),
            Fault::AuthTimeMissing => self.without_claim("auth_time"),
            Fault::AuthTimeOld => {
                let at = self.now - 86_400;
                self.with_claim("auth_time", at)
            }
            Fault::AcrOther => self.with_claim("acr", "urn:example:something-weaker"),
        }
    }
}

fn text_of(map: &Map<String, Value>) -> String {
    serde_json::to_string(map).expect("a JSON object")
}

fn replace_signature(token: &str, signature: &[u8]) -> String {
    let (input, _) = token.rsplit_once('.').expect("a compact token");
    format!("{input}.{}", b64u(signature))
}

fn flip_signature(token: &str) -> String {
    let mut signature = token.rsplit('.').next().and_then(unb64u).expect("a compact token");
    signature[7] ^= 1;
    replace_signature(token, &signature)
}

/// r and s as ASN.1, as OpenSSL writes them and JWS does not.
fn der_signature(fixed: &[u8]) -> Vec<u8> {
    let integer = |bytes: &[u8]| {
        let digits: Vec<u8> = bytes.iter().copied().skip_while(|b| *b == 0).collect();
        let sign = usize::from(digits.first().is_none_or(|b| b & 0x80 != 0));
        let len = u8::try_from(digits.len() + sign).expect("short");
        [&[2, len][..], &vec![0; sign], &digits].concat()
    };
    let (r, s) = fixed.split_at(fixed.len() / 2);
    let body = [integer(r), integer(s)].concat();
    [&[0x30, u8::try_from(body.len()).expect("short")][..], &body].concat()
}

faults! {
    /// One thing that is wrong, or only unusual, about a logout token (Back-Channel Logout 1.0 section 2.4).
    LogoutFault {
        /// oidcc-client-test-rp-backchannel-rpinitlogout: the suite sends no `typ`.
        TypMissing => Fine,
        /// BCL-02: `typ: JWT`.
        TypJwt => Fine,
        /// BCL-02: `typ: at+jwt`.
        TypAccess => Refused,
        /// A claim that nobody knows.
        UnknownClaim => Fine,
        /// oidcc-client-test-rp-backchannel-rpinitlogout-alg-none.
        AlgNone => Refused,
        /// oidcc-client-test-rp-backchannel-rpinitlogout-no-event.
        NoEvent => Refused,
        /// oidcc-client-test-rp-backchannel-rpinitlogout-with-nonce.
        WithNonce => Refused,
        /// oidcc-client-test-rp-backchannel-rpinitlogout-wrong-alg: a good ES256 signature, while RS256 is pinned.
        WrongAlg => Refused,
        /// oidcc-client-test-rp-backchannel-rpinitlogout-wrong-aud.
        WrongAud => Refused,
        /// oidcc-client-test-rp-backchannel-rpinitlogout-wrong-event.
        WrongEvent => Refused,
        /// oidcc-client-test-rp-backchannel-rpinitlogout-wrong-iss.
        WrongIss => Refused,
        /// BCL-01.
        MissingIss => Refused,
        /// BCL-01.
        MissingAud => Refused,
        /// BCL-01.
        MissingIat => Refused,
        /// BCL-01.
        MissingJti => Refused,
        /// BCL-01: neither `sub` nor `sid`.
        MissingSubject => Refused,
        /// BCL-01: two minutes ago.
        Expired => Refused,
        /// BCL-01: not required.
        MissingExp => Fine,
        /// BCL-03: ten minutes old.
        IatOld => Refused,
        /// One bit of the signature flipped.
        InvalidSig => Refused,
        /// By a key outside the set.
        Outsider => Refused,
        /// `iss` twice.
        DuplicateMembers => Refused,
    }
}

impl Draft<'_> {
    /// The logout token with this fault.
    pub(super) fn with_logout(mut self, fault: LogoutFault) -> String {
        match fault {
            LogoutFault::TypMissing => {
                self.header.shift_remove("typ");
                self.finish()
            }
            LogoutFault::TypJwt => self.with_header("typ", "JWT"),
            LogoutFault::TypAccess => self.with_header("typ", "at+jwt"),
            LogoutFault::UnknownClaim => self.with_claim("unheard-of", json!({"a": [1]})),
            LogoutFault::AlgNone => self.unsigned("none", false),
            LogoutFault::NoEvent => self.without_claim("events"),
            LogoutFault::WithNonce => self.with_claim("nonce", mark("nonce-")),
            LogoutFault::WrongAlg => {
                let key = self.ec;
                self.signed_by(key)
            }
            LogoutFault::WrongAud => self.with_claim("aud", "another-client"),
            LogoutFault::WrongEvent => self.with_claim("events", json!({"http://schemas.example/event/other": {}})),
            LogoutFault::WrongIss => self.with_claim("iss", "https://other.example"),
            LogoutFault::MissingIss => self.without_claim("iss"),
            LogoutFault::MissingAud => self.without_claim("aud"),
            LogoutFault::MissingIat => self.without_claim("iat"),
            LogoutFault::MissingJti => self.without_claim("jti"),
            LogoutFault::MissingSubject => {
                self.claims.shift_remove("sub");
                self.without_claim("sid")
            }
            LogoutFault::Expired => {
                let at = self.now - 120;
                self.with_claim("exp", at)
            }
            LogoutFault::MissingExp => self.without_claim("exp"),
            LogoutFault::IatOld => {
                let at = self.now - 600;
                self.with_claim("iat", at)
            }
            LogoutFault::InvalidSig => flip_signature(&self.finish()),
            LogoutFault::Outsider => {
                let mut key = self.outsider.clone();
                key.kid.clone_from(&self.key.kid);
                self.signed_by(&key)
            }
            LogoutFault::DuplicateMembers => self.with(Fault::DuplicateMembers),
        }
    }
}
