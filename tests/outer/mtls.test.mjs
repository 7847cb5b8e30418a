// FAPI 2.0 with a certificate instead of a secret, and tokens bound to it (RFC 8705), at a certified provider and at an
// API that looks at both.
import assert from 'node:assert/strict';
import { createHash, generateKeyPairSync } from 'node:crypto';
import https from 'node:https';
import { once } from 'node:events';
import { test } from 'node:test';
import { makeCertificates } from './certificates.mjs';
import { startGateway } from './gateway.mjs';
import { startProvider } from './provider.mjs';
import { close, freePort } from './servers.mjs';
import { Visitor } from './visitor.mjs';

const SUBJECT = 'CN=sidegate-outer';

/** An https server on loopback that asks for a certificate of the authority; ends with the test `t`. */
async function listenWithTls(t, { authority, server: { cert, key } }, handler) {
  const options = { cert, key, ca: authority.cert, requestCert: true, rejectUnauthorized: false };
  const server = https.createServer(options, handler).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => close(server));
  return `https://127.0.0.1:${server.address().port}`;
}

const shown = (socket) => (socket.authorized ? socket.getPeerX509Certificate() : undefined);
const thumbprint = (certificate) => createHash('sha256').update(certificate.raw).digest('base64url');

test('log in, call, refresh and log out by a certificate alone', { timeout: 60_000 }, async (t) => {
  const { files, pem } = await makeCertificates(t, `/${SUBJECT}`);
  const port = await freePort();
  const origin = `http://localhost:${port}`;
  const client = {
    client_id: 'mtls',
    token_endpoint_auth_method: 'tls_client_auth',
    tls_client_auth_subject_dn: SUBJECT,
    tls_client_certificate_bound_access_tokens: true,
    id_token_signed_response_alg: 'ES256',
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    redirect_uris: [`${origin}/auth/callback`],
    post_logout_redirect_uris: [`${origin}/auth/logout/return`],
  };

  // Browsers see the provider by http, the gateway by the aliases, where it shows its certificate.
  let provider;
  const atAliases = [];
  const alias = await listenWithTls(t, pem, (request, response) => {
    atAliases.push(request.url);
    provider.handle(request, response);
  });
  const { privateKey: signing } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  provider = await startProvider(client, {
    jwks: { keys: [{ ...signing.export({ format: 'jwk' }), alg: 'ES256', use: 'sig', kid: 'op-ec' }] },
    enabledJWA: { idTokenSigningAlgValues: ['ES256'] },
    clientAuthMethods: ['tls_client_auth'],
    discovery: {
      mtls_endpoint_aliases: {
        token_endpoint: `${alias}/token`,
        userinfo_endpoint: `${alias}/me`,
        revocation_endpoint: `${alias}/token/revocation`,
        pushed_authorization_request_endpoint: `${alias}/request`,
      },
    },
    features: {
      fapi: { enabled: true, profile: '2.0' },
      pushedAuthorizationRequests: { enabled: true, requirePushedAuthorizationRequests: true },
      mTLS: {
        enabled: true,
        tlsClientAuth: true,
        certificateBoundAccessTokens: true,
        getCertificate: (ctx) => shown(ctx.socket),
        certificateAuthorized: (ctx) => ctx.socket.authorized,
        certificateSubjectMatches: (ctx, _property, expected) => shown(ctx.socket)?.subject === expected,
      },
    },
  });
  t.after(() => provider.stop());

  const api = await listenWithTls(t, pem, async (request, response) => {
    const certificate = shown(request.socket);
    const found = await provider.find(request.headers.authorization?.match(/^Bearer (\S+)$/)?.[1]);
    const holds = certificate && found?.['x5t#S256'] === thumbprint(certificate);
    response.writeHead(holds ? 200 : 401, { 'content-type': 'application/json' });
    response.end(JSON.stringify({ account: found?.accountId }));
  });
  const { authority, client: { cert, key } } = files;
  const gateway = await startGateway({
    port,
    issuer: provider.issuer,
    upstream: api,
    client,
    provider: `profile = "fapi2"\nid_token_alg = "ES256"\nca_file = "${authority.cert}"\ntls_cert_file = "${cert}"\ntls_key_file = "${key}"`,
    route: `upstream_tls = { ca_file = "${authority.cert}", cert_file = "${cert}", key_file = "${key}" }`,
  });
  t.after(() => gateway.stop([]));

  const alice = new Visitor(gateway.origin);
  await alice.login('/api/me');
  const { authenticated, claims } = await alice.session();
  assert.equal(authenticated, true, JSON.stringify(gateway.events('login_refused')));
  assert.equal(claims.name, 'Alice Example', 'userinfo takes the bound token too');
  assert.deepEqual((await alice.fetch('/api/me')).json(), { account: 'alice' });

  const refreshed = await alice.fetch('/auth/refresh', 'POST');
  assert.equal(refreshed.status, 200, refreshed.body);
  assert.equal((await alice.fetch('/api/me')).status, 200, 'the new token is bound to the same certificate');

  assert.equal((await alice.fetch('/auth/logout', 'POST')).status, 200);
  assert.equal((await alice.fetch('/api/me')).status, 401);
  assert.deepEqual([...new Set(atAliases)], ['/request', '/token', '/me', '/token/revocation']);
});
