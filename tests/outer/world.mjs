// Provider, application and gateway, introduced to each other.
import { generateKeyPairSync } from 'node:crypto';
import { startApp } from './app.mjs';
import { startGateway } from './gateway.mjs';
import { startProvider } from './provider.mjs';
import { freePort } from './servers.mjs';
import { until } from './wait.mjs';

// With characters that HTTP Basic and forms must encode (RFC 6749 section 2.3.1), and long enough for HS256.
const CLIENT_SECRET = 'a secret: 100% +long/enough=for&HMAC';

/**
 * Starts all three, and ends them with the test `t`. `backchannel`: the provider announces logouts (OpenID Connect
 * Back-Channel Logout). `providerUp: false`: the provider is down at first.
 */
export async function openWorld(t, { clientAuth = 'client_secret_basic', backchannel = false, providerUp = true } = {}) {
  const port = await freePort();
  const origin = `http://localhost:${port}`;
  const { client, privateKey } = registration(origin, clientAuth, backchannel);
  const provider = await startProvider(client);
  t.after(() => provider.stop());
  if (!providerUp) await provider.goDown();
  const app = await startApp(provider.introspect);
  t.after(() => app.stop());
  const gateway = await startGateway({ port, issuer: provider.issuer, upstream: app.origin, client, privateKey });
  t.after(() => gateway.stop([...app.tokens(), CLIENT_SECRET]));
  return { provider, app, gateway, clientSecret: CLIENT_SECRET };
}

/** What the provider is told about the gateway (RFC 7591), and the gateway's half of the key pair if there is one. */
function registration(origin, clientAuth, backchannel) {
  const client = {
    client_id: 'outer',
    token_endpoint_auth_method: clientAuth,
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    redirect_uris: [`${origin}/auth/callback`],
    post_logout_redirect_uris: [`${origin}/auth/logout/return`],
  };
  if (backchannel) {
    client.backchannel_logout_uri = `${origin}/auth/logout/backchannel`;
    client.backchannel_logout_session_required = true;
  }
  if (clientAuth.startsWith('client_secret')) client.client_secret = CLIENT_SECRET;
  if (clientAuth !== 'private_key_jwt') return { client };
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  client.jwks = { keys: [{ ...publicKey.export({ format: 'jwk' }), alg: 'ES256', use: 'sig' }] };
  return { client, privateKey: privateKey.export({ type: 'pkcs8', format: 'pem' }) };
}

/** Waits until the access token has ended, by the gateway's own clock; `session` asks the session endpoint. */
export function accessTokenEnded(session) {
  return until('the access token has ended', async () => {
    const { now, access_token_expires_at: end } = await session();
    return now >= end;
  });
}
