//! Tokens as providers make them: claims like theirs, ids and signatures random, the same in every run.

use base64_simd::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// A source of bytes that look random (xorshift64*).
#[derive(Debug)]
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        std::iter::repeat_with(|| {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
        })
        .take(len)
        .collect()
    }

    pub(crate) fn text(&mut self, bytes: usize) -> String {
        URL_SAFE_NO_PAD.encode_to_string(self.bytes(bytes))
    }

    pub(crate) fn uuid(&mut self) -> String {
        let hex: String = self.bytes(16).iter().map(|byte| format!("{byte:02x}")).collect();
        let mut uuid = hex;
        for at in [20, 16, 12, 8] {
            uuid.insert(at, '-');
        }
        uuid
    }

    pub(crate) fn jwt(&mut self, header: &Value, payload: &Value, signature: usize) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode_to_string(value.to_string());
        format!("{}.{}.{}", part(header), part(payload), self.text(signature))
    }
}

/// Keycloak's access token: about 1.4 kB with no roles of the application's own.
pub(crate) fn keycloak_access(noise: &mut Noise, roles: usize) -> String {
    let header = json!({"alg": "RS256", "typ": "JWT", "kid": noise.text(32)});
    let names = ["viewer", "editor", "approver", "auditor", "manager"];
    let roles: Vec<String> = (0..roles)
        .map(|n| format!("{}-{}", names.get(n % 5).unwrap_or(&"x"), ["billing", "orders"].get(n % 2).unwrap_or(&"y")))
        .collect();
    let payload = json!({
        "exp": 1_800_003_600, "iat": 1_800_000_000, "auth_time": 1_799_999_990, "jti": noise.uuid(),
        "iss": "https://login.example.com/realms/production", "aud": ["account", "orders-api"], "sub": noise.uuid(),
        "typ": "Bearer", "azp": "spa-gateway", "sid": noise.uuid(), "acr": "1",
        "allowed-origins": ["https://app.example.com"],
        "realm_access": {"roles": ["default-roles-production", "offline_access", "uma_authorization"]},
        "resource_access": {"account": {"roles": ["manage-account", "manage-account-links", "view-profile"]}, "orders-api": {"roles": roles}},
        "scope": "openid email profile offline_access", "email_verified": true, "name": "Zoë Müller",
        "preferred_username": "zoe.mueller", "given_name": "Zoë", "family_name": "Müller", "email": "zoe.mueller@example.com"
    });
    noise.jwt(&header, &payload, 256)
}

/// A refresh token that is a JWT of about 1.3 kB.
pub(crate) fn jwt_refresh(noise: &mut Noise) -> String {
    let header = json!({"alg": "RS256", "typ": "JWT", "kid": noise.text(32)});
    let payload = json!({
        "exp": 1_800_036_000, "iat": 1_800_000_000, "jti": noise.uuid(), "iss": "https://login.example.com/realms/production",
        "aud": "https://login.example.com/realms/production", "sub": noise.uuid(), "typ": "Refresh", "azp": "spa-gateway",
        "sid": noise.uuid(), "scope": "openid email profile offline_access roles web-origins acr basic",
        "prm": {"session_state": noise.uuid(), "grant": noise.uuid(), "client_notes": {"ip": "203.0.113.77", "ua": noise.text(120)}}
    });
    noise.jwt(&header, &payload, 256)
}

/// An ID token of about 1.2 kB.
pub(crate) fn id_token(noise: &mut Noise) -> String {
    let header = json!({"alg": "RS256", "typ": "JWT", "kid": noise.text(32)});
    let payload = json!({
        "exp": 1_800_003_600, "iat": 1_800_000_000, "auth_time": 1_799_999_990, "jti": noise.uuid(),
        "iss": "https://login.example.com/realms/production", "aud": "spa-gateway", "sub": noise.uuid(), "typ": "ID",
        "azp": "spa-gateway", "nonce": noise.text(32), "sid": noise.uuid(), "at_hash": noise.text(16), "acr": "1",
        "email_verified": true, "name": "Zoë Müller", "preferred_username": "zoe.mueller", "given_name": "Zoë",
        "family_name": "Müller", "email": "zoe.mueller@example.com"
    });
    noise.jwt(&header, &payload, 256)
}

/// An Entra v2 access token with so many group ids; 200 make 12 kB.
pub(crate) fn entra_access(noise: &mut Noise, groups: usize) -> String {
    let header = json!({"typ": "JWT", "alg": "RS256", "kid": noise.text(20)});
    let tenant = noise.uuid();
    let groups: Vec<String> = (0..groups).map(|_| noise.uuid()).collect();
    let payload = json!({
        "aud": noise.uuid(), "iss": format!("https://login.microsoftonline.com/{tenant}/v2.0"), "iat": 1_800_000_000,
        "nbf": 1_800_000_000, "exp": 1_800_004_700, "aio": noise.text(120), "azp": noise.uuid(), "azpacr": "1",
        "groups": groups, "name": "Zoë Müller", "oid": noise.uuid(), "preferred_username": "zoe.mueller@example.com",
        "rh": noise.text(40), "roles": ["Orders.Read", "Orders.Write"], "scp": "access_as_user", "sid": noise.uuid(),
        "sub": noise.text(32), "tid": tenant, "uti": noise.text(16), "ver": "2.0", "xms_ftd": noise.text(90)
    });
    noise.jwt(&header, &payload, 256)
}

/// An Entra refresh token: opaque, 1.1 kB, two dots in front.
pub(crate) fn entra_refresh(noise: &mut Noise) -> String {
    format!("1.{}.{}", noise.text(60), noise.text(770))
}
