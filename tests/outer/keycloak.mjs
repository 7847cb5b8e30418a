// Keycloak, from Maven's repository, on a plain machine with Java: one process, a realm for each test.
import { randomBytes } from 'node:crypto';
import { cp, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { atHand, cached, run, Unavailable } from './cache.mjs';
import { startProcess, startServer } from './process.mjs';
import { freePort } from './servers.mjs';
import { startWitness } from './witness.mjs';

const VERSION = '26.7.3';
const NAME = `keycloak-${VERSION}`;
const OLDEST_JAVA = 17;
const UNPACK = 'org.apache.maven.plugins:maven-dependency-plugin:3.8.1:unpack';
const STARTS_WITHIN = 300_000;
// Longer than elsewhere: the API asks it ten times at once.
const ACCESS_TOKEN_SECONDS = 6;
// Fixed at its build; what may differ is told to each start.
const BUILT_FOR = ['--db=dev-file'];
// It runs for a minute: the quick compiler is enough.
const JAVA_OPTIONS = '-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xms128m -Xmx768m';

export const PASSWORD = 'wonderland';
const USER = { username: 'alice', firstName: 'Alice', lastName: 'Example', email: 'alice@example.test' };

/** Its folder in the cache: `{ found }`, or why it cannot be had: `{ skip }`. */
export const keycloakAtHand = () => atHand(async () => {
  const [, java] = (await run('java', ['-version'])).match(/version "(\d+)/) ?? [];
  if (!(Number(java) >= OLDEST_JAVA)) throw new Unavailable(`Keycloak needs Java ${OLDEST_JAVA}, here is ${java}`);
  return cached(NAME, async (folder) => {
    const artifact = `org.keycloak:keycloak-quarkus-dist:${VERSION}:zip`;
    const unpack = ['-q', '-B', UNPACK, `-Dartifact=${artifact}`, `-DoutputDirectory=${folder}`];
    await run('mvn', unpack, { cwd: folder, downloads: true });
    await run('bash', [launcher(folder), 'build', ...BUILT_FOR]);
    // The tables and the realm of its administrators: the slow part of a first start.
    const port = await freePort();
    const first = await launch(folder, freshDatabase(folder), port, loopback(port));
    await first.stop();
  });
});

const ADMINISTRATOR = { username: 'admin', password: 'only-on-loopback' };
const loopback = (port) => `http://127.0.0.1:${port}`;
const launcher = (home) => path.join(home, NAME, 'bin', 'kc.sh');
const freshDatabase = (home) => path.join(home, 'fresh');

/** One process on a loopback port, known as `origin`, with its data in the files `database`.*. */
async function launch(home, database, port, origin) {
  const started = startProcess('bash', [
    launcher(home), 'start', '--optimized', '--cache=local', '--http-enabled=true', '--http-host=127.0.0.1',
    `--http-port=${port}`, `--hostname=${origin}`, `--db-url=jdbc:h2:file:${database};NON_KEYWORDS=VALUE`,
  ], {
    env: {
      JAVA_OPTS: JAVA_OPTIONS,
      KC_BOOTSTRAP_ADMIN_USERNAME: ADMINISTRATOR.username,
      KC_BOOTSTRAP_ADMIN_PASSWORD: ADMINISTRATOR.password,
    },
  });
  await started.ready(`${loopback(port)}/realms/master`, STARTS_WITHIN);
  return started;
}

/** Starts it from its folder `home`. */
export async function startKeycloak(home) {
  const folder = await mkdtemp(path.join(tmpdir(), 'sidegate-keycloak-'));
  const database = path.join(folder, 'db');
  await cp(`${freshDatabase(home)}.mv.db`, `${database}.mv.db`);
  const port = await freePort();
  const direct = loopback(port);
  const witness = await startWitness(port);
  const begin = () => launch(home, database, port, witness.origin);
  const clear = async () => {
    await witness.stop();
    await rm(folder, { recursive: true });
  };
  const server = await startServer(begin).catch(async (error) => {
    await clear();
    throw error;
  });

  /** The admin REST API; what it answers. */
  const administer = async (method, resource, content) => {
    const form = new URLSearchParams({ grant_type: 'password', client_id: 'admin-cli', ...ADMINISTRATOR });
    const login = await fetch(`${direct}/realms/master/protocol/openid-connect/token`, { method: 'POST', body: form });
    const { access_token: token } = await login.json();
    const answer = await fetch(`${direct}/admin/realms${resource}`, {
      method,
      headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
      body: content && JSON.stringify(content),
    });
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${method} ${resource}: ${answer.status} ${text}`);
    return text && JSON.parse(text);
  };

  return {
    /**
     * A realm of its own with one user and one client, given as client metadata (RFC 7591); `settings` of the realm are
     * Keycloak's. What it gives has the methods of `startProvider`.
     */
    openRealm: async (client, { accessTokenSeconds = ACCESS_TOKEN_SECONDS, ...settings } = {}) => {
      const name = `outer-${randomBytes(4).toString('hex')}`;
      const api = { clientId: 'api', secret: randomBytes(16).toString('hex') };
      await server.up();
      await administer('POST', '', {
        realm: name,
        enabled: true,
        accessTokenLifespan: accessTokenSeconds,
        revokeRefreshToken: true,
        refreshTokenMaxReuse: 0,
        users: [{ ...USER, enabled: true, emailVerified: true, credentials: [{ type: 'password', value: PASSWORD }] }],
        clients: [
          { ...representation(client), protocolMappers: [audience(api.clientId)] },
          { ...api, standardFlowEnabled: false },
        ],
        ...settings,
      });
      return realm(name, api, accessTokenSeconds);
    },
    stop: async () => {
      await server.down();
      await clear();
    },
  };

  function realm(name, api, accessTokenSeconds) {
    const endpoint = (last) => witness.requests(`/realms/${name}/protocol/openid-connect/${last}`);
    const tokenRequests = (type) => endpoint('token').filter(({ form }) => form.grant_type === type);
    const introspect = async (token = '') => {
      const authorization = `Basic ${Buffer.from(`${api.clientId}:${api.secret}`).toString('base64')}`;
      const url = `${direct}/realms/${name}/protocol/openid-connect/token/introspect`;
      const answer = await fetch(url, { method: 'POST', headers: { authorization }, body: new URLSearchParams({ token }) });
      return answer.json();
    };
    const user = async () => {
      const [{ id }] = await administer('GET', `/${name}/users?username=${USER.username}`);
      return `/${name}/users/${id}`;
    };
    return {
      issuer: `${witness.origin}/realms/${name}`,
      accessTokenSeconds,
      /** Answered requests to the endpoint that Keycloak calls `auth`, `token`, `revoke`, `ext/par/request`, … */
      endpoint,
      tokenRequests,
      revocations: () => endpoint('revoke'),
      authorizations: () => endpoint('auth').length,
      grants: (type) => tokenRequests(type).length,
      refusals: () => endpoint('token').filter(({ status }) => status >= 400).length,
      introspect: async (token) => (await introspect(token)).username,
      find: async (token) => {
        const { username, cnf } = await introspect(token);
        return username && { accountId: username, jkt: cnf?.jkt };
      },
      /** How many sessions the user has there. */
      sessions: async () => (await administer('GET', `${await user()}/sessions`)).length,
      /** An administrator presses "log out all sessions" of the user. */
      logOutUser: async () => administer('POST', `${await user()}/logout`),
      goDown: server.down,
      comeBack: server.up,
      /** Every refresh token that it gave away. */
      secrets: () => endpoint('token').map(({ answer }) => answer.refresh_token).filter(Boolean),
      stop: async () => {},
    };
  }
}

/** Keycloak tells a client of tokens (RFC 7662) only if it is in their `aud`. */
function audience(clientId) {
  const config = { 'included.client.audience': clientId, 'access.token.claim': 'true', 'introspection.token.claim': 'true' };
  return { name: clientId, protocol: 'openid-connect', protocolMapper: 'oidc-audience-mapper', config };
}

/** Client metadata (RFC 7591) in the words of Keycloak's admin API. */
function representation(client) {
  const authenticators = { private_key_jwt: 'client-jwt' };
  return {
    clientId: client.client_id,
    secret: client.client_secret,
    publicClient: client.token_endpoint_auth_method === 'none',
    clientAuthenticatorType: authenticators[client.token_endpoint_auth_method] ?? 'client-secret',
    redirectUris: client.redirect_uris,
    standardFlowEnabled: true,
    directAccessGrantsEnabled: false,
    attributes: {
      'pkce.code.challenge.method': 'S256',
      'post.logout.redirect.uris': client.post_logout_redirect_uris.join('##'),
      'backchannel.logout.url': client.backchannel_logout_uri,
      'backchannel.logout.session.required': 'true',
      'require.pushed.authorization.requests': String(client.require_pushed_authorization_requests ?? false),
      'dpop.bound.access.tokens': String(client.dpop_bound_access_tokens ?? false),
      'token.endpoint.auth.signing.alg': client.token_endpoint_auth_signing_alg,
      'id.token.signed.response.alg': client.id_token_signed_response_alg,
      ...(client.jwks && { 'use.jwks.string': 'true', 'jwks.string': JSON.stringify(client.jwks) }),
    },
  };
}
