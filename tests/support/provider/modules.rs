//! The suite's client modules (checklist 2.1) as settings of the provider: one entry for each that applies to us.

use super::{Fault, Inner, IssParameter, LogoutReturn, Userinfo};

/// What a client that keeps the rules makes of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The login works.
    Login,
    /// The login is refused: no session.
    Refusal,
    /// The login works or is refused; nothing worse.
    Either,
    /// The login works, and the refresh after it ends the session.
    RefreshRefused,
    /// No login starts while the provider is so.
    NotReady,
    /// The module is about a flow, not about an answer: the test drives it.
    Flow,
}

/// One module of the suite.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Its name in the suite.
    pub name: &'static str,
    /// What must happen.
    pub expect: Expect,
    /// Sets the provider up for it.
    pub prepare: fn(&Inner),
    /// Whether the gateway must be configured with `provider.userinfo = true`.
    pub userinfo: bool,
}

const fn module(name: &'static str, expect: Expect, prepare: fn(&Inner)) -> Module {
    Module { name, expect, prepare, userinfo: false }
}

const fn with_userinfo(name: &'static str, expect: Expect, prepare: fn(&Inner)) -> Module {
    Module { name, expect, prepare, userinfo: true }
}

fn as_usual(_: &Inner) {}

/// Every module that applies to us.
pub const MODULES: &[Module] = &[
    module("oidcc-client-test", Expect::Login, as_usual),
    module("oidcc-client-test-nonce-invalid", Expect::Refusal, |p| p.set(|s| s.fault = Some(Fault::NonceInvalid))),
    module("oidcc-client-test-client-secret-basic", Expect::Login, |p| {
        p.set(|s| s.client_secret = "a:b%+ \u{e9}/".to_owned());
    }),
    with_userinfo("oidcc-client-test-scope-userinfo-claims", Expect::Login, as_usual),
    module("oidcc-client-test-kid-absent-single-jwks", Expect::Login, |p| {
        p.publish_odd_keys();
        p.set(|s| s.without_kid = true);
    }),
    module("oidcc-client-test-kid-absent-multiple-jwks", Expect::Either, |p| {
        p.publish_several_keys();
        p.set(|s| s.without_kid = true);
    }),
    module("oidcc-client-test-missing-iat", Expect::Refusal, |p| p.set(|s| s.fault = Some(Fault::MissingIat))),
    module("oidcc-client-test-missing-aud", Expect::Refusal, |p| p.set(|s| s.fault = Some(Fault::MissingAud))),
    module("oidcc-client-test-invalid-aud", Expect::Refusal, |p| p.set(|s| s.fault = Some(Fault::InvalidAud))),
    module("oidcc-client-test-idtoken-sig-none", Expect::Refusal, |p| p.set(|s| s.fault = Some(Fault::SigNone))),
    module("oidcc-client-test-idtoken-sig-rs256", Expect::Login, |p| p.set(|s| s.fault = Some(Fault::SigRs256))),
    module("oidcc-client-test-missing-sub", Expect::Refusal, |p| p.set(|s| s.fault = Some(Fault::MissingSub))),
    module("oidcc-client-test-invalid-sig-rs256", Expect::Refusal, |p| {
        p.set(|s| s.fault = Some(Fault::InvalidSigRs256));
    }),
    module("oidcc-client-test-invalid-sig-es256", Expect::Refusal, |p| {
        p.set(|s| s.fault = Some(Fault::InvalidSigEs256));
    }),
    module("oidcc-client-test-invalid-sig-hs256", Expect::Refusal, |p| {
        p.set(|s| s.fault = Some(Fault::InvalidSigHs256));
    }),
    module("oidcc-client-test-invalid-iss", Expect::Refusal, |p| p.set(|s| s.fault = Some(Fault::InvalidIss))),
    with_userinfo("oidcc-client-test-userinfo-invalid-sub", Expect::Refusal, |p| {
        p.set(|s| s.userinfo = Userinfo::WrongSub);
    }),
    with_userinfo("oidcc-client-test-userinfo-bearer-header", Expect::Login, as_usual),
    with_userinfo("oidcc-client-test-userinfo-signed", Expect::Login, |p| p.set(|s| s.userinfo = Userinfo::Signed)),
    module("oidcc-client-test-missing-athash", Expect::Login, |p| p.set(|s| s.fault = Some(Fault::MissingAthash))),
    module("oidcc-client-test-invalid-athash", Expect::Refusal, |p| p.set(|s| s.fault = Some(Fault::InvalidAthash))),
    module("oidcc-client-test-form-post-error", Expect::Flow, |p| {
        p.set(|s| s.authorization = super::Authorization::error("login_required"));
    }),
    with_userinfo("oidcc-client-test-aggregated-claims", Expect::Login, |p| {
        p.set(|s| s.userinfo = Userinfo::Aggregated);
    }),
    with_userinfo("oidcc-client-test-distributed-claims", Expect::Login, |p| {
        let url = p.url(super::Endpoint::Other);
        p.set(|s| s.userinfo = Userinfo::Distributed(url));
    }),
    module("oidcc-client-test-mtls-endpoint-aliases", Expect::Flow, as_usual),
    module("oidcc-client-test-discovery-openid-config", Expect::Login, as_usual),
    module("oidcc-client-test-discovery-jwks-uri-keys", Expect::Login, as_usual),
    module("oidcc-client-test-discovery-issuer-mismatch", Expect::NotReady, |p| {
        let other = format!("{}INVALID", p.issuer);
        p.set(|s| {
            s.document_issuer = Some(other);
            s.iss_parameter = IssParameter::Right;
        });
    }),
    module("oidcc-client-test-signing-key-rotation-just-before-signing", Expect::Login, |p| {
        p.set(|s| s.rotate_before_signing = true);
    }),
    module("oidcc-client-test-signing-key-rotation", Expect::Flow, as_usual),
    module("oidcc-client-test-refresh-token", Expect::Login, |p| {
        p.set(|s| {
            s.rotation = super::Rotation::Token;
            s.refresh_token_tail = "+&=%\"\\; !'()*,/:<>?@[]^`{|}~".to_owned();
        });
    }),
    module("oidcc-client-test-refresh-token-invalid-issuer", Expect::RefreshRefused, |p| {
        p.set(|s| s.refresh_fault = Some(Fault::InvalidIss));
    }),
    module("oidcc-client-test-refresh-token-invalid-sub", Expect::RefreshRefused, |p| {
        p.set(|s| s.refresh_fault = Some(Fault::SubOther));
    }),
    module("oidcc-client-test-3rd-party-init-login", Expect::Flow, as_usual),
    module("oidcc-client-test-rp-init-logout", Expect::Flow, as_usual),
    module("oidcc-client-test-rp-init-logout-other-state", Expect::Flow, |p| {
        p.set(|s| s.logout_return = LogoutReturn::OtherState);
    }),
    module("oidcc-client-test-rp-init-logout-no-state", Expect::Flow, |p| {
        p.set(|s| s.logout_return = LogoutReturn::NoState);
    }),
    module("oidcc-client-test-rp-backchannel-rpinitlogout", Expect::Flow, as_usual),
    module("oidcc-client-test-rp-backchannel-rpinitlogout-alg-none", Expect::Flow, as_usual),
    module("oidcc-client-test-rp-backchannel-rpinitlogout-no-event", Expect::Flow, as_usual),
    module("oidcc-client-test-rp-backchannel-rpinitlogout-with-nonce", Expect::Flow, as_usual),
    module("oidcc-client-test-rp-backchannel-rpinitlogout-wrong-alg", Expect::Flow, as_usual),
    module("oidcc-client-test-rp-backchannel-rpinitlogout-wrong-aud", Expect::Flow, as_usual),
    module("oidcc-client-test-rp-backchannel-rpinitlogout-wrong-event", Expect::Flow, as_usual),
    module("oidcc-client-test-rp-backchannel-rpinitlogout-wrong-iss", Expect::Flow, as_usual),
    module("oidcc-client-test-rp-frontchannel-rpinitlogout", Expect::Flow, as_usual),
    module("oidcc-client-test-rp-frontchannel-opinitlogout", Expect::Flow, as_usual),
];
