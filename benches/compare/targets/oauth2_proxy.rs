//! oauth2-proxy, with sessions in cookies or in Redis.

use super::{World, directory, find, local};
use crate::process::Launch;
use crate::support::gateway::free_port;
use crate::support::redis::Redis;
use crate::support::text::{b64u, random};

pub(super) fn launch(world: &World, name: &str, redis: Option<&Redis>) -> Result<Launch, String> {
    let program = find("oauth2-proxy")?;
    let (addr, dir) = (local(free_port()), directory());
    let redirect = format!("http://localhost:{}/oauth2/callback", addr.port());
    world.allow_redirect(&redirect);
    let mut args = vec![
        format!("--http-address={addr}"),
        "--provider=oidc".to_owned(),
        format!("--oidc-issuer-url={}", world.provider.issuer),
        format!("--client-id={}", world.provider.client_id()),
        format!("--client-secret={}", world.provider.client_secret()),
        format!("--redirect-url={redirect}"),
        format!("--upstream=http://{}/", world.app),
        format!("--cookie-secret={}", b64u(random(32))),
        format!("--scope={}", World::scopes().join(" ")),
        "--skip-auth-route=^/readyz$".to_owned(),
        "--request-logging=false".to_owned(),
    ];
    for flag in [
        "--cookie-secure=false",
        "--email-domain=*",
        "--skip-provider-button=true",
        "--code-challenge-method=S256",
        "--pass-access-token=true",
        "--insecure-oidc-allow-unverified-email=true",
        "--standard-logging=false",
    ] {
        args.push(flag.to_owned());
    }
    if world.short_lived {
        args.push("--cookie-refresh=3s".to_owned());
    }
    if let Some(redis) = redis {
        args.push("--session-store-type=redis".to_owned());
        args.push(format!("--redis-connection-url={}", redis.url()));
    }
    let env = vec![("GOMAXPROCS".to_owned(), "1".to_owned())];
    Ok(Launch { name: name.to_owned(), program, args, env, addr, probe: (addr, "/readyz"), dir })
}
