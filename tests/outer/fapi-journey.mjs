// FAPI 2.0 with whatever provider: pushed requests only, client assertions, DPoP with a nonce at the API.
import assert from 'node:assert/strict';
import { createHash, createPublicKey, generateKeyPairSync, verify } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { startGateway } from './gateway.mjs';
import { close, freePort, listen } from './servers.mjs';
import { Visitor } from './visitor.mjs';

const API_NONCE = 'nonce-of-the-api';

const part = (token, index) => JSON.parse(Buffer.from(token.split('.')[index], 'base64url').toString());
const sha256 = (text) => createHash('sha256').update(text).digest('base64url');

/** An API that takes tokens only with a proof, and proofs only with its nonce. */
async function startApi(findToken) {
  const wrong = [];
  let calls = 0;
  const server = await listen(async (request, response) => {
    calls += 1;
    const refuse = (challenge, headers = {}) => {
      response.writeHead(401, { 'www-authenticate': `DPoP ${challenge}`, 'dpop-nonce': API_NONCE, ...headers });
      response.end();
    };
    const token = request.headers.authorization?.match(/^DPoP (\S+)$/)?.[1];
    const proof = request.headers.dpop;
    const found = token && proof && await findToken(token);
    if (!found) return refuse('error="invalid_token"');
    const [header, claims] = [part(proof, 0), part(proof, 1)];
    const { crv, kty, x, y } = header.jwk;
    const signed = proof.slice(0, proof.lastIndexOf('.'));
    const key = { key: createPublicKey({ key: header.jwk, format: 'jwk' }), dsaEncoding: 'ieee-p1363' };
    const url = new URL(request.url, `http://${request.headers.host}`);
    const holds = {
      typ: header.typ === 'dpop+jwt',
      signature: verify('sha256', signed, key, Buffer.from(proof.split('.')[2], 'base64url')),
      key: sha256(JSON.stringify({ crv, kty, x, y })) === found.jkt,
      htm: claims.htm === request.method,
      htu: claims.htu === url.origin + url.pathname,
      ath: claims.ath === sha256(token),
      iat: Math.abs(claims.iat - Date.now() / 1000) < 30,
    };
    const failed = Object.keys(holds).filter((name) => !holds[name]);
    if (failed.length > 0) {
      wrong.push(failed.join());
      return refuse('error="invalid_dpop_proof"');
    }
    if (claims.nonce !== API_NONCE) return refuse('error="use_dpop_nonce"');
    response.writeHead(200, { 'content-type': 'application/json' });
    response.end(JSON.stringify({ account: found.accountId }));
  });
  return { origin: `http://127.0.0.1:${server.address().port}`, wrong, calls: () => calls, stop: () => close(server) };
}

/**
 * Declares the test `name`. `begin(client)` starts a provider as `startProvider` does; `answers` is what Alice fills into
 * its forms. FAPI2-01 to FAPI2-07, RFC9449-01, -02, -04, BFF-29.
 */
export function fapiJourney(name, { begin, preset, answers, timeout = 60_000 }) {
  test(name, { timeout }, async (t) => {
    const port = await freePort();
    const origin = `http://localhost:${port}`;
    const key = await makeKey(t);
    const client = {
      client_id: 'fapi',
      token_endpoint_auth_method: 'private_key_jwt',
      token_endpoint_auth_signing_alg: 'ES256',
      id_token_signed_response_alg: 'ES256',
      dpop_bound_access_tokens: true,
      require_pushed_authorization_requests: true,
      jwks: { keys: [key.jwk] },
      grant_types: ['authorization_code', 'refresh_token'],
      response_types: ['code'],
      redirect_uris: [`${origin}/auth/callback`],
      post_logout_redirect_uris: [`${origin}/auth/logout/return`],
    };
    const provider = await begin(client);
    t.after(() => provider.stop());
    const api = await startApi(provider.find);
    t.after(() => api.stop());
    const gateway = await startGateway({
      port,
      issuer: provider.issuer,
      upstream: api.origin,
      client,
      preset,
      provider: `profile = "fapi2"\nprivate_key_file = "${key.file}"\nprivate_key_id = "${key.jwk.kid}"\nid_token_alg = "ES256"`,
    });
    t.after(() => gateway.stop([]));

    const alice = new Visitor(gateway.origin, answers);
    await alice.login('/api/me');
    const session = await alice.session();
    assert.equal(session.authenticated, true, JSON.stringify(gateway.events('login_refused')));
    assert.equal(session.claims.name, 'Alice Example');

    const called = await alice.fetch('/api/me?q=1');
    assert.equal(called.status, 200);
    assert.deepEqual(called.json(), { account: 'alice' });
    for (const header of ['dpop-nonce', 'www-authenticate']) assert.equal(called.headers[header], undefined);

    const refreshed = await alice.fetch('/auth/refresh', 'POST');
    assert.equal(refreshed.status, 200, refreshed.body);
    const before = api.calls();
    assert.equal((await alice.fetch('/api/me')).status, 200, 'the new token is bound to the same key');
    assert.equal(api.calls(), before + 1, 'the nonce is known by now');
    assert.deepEqual(api.wrong, []);

    const left = await alice.fetch('/auth/logout', 'POST');
    assert.equal(left.status, 200);
    assert.deepEqual(await alice.session(), { authenticated: false });
  });
}

/** The gateway's key for its assertions, as a file and as the provider knows it. */
async function makeKey(t) {
  const folder = await mkdtemp(path.join(tmpdir(), 'sidegate-fapi-'));
  t.after(() => rm(folder, { recursive: true }));
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const file = path.join(folder, 'client-key.pem');
  await writeFile(file, privateKey.export({ format: 'pem', type: 'pkcs8' }), { mode: 0o600 });
  return { file, jwk: { ...publicKey.export({ format: 'jwk' }), kid: 'outer-key', alg: 'ES256', use: 'sig' } };
}
