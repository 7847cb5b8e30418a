//! Envoy, plain and with its OAuth2 filter.

use super::{World, directory, find, local, write};
use crate::process::Launch;
use crate::support::gateway::free_port;
use crate::support::provider::switches::Endpoint;
use crate::support::text::{b64u, random};

const TYPES: &str = "type.googleapis.com/envoy.extensions";

pub(super) fn launch(world: &World, name: &str, oauth2: bool) -> Result<Launch, String> {
    let program = find("envoy")?;
    let (addr, dir) = (local(free_port()), directory());
    let filter = if oauth2 { filter(world, addr.port(), &dir) } else { String::new() };
    let provider = world.provider.issuer.rsplit(':').next().unwrap_or_default();
    let cluster = |name: &str, port: &str| {
        format!(
            "  - name: {name}\n    type: STATIC\n    connect_timeout: 1s\n    load_assignment:\n      cluster_name: {name}\n      \
             endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: \
             {port}}}}}}}}}]}}]\n    circuit_breakers: {{thresholds: [{{max_connections: 100000, max_pending_requests: \
             100000, max_requests: 100000}}]}}\n"
        )
    };
    let text = format!(
        r#"
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": {TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: app
          route_config:
            virtual_hosts:
            - {{name: app, domains: ["*"], routes: [{{match: {{prefix: "/"}}, route: {{cluster: app}}}}]}}
          http_filters:
{filter}
          - name: envoy.filters.http.router
            typed_config: {{"@type": {TYPES}.filters.http.router.v3.Router}}
  clusters:
{app}{provider}"#,
        port = addr.port(),
        app = cluster("app", &world.app.port().to_string()),
        provider = cluster("provider", provider),
    );
    let file = write(&dir, "envoy.yaml", &text);
    // Secrets are only read for a node with a name.
    let node = ["--service-node", "bench", "--service-cluster", "bench"];
    let args = ["-c", &file, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warn"];
    let (name, args) = (name.to_owned(), args.into_iter().chain(node).map(str::to_owned).collect());
    Ok(Launch { name, program, args, env: Vec::new(), addr, probe: (addr, "/readyz"), dir })
}

fn filter(world: &World, port: u16, dir: &tempfile::TempDir) -> String {
    let secret = |name: &str, value: &str| {
        let kind = format!("{TYPES}.transport_sockets.tls.v3.Secret");
        let text = format!(
            "resources:\n- \"@type\": {kind}\n  name: {name}\n  generic_secret: {{secret: {{inline_string: {value:?}}}}}\n"
        );
        write(dir, &format!("{name}.yaml"), &text)
    };
    let redirect = format!("http://localhost:{port}/callback");
    world.allow_redirect(&redirect);
    format!(
        r#"
          - name: envoy.filters.http.oauth2
            typed_config:
              "@type": {TYPES}.filters.http.oauth2.v3.OAuth2
              config:
                token_endpoint: {{cluster: provider, uri: {token:?}, timeout: 10s}}
                authorization_endpoint: {authorize:?}
                redirect_uri: {redirect:?}
                redirect_path_matcher: {{path: {{exact: /callback}}}}
                signout_path: {{path: {{exact: /signout}}}}
                pass_through_matcher: [{{name: ":path", string_match: {{exact: /readyz}}}}]
                forward_bearer_token: true
                use_refresh_token: true
                auth_type: BASIC_AUTH
                auth_scopes: {scopes:?}
                credentials:
                  client_id: {id:?}
                  token_secret: {{name: token, sds_config: {{path_config_source: {{path: {token_file:?}}}}}}}
                  hmac_secret: {{name: hmac, sds_config: {{path_config_source: {{path: {hmac_file:?}}}}}}}
"#,
        token = world.provider.url(Endpoint::Token),
        authorize = world.provider.url(Endpoint::Authorize),
        scopes = World::scopes(),
        id = world.provider.client_id(),
        token_file = secret("token", &world.provider.client_secret()),
        hmac_file = secret("hmac", &b64u(random(32))),
    )
}
