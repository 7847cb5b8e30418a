// The afternoon of journeys.mjs: the real binary and a certified provider.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { journeys } from './journeys.mjs';
import { Visitor } from './visitor.mjs';
import { until } from './wait.mjs';
import { openWorld } from './world.mjs';

journeys({ open: openWorld, clientAuths: ['client_secret_basic', 'client_secret_post', 'none'] });

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
