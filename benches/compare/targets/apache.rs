//! Apache as a reverse proxy, plain and with mod_auth_openidc.

use super::{World, directory, find, local, write};
use crate::process::Launch;
use crate::support::gateway::free_port;
use crate::support::text::{b64u, random};

/// Where Debian has its modules.
const MODULES: &str = "/usr/lib/apache2/modules";

/// Where mod_auth_openidc keeps them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sessions {
    Cookie,
    Shm,
}

pub(super) fn launch(world: &World, name: &str, sessions: Option<Sessions>) -> Result<Launch, String> {
    let program = find("apache2")?;
    if sessions.is_some() && !std::path::Path::new(MODULES).join("mod_auth_openidc.so").is_file() {
        return Err("mod_auth_openidc is not installed".to_owned());
    }
    let (addr, dir) = (local(free_port()), directory());
    let mut modules = vec!["mpm_event", "authn_core", "authz_core", "authz_user", "headers", "proxy", "proxy_http"];
    let session = sessions.map(|sessions| {
        modules.push("auth_openidc");
        protect(world, addr.port(), sessions)
    });
    let loads: String = modules.iter().map(|m| format!("LoadModule {m}_module {MODULES}/mod_{m}.so\n")).collect();
    // Without it children of root run as a user whom Apache refuses.
    let user = if rustix::process::geteuid().is_root() { "User www-data\nGroup www-data\n" } else { "" };
    let text = format!(
        "{loads}{user}\
         ServerRoot {root}\nDefaultRuntimeDir {root}\nPidFile {root}/pid\nServerName localhost\nListen {addr}\n\
         ErrorLog {root}/stderr\nLogLevel warn\nKeepAliveTimeout 3600\nMaxKeepAliveRequests 0\nListenBackLog 4096\n\
         StartServers 1\nServerLimit 1\nThreadLimit 64\nThreadsPerChild 64\nMinSpareThreads 1\nMaxSpareThreads 64\n\
         MaxRequestWorkers 64\nMaxConnectionsPerChild 0\nAsyncRequestWorkerFactor 1000\n\
         ProxyPass / http://{app}/ keepalive=on max=64 connectiontimeout=5 timeout=60\n{session}",
        root = dir.path().display(),
        app = world.app,
        session = session.unwrap_or_default(),
    );
    let file = write(&dir, "apache.conf", &text);
    let args = ["-f", &file, "-DFOREGROUND"].map(str::to_owned).into();
    Ok(Launch { name: name.to_owned(), program, args, env: Vec::new(), addr, probe: (addr, "/readyz"), dir })
}

fn protect(world: &World, port: u16, sessions: Sessions) -> String {
    let redirect = format!("http://localhost:{port}/api/callback");
    world.allow_redirect(&redirect);
    let store = match sessions {
        Sessions::Cookie => "OIDCSessionType client-cookie",
        // Entries large enough for our tokens.
        Sessions::Shm => "OIDCSessionType server-cache\nOIDCCacheType shm\nOIDCCacheShmEntrySizeMax 33280",
    };
    format!(
        "OIDCProviderMetadataURL {issuer}/.well-known/openid-configuration\nOIDCClientID {id}\nOIDCClientSecret {secret}\n\
         OIDCRedirectURI {redirect}\nOIDCCryptoPassphrase {passphrase}\nOIDCScope \"{scopes}\"\nOIDCPKCEMethod S256\n\
         OIDCRefreshAccessTokenBeforeExpiry 1\nOIDCPassClaimsAs environment\nOIDCSessionInactivityTimeout 3600\n{store}\n\
         <Location /api/>\nAuthType openid-connect\nRequire valid-user\n\
         RequestHeader set Authorization \"Bearer %{{OIDC_access_token}}e\"\nRequestHeader unset Cookie\n</Location>\n",
        issuer = world.provider.issuer,
        id = world.provider.client_id(),
        secret = world.provider.client_secret(),
        passphrase = b64u(random(32)),
        scopes = World::scopes().join(" "),
    )
}
