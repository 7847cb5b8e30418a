// Ory Hydra, built from its Go module. It has no users: who they are and what they agree to is asked by an application,
// the small one below.
import { randomBytes } from 'node:crypto';
import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { atHand, cached, run } from './cache.mjs';
import { startProcess, startServer } from './process.mjs';
import { ACCESS_TOKEN_SECONDS } from './provider.mjs';
import { close, freePort, listen } from './servers.mjs';
import { startWitness } from './witness.mjs';

const VERSION = '2.3.0'; // as in hydra/go.mod
const MODULE = fileURLToPath(new URL('hydra', import.meta.url));
const PACKAGE = 'github.com/ory/hydra/v2';
const SQLITE = 'sqlite,sqlite_omit_load_extension';
const STARTS_WITHIN = 60_000;

const ACCOUNTS = { alice: { name: 'Alice Example', preferred_username: 'alice', email: 'alice@example.test' } };

const program = (home) => path.join(home, 'hydra');
const freshDatabase = (home) => path.join(home, 'fresh.sqlite');
const dsn = (file) => `sqlite://${file}?_fk=true`;
// It reports to its makers otherwise.
const DISCREET = { SQA_OPT_OUT: 'true' };

/** Its folder in the cache: `{ found }`, or why it cannot be had: `{ skip }`. */
export const hydraAtHand = () => atHand(() => cached(`hydra-${VERSION}`, async (folder) => {
  const how = { cwd: MODULE, env: { CGO_ENABLED: '1' }, minutes: 20 };
  // Brings the sources.
  await run('go', ['list', '-deps', '-tags', SQLITE, PACKAGE], { ...how, downloads: true });
  await run('go', ['build', '-tags', SQLITE, '-trimpath', '-o', program(folder), PACKAGE], how);
  await run(program(folder), ['migrate', 'sql', 'up', '--yes', dsn(freshDatabase(folder))], { env: DISCREET });
}));

/** Starts it from its folder `home`. */
export async function startHydra(home) {
  const folder = await mkdtemp(path.join(tmpdir(), 'sidegate-hydra-'));
  const database = path.join(folder, 'db.sqlite');
  await cp(freshDatabase(home), database);
  const [port, adminPort] = [await freePort(), await freePort()];
  const administer = administrator(`http://127.0.0.1:${adminPort}/admin`);
  const witness = await startWitness(port);
  const application = await startApplication(administer);
  const file = path.join(folder, 'hydra.json');
  await writeFile(file, JSON.stringify({
    dsn: dsn(database),
    log: { level: 'error' },
    serve: { public: { host: '127.0.0.1', port }, admin: { host: '127.0.0.1', port: adminPort } },
    urls: {
      self: { issuer: witness.origin, public: witness.origin },
      login: `${application.origin}/login`,
      consent: `${application.origin}/consent`,
      logout: `${application.origin}/logout`,
    },
    ttl: { access_token: `${ACCESS_TOKEN_SECONDS}s` },
    oauth2: { pkce: { enforced: true } },
    secrets: { system: [randomBytes(24).toString('hex')] },
  }));
  const begin = async () => {
    const started = startProcess(program(home), ['serve', 'all', '--dev', '--config', file], { cwd: folder, env: DISCREET });
    await started.ready(`http://127.0.0.1:${port}/health/ready`, STARTS_WITHIN);
    await started.ready(`http://127.0.0.1:${port}/.well-known/jwks.json`, STARTS_WITHIN);
    return started;
  };
  const clear = async () => {
    await Promise.all([witness.stop(), application.stop()]);
    await rm(folder, { recursive: true });
  };
  const server = await startServer(begin).catch(async (error) => {
    await clear();
    throw error;
  });

  return {
    /** One more client, given as client metadata (RFC 7591). What it gives has the methods of `startProvider`. */
    openClient: async (client) => {
      await server.up();
      await administer('POST', '/clients', { ...client, scope: 'openid offline_access profile email' });
      // What arrived before is other clients'.
      const earlier = witness.count();
      const endpoint = (at) => witness.requests(at, earlier);
      const tokenRequests = (type) => endpoint('/oauth2/token').filter(({ form }) => form.grant_type === type);
      return {
        issuer: witness.origin,
        accessTokenSeconds: ACCESS_TOKEN_SECONDS,
        tokenRequests,
        revocations: () => endpoint('/oauth2/revoke'),
        authorizations: () => endpoint('/oauth2/auth').length,
        grants: (type) => tokenRequests(type).length,
        refusals: () => endpoint('/oauth2/token').filter(({ status }) => status >= 400).length,
        introspect: async (token = '') => (await administer('POST', '/oauth2/introspect', new URLSearchParams({ token }))).sub,
        /** An administrator ends the login session that was begun last. */
        logOutUser: () => administer('DELETE', `/oauth2/auth/sessions/login?sid=${application.lastSession()}`),
        /** Every refresh token that it gave away. */
        secrets: () => endpoint('/oauth2/token').map(({ answer }) => answer.refresh_token).filter(Boolean),
        goDown: server.down,
        comeBack: server.up,
        stop: async () => {},
      };
    },
    stop: async () => {
      await server.down();
      await clear();
    },
  };
}

/** The admin API below `base`: a function of method, resource and content that gives the answer. */
function administrator(base) {
  return async (method, resource, content) => {
    const form = content instanceof URLSearchParams;
    const headers = form ? {} : { 'content-type': 'application/json' };
    const body = form ? content : content && JSON.stringify(content);
    const answer = await fetch(`${base}${resource}`, { method, headers, body });
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${method} ${resource}: ${answer.status} ${text}`);
    return text && JSON.parse(text);
  };
}

/** Asks who it is, agrees to everything, and lets everybody go who wants to. */
async function startApplication(administer) {
  let lastSession;
  const accept = async (kind, challenge, content = {}) => {
    const resource = `/oauth2/auth/requests/${kind}/accept?${kind}_challenge=${encodeURIComponent(challenge)}`;
    return (await administer('PUT', resource, content)).redirect_to;
  };
  const asked = (kind, challenge) => administer('GET', `/oauth2/auth/requests/${kind}?${kind}_challenge=${encodeURIComponent(challenge)}`);

  const steps = {
    login: async (challenge, request) => {
      const { skip, subject, session_id: session } = await asked('login', challenge);
      const account = skip ? subject : await chosenAccount(request);
      if (!account) return undefined;
      lastSession = session;
      return accept('login', challenge, { subject: account, remember: true, remember_for: 3600 });
    },
    consent: async (challenge) => {
      const { subject, requested_scope: scopes, requested_access_token_audience: audience } = await asked('consent', challenge);
      const session = { id_token: ACCOUNTS[subject] };
      return accept('consent', challenge, { grant_scope: scopes, grant_access_token_audience: audience, session });
    },
    logout: (challenge) => accept('logout', challenge),
  };

  const server = await listen(async (request, response) => {
    const { pathname, searchParams } = new URL(request.url, 'http://application');
    const kind = pathname.slice(1);
    const challenge = searchParams.get(`${kind}_challenge`);
    try {
      const location = await steps[kind](challenge, request);
      if (location) return response.writeHead(303, { location }).end();
      const buttons = Object.entries(ACCOUNTS).map(([id, { name }]) => `<button name="account" value="${id}">${name}</button>`);
      response.writeHead(200, { 'content-type': 'text/html; charset=utf-8' });
      const form = `<form method="post" action="${request.url}">${buttons.join('')}</form>`;
      response.end(`<!doctype html><html lang="en"><title>Sign in</title>${form}</html>`);
    } catch (error) {
      response.writeHead(500).end(error.message);
    }
  });
  return {
    origin: `http://127.0.0.1:${server.address().port}`,
    lastSession: () => lastSession,
    stop: () => close(server),
  };
}

async function chosenAccount(request) {
  if (request.method !== 'POST') return undefined;
  return new URLSearchParams(Buffer.concat(await request.toArray()).toString()).get('account');
}
