// A user's afternoon, seen at the level of HTTP, with whatever provider: what must be the same with each.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Visitor } from './visitor.mjs';
import { until } from './wait.mjs';
import { accessTokenEnded, oneRefresh } from './world.mjs';

/**
 * Declares the tests of the afternoon. `open(t, options)` opens a world as `openWorld` does, `clientAuths` are the ways of client
 * authentication to try, `answers` what Alice fills into the provider's forms.
 */
export function journeys({ open, clientAuths, answers, timeout = 60_000 }) {
  const visit = ({ gateway }) => new Visitor(gateway.origin, answers);

  // BFF-01, BFF-06 to BFF-09: every way of client authentication takes the whole journey.
  for (const clientAuth of clientAuths) {
    test(`log in, call the API, refresh, log out: ${clientAuth}`, { timeout }, async (t) => {
      const world = await open(t, { clientAuth });
      const { provider, app, gateway } = world;
      const alice = visit(world);

      assert.equal((await alice.fetch('/api/me')).status, 401);
      assert.deepEqual(await alice.session(), { authenticated: false });

      const began = Math.floor(Date.now() / 1000);
      const home = await alice.login('/account/?tab=keys');
      assert.equal(home.url, `${gateway.origin}/account/?tab=keys`, 'code, state and iss are gone from the address');
      assert.match(home.body, /<h1>Account<\/h1>/);
      assert.equal(provider.grants('authorization_code'), 1);

      const { authenticated, claims, now, access_token_expires_at: end } = await alice.session();
      assert.equal(authenticated, true);
      assert.deepEqual({ name: claims.name, email: claims.email }, { name: 'Alice Example', email: 'alice@example.test' });
      assert.ok(end >= began && end <= now + provider.accessTokenSeconds, `the token's end is known: ${end} at ${now}`);

      const called = await alice.fetch('/api/me');
      assert.equal(called.status, 200);
      assert.deepEqual(called.json(), { account: 'alice' });

      const refreshes = provider.grants('refresh_token');
      const refreshed = await alice.fetch('/auth/refresh', 'POST');
      assert.equal(refreshed.status, 200);
      // Not «no earlier than before»: a provider that counts in whole seconds may say one less within the same second.
      const renewed = refreshed.json().access_token_expires_at;
      const latest = Math.floor(Date.now() / 1000) + provider.accessTokenSeconds;
      assert.ok(renewed > end - 2 && renewed <= latest, `the new token's end is known: ${renewed} after ${end}`);
      assert.equal(provider.grants('refresh_token'), refreshes + 1);

      await accessTokenEnded(() => alice.session());
      assert.equal((await alice.fetch('/api/me')).status, 200, 'an ended token is refreshed on the way');
      assert.ok(app.tokens().length >= 2);

      const thief = alice.clone();
      const lastToken = app.tokens().at(-1);
      assert.equal(await provider.introspect(lastToken), 'alice');
      const left = await alice.fetch('/auth/logout', 'POST');
      assert.equal(left.status, 200);
      assert.equal(await provider.introspect(lastToken), undefined, 'the access token was revoked at the provider (RFC 7009)');
      const goodbye = await alice.navigate(left.json().location);
      assert.equal(goodbye.url, `${gateway.origin}/`, 'the provider sends the browser back home');
      assert.deepEqual(await alice.session(), { authenticated: false });

      assert.equal((await thief.fetch('/api/me')).status, 401, 'a copy of the old cookie is worth nothing');
      assert.equal((await thief.fetch('/auth/refresh', 'POST')).status, 401);
      assert.deepEqual(app.trespasses, []);
      assert.equal(provider.refusals(), 0, 'no token request was in vain');
      for (const event of ['login', 'logout']) assert.equal(gateway.events(event).length, 1, `one audit line: ${event}`);
    });
  }

  // BFF-05: only a navigation starts a login, and it comes back to where it wanted to go.
  test('a protected page leads through the login and back', { timeout }, async (t) => {
    const world = await open(t);
    const arrived = await visit(world).navigate('/account/deep/down?x=1&y=2');
    assert.equal(arrived.url, `${world.gateway.origin}/account/deep/down?x=1&y=2`);
    assert.ok(world.provider.authorizations() >= 1);
    assert.equal(world.provider.grants('authorization_code'), 1);
  });

  test('ten calls with an ended token ask for one refresh', { timeout }, async (t) => {
    const world = await open(t);
    const alice = visit(world);
    await alice.login();
    for (let round = 1; round <= 3; round += 1) {
      await accessTokenEnded(() => alice.session());
      await oneRefresh(world.provider, async () => {
        const ten = await Promise.all(Array.from({ length: 10 }, () => alice.fetch('/api/me')));
        assert.deepEqual(ten.map(({ status }) => status), Array(10).fill(200));
      }, `round ${round}`);
    }
    assert.equal(world.provider.refusals(), 0);
  });

  // RFC 6749 section 5.2, invalid_client: the operator's mistake is not the user's loss.
  test('a wrong client secret answers 502 and keeps the session', { timeout }, async (t) => {
    const world = await open(t);
    const { gateway, clientSecret } = world;
    const alice = visit(world);
    await alice.login();

    await gateway.restartWithClientSecret('not the one that the provider knows');
    await accessTokenEnded(() => alice.session());
    const refused = await alice.fetch('/api/me');
    assert.equal(refused.status, 502);
    assert.equal(refused.json().code, 'provider_refused');
    assert.equal((await alice.session()).authenticated, true);
    const unable = await visit(world).login();
    assert.equal(unable.status, 502);
    assert.match(unable.body, /provider_refused/);
    // The operator's log says whose mistake it is. With PAR the login does not even begin.
    for (const names of [['refresh'], ['login_refused', 'login_unavailable']]) {
      const { reason } = await until(`the log has ${names}`, () => names.flatMap(gateway.events).at(-1));
      assert.equal(reason, 'invalid_client');
    }

    await gateway.restartWithClientSecret(clientSecret);
    await until('calls are answered again', async () => (await alice.fetch('/api/me')).status === 200);
  });

  test('a provider that goes down answers 503, keeps the session, and heals', { timeout }, async (t) => {
    const world = await open(t);
    const { provider } = world;
    const alice = visit(world);
    await alice.login();

    await provider.goDown();
    await accessTokenEnded(() => alice.session());
    const refused = await alice.fetch('/api/me');
    assert.equal(refused.status, 503);
    assert.equal(refused.json().code, 'provider_unavailable');
    assert.ok(Number(refused.headers['retry-after']) >= 1);
    assert.equal((await alice.session()).authenticated, true);
    assert.equal((await alice.fetch('/')).status, 200, 'public routes go on');

    await provider.comeBack();
    await until('calls are answered again', async () => (await alice.fetch('/api/me')).status === 200);
  });
}

/** Declares the tests of how a session ends: there, by a thief, and here. The same arguments. */
export function endings({ open, answers, timeout = 60_000 }) {
  test('a session that ends there ends here (OpenID Connect Back-Channel Logout)', { timeout }, async (t) => {
    const { provider, gateway } = await open(t, { backchannel: true });
    const alice = new Visitor(gateway.origin, answers);
    await alice.login();
    assert.equal((await alice.session()).authenticated, true);
    await provider.logOutUser(alice);
    await until('the session has ended', async () => !(await alice.session()).authenticated);
    assert.equal((await alice.fetch('/api/me')).status, 401);
    assert.deepEqual(gateway.events('backchannel_logout').map(({ outcome }) => outcome), ['accepted']);
    assert.equal(provider.grants('refresh_token'), 0, 'nobody had to ask');
    assert.equal((await alice.login()).url, `${gateway.origin}/account/`, 'she can log in again');
  });

  test('no refresh token is sent twice; where a thief does it, the session is over for both', { timeout }, async (t) => {
    const { provider, gateway, client } = await open(t, { clientAuth: 'client_secret_post' });
    const alice = new Visitor(gateway.origin, answers);
    await alice.login();
    for (let round = 1; round <= 5; round += 1) {
      await Promise.all(Array.from({ length: 4 }, () => alice.fetch('/auth/refresh', 'POST')));
    }
    const spent = provider.tokenRequests('refresh_token').map(({ form }) => form.refresh_token);
    assert.ok(spent.length >= 5);
    assert.equal(new Set(spent).size, spent.length);
    assert.equal(provider.refusals(), 0);

    const stolen = await spend(provider.issuer, client, spent.at(-1));
    assert.deepEqual({ status: stolen.status, error: stolen.error }, { status: 400, error: 'invalid_grant' });
    assert.equal((await alice.fetch('/auth/refresh', 'POST')).status, 401);
    assert.deepEqual(await alice.session(), { authenticated: false });
    assert.equal((await alice.login()).url, `${gateway.origin}/account/`, 'she can log in again');
  });

  test('logging out ends both tokens at the provider (RFC 7009)', { timeout }, async (t) => {
    const { provider, gateway } = await open(t);
    const alice = new Visitor(gateway.origin, answers);
    await alice.login();
    await alice.fetch('/auth/logout', 'POST');
    const revoked = provider.revocations().map(({ form, status }) => [form.token_type_hint, status]);
    assert.deepEqual(new Map(revoked), new Map([['refresh_token', 200], ['access_token', 200]]));
  });
}

/** Spends a refresh token as the client itself would. */
async function spend(issuer, { client_id, client_secret }, refresh_token) {
  const { token_endpoint: endpoint } = await (await fetch(`${issuer}/.well-known/openid-configuration`)).json();
  const body = new URLSearchParams({ grant_type: 'refresh_token', client_id, client_secret, refresh_token });
  const answer = await fetch(endpoint, { method: 'POST', body });
  return { ...await answer.json(), status: answer.status };
}
