// Provider, application and gateway, introduced to each other.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { startApp } from './app.mjs';
import { startGateway } from './gateway.mjs';
import { startProvider } from './provider.mjs';
import { freePort } from './servers.mjs';
import { until } from './wait.mjs';

// With characters that HTTP Basic and forms must encode (RFC 6749 section 2.3.1).
const CLIENT_SECRET = 'a secret: 100% +long/enough=for&HMAC';

/**
 * Starts all three, and ends them with the test `t`. `begin` starts another provider than the npm package. `backchannel`:
 * the provider tells the gateway of logouts. `providerUp: false`: the provider is down at first. `ofClient`: client
 * metadata (RFC 7591) besides; `ofProvider` and `ofGateway`: what `begin` and `startGateway` take besides.
 */
export async function openWorld(t, {
  begin = startProvider, clientAuth = 'client_secret_basic', backchannel = false, providerUp = true, ofClient, ofProvider, ofGateway,
} = {}) {
  const port = await freePort();
  const origin = `http://localhost:${port}`;
  const client = { ...registration(origin, clientAuth), ...(backchannel && backchannelOf(origin)), ...ofClient };
  const provider = await begin(client, ofProvider);
  t.after(() => provider.stop());
  if (!providerUp) await provider.goDown();
  const app = await startApp(provider.introspect);
  t.after(() => app.stop());
  const gateway = await startGateway({ port, issuer: provider.issuer, upstream: app.origin, client, ...ofGateway });
  t.after(() => gateway.stop([...app.tokens(), ...provider.secrets?.() ?? [], CLIENT_SECRET]));
  return { provider, app, gateway, client, clientSecret: CLIENT_SECRET };
}

/** What the provider is told about the gateway (RFC 7591). */
function registration(origin, clientAuth) {
  return {
    client_id: `outer-${randomBytes(4).toString('hex')}`,
    client_secret: clientAuth === 'none' ? undefined : CLIENT_SECRET,
    token_endpoint_auth_method: clientAuth,
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    redirect_uris: [`${origin}/auth/callback`],
    post_logout_redirect_uris: [`${origin}/auth/logout/return`],
  };
}

/** OpenID Connect Back-Channel Logout 1.0, section 2.2. */
function backchannelOf(origin) {
  return { backchannel_logout_uri: `${origin}/auth/logout/backchannel`, backchannel_logout_session_required: true };
}

/**
 * Waits until the access token has ended, by the gateway's own clock; `session` asks the session endpoint. Its times are
 * whole seconds, rounded down: in the second of the end it may live yet.
 */
export function accessTokenEnded(session) {
  return until('the access token has ended', async () => {
    const { now, access_token_expires_at: end } = await session();
    return now > end;
  });
}

/**
 * Runs `burst`, requests at once with an ended access token, and asserts that they made one refresh; on a slow machine
 * where they outlive the new token, one for each.
 */
export async function oneRefresh(provider, burst, message) {
  const [before, began] = [provider.grants('refresh_token'), Date.now()];
  await burst();
  const refreshes = provider.grants('refresh_token') - before;
  const outlived = Math.floor((Date.now() - began) / 1000 / (provider.accessTokenSeconds - 1));
  assert.ok(refreshes >= 1 && refreshes <= 1 + outlived, `${message}: ${refreshes} refreshes`);
}
