// The afternoon with Ory Hydra, whose refresh tokens rotate; each refresh ends the access token before.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { browserJourney } from './browser-journey.mjs';
import { hydraAtHand, startHydra } from './hydra.mjs';
import { endings, journeys } from './journeys.mjs';
import { Visitor } from './visitor.mjs';
import { openWorld } from './world.mjs';

// One server for all, and perhaps a slow machine.
const timeout = 180_000;
const { found, skip } = await hydraAtHand();

describe('Ory Hydra', { skip }, () => {
  let hydra;
  before(async () => { hydra = await startHydra(found); });
  after(() => hydra?.stop(), { timeout });
  const open = (t, { ofGateway, ...options } = {}) => openWorld(t, {
    begin: hydra.openClient, ofGateway: { preset: 'hydra', ...ofGateway }, ...options,
  });

  browserJourney('a browser logs in, works, follows a link from elsewhere, and logs out', {
    open,
    signIn: (page) => page.click('button[value=alice]'),
    loginForm: 'button[value=alice]',
  });

  journeys({ open, timeout, clientAuths: ['client_secret_basic', 'client_secret_post', 'none'] });

  endings({ open, timeout });

  test('a refresh ends the access token before, as the preset says', { timeout }, async (t) => {
    const { provider, app, gateway } = await open(t);
    const alice = new Visitor(gateway.origin);
    await alice.login();
    for (let round = 1; round <= 2; round += 1) {
      assert.equal((await alice.fetch('/api/me')).status, 200);
      assert.equal((await alice.fetch('/auth/refresh', 'POST')).status, 200);
    }
    assert.equal((await alice.fetch('/api/me')).status, 200);
    const accounts = await Promise.all(app.tokens().map(provider.introspect));
    assert.deepEqual(accounts, [undefined, undefined, 'alice']);
  });

  test('`check --online` says what to change at the provider', { timeout }, async (t) => {
    const { gateway } = await open(t);
    const { code, output } = await gateway.check();
    assert.equal(code, 0, output);
    assert.match(output, /^The configuration works with this provider/m);
    assert.match(output, /^warning: refresh\.reuse: "family"/m, 'several replicas would end the login');
    assert.match(output, /^note: .*let it take a spent one again/m, 'rotation_grace_period');
  });
});
