// `sidegate run` with a configuration of its own in a temporary directory.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { close, freePort, startDistributor } from './servers.mjs';
import { ask, start } from './binary.mjs';

// The npm package gives a refresh token only where the user was asked for consent (OpenID Connect Core 11).
const OIDC_PROVIDER = `
scopes = ["openid", "profile", "email", "offline_access"]
authorize_params = { prompt = "consent" }
userinfo = true
`;

/**
 * `client` is what the provider was told about us. With several replicas a distributor has the port. `preset` is that of
 * another provider than the npm package. `provider`, `session` and `route` are lines of configuration for the
 * tables of that name, `more` is for all others.
 */
export async function startGateway({
  port, issuer, upstream, client, replicas = 1, preset, provider = '', session = '', route = '', more = '',
}) {
  const folder = await mkdtemp(path.join(tmpdir(), 'sidegate-outer-'));
  const secret = (name, content) => writeFile(path.join(folder, name), content, { mode: 0o600 });
  const listeners = [];
  for (let number = 0; number < replicas; number += 1) {
    listeners.push({ listen: replicas === 1 ? port : await freePort(), admin: await freePort() });
  }
  const credentials = [`client_auth = "${client.token_endpoint_auth_method}"`];
  await secret('session-key', randomBytes(32).toString('base64url'));
  if (client.client_secret) {
    await secret('client-secret', client.client_secret);
    credentials.push(`client_secret_file = "${folder}/client-secret"`);
  }
  const configuration = ({ listen, admin }) => `
[server]
listen = "127.0.0.1:${listen}"
public_url = "http://localhost:${port}"
shutdown_delay = "0s"
${client.backchannel_logout_uri ? 'single_replica = true' : ''}

[logout]
backchannel = ${Boolean(client.backchannel_logout_uri)}

[admin]
listen = "127.0.0.1:${admin}"

[provider]
issuer = "${issuer}"
client_id = "${client.client_id}"
${credentials.join('\n')}
${preset ? `preset = "${preset}"` : OIDC_PROVIDER}
${provider}

[session]
key_files = ["${folder}/session-key"]
${session}

${more}

[[route]]
path = "/api/"
upstream = "${upstream}"
on_anonymous = "401"
${route}

[[route]]
path = "/account/"
upstream = "${upstream}"
${route}

[[route]]
path = "/"
upstream = "${upstream}"
access = "public"
${route}
`;

  const launch = () => Promise.all(listeners.map(async (at, number) => {
    const file = `sidegate-${number}.toml`;
    await writeFile(path.join(folder, file), configuration(at));
    const started = start(['run', '-c', file], folder);
    await started.ready(`http://127.0.0.1:${at.admin}/readyz`);
    return started;
  }));
  let processes = await launch().catch(async (error) => {
    await rm(folder, { recursive: true });
    throw error;
  });
  const distributor = replicas > 1 && await startDistributor(port, listeners.map(({ listen }) => listen));
  const log = () => processes.flatMap(({ stdout }) => stdout.map((line) => JSON.parse(line)));

  return {
    origin: `http://localhost:${port}`,
    /** Log lines of this event. */
    events: (name) => log().filter(({ event }) => event === name),
    /** What `sidegate check --online` says of the configuration: its exit code and its output. */
    check: () => ask(['check', '--online', '-c', 'sidegate-0.toml'], folder),
    /** A restart with another client secret; the session key stays. */
    restartWithClientSecret: async (content) => {
      await Promise.all(processes.map((process) => process.stop()));
      await secret('client-secret', content);
      processes = await launch();
    },
    /** Ends it gracefully; everything it said on stdout was JSON, and none of it holds a secret. */
    stop: async (secrets) => {
      try {
        await Promise.all(processes.map((process) => process.stop()));
        if (distributor) await close(distributor);
        log();
        const output = processes.map((process) => process.output()).join('\n');
        for (const value of secrets) assert.ok(!output.includes(value), 'a secret stands in the log');
      } finally {
        await rm(folder, { recursive: true });
      }
    },
  };
}
