// The afternoon of journeys.mjs: the real binary and a certified provider.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { endings, journeys } from './journeys.mjs';
import { Visitor } from './visitor.mjs';
import { until } from './wait.mjs';
import { openWorld } from './world.mjs';

journeys({ open: openWorld, clientAuths: ['client_secret_basic', 'client_secret_post', 'none'] });

const told = { backchannelLogout: { enabled: true } };
endings({ open: (t, options) => openWorld(t, { ofProvider: { accessTokenSeconds: 60, features: told }, ...options }) });

test('a provider that takes pushed requests only (RFC 9126)', { timeout: 60_000 }, async (t) => {
  const pushed = { pushedAuthorizationRequests: { enabled: true, requirePushedAuthorizationRequests: true } };
  const { gateway } = await openWorld(t, { ofProvider: { features: pushed } });
  const alice = new Visitor(gateway.origin);
  assert.equal((await alice.login()).url, `${gateway.origin}/account/`);
  assert.equal((await alice.fetch('/api/me')).status, 200);
});

test('a provider that is down at the start is found when it comes', { timeout: 60_000 }, async (t) => {
  const { provider, gateway } = await openWorld(t, { providerUp: false });
  const early = new Visitor(gateway.origin);
  const refused = await early.login();
  assert.equal(refused.status, 503);
  assert.ok(refused.headers['retry-after']);
  assert.deepEqual(early.jar, [], 'no attempt is begun that cannot go anywhere');

  await provider.comeBack();
  const alice = new Visitor(gateway.origin);
  await until('logins work', async () => (await alice.login()).url === `${gateway.origin}/account/`);
  assert.equal((await alice.fetch('/api/me')).status, 200);
});
