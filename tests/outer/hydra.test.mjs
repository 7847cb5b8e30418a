// The afternoon with Ory Hydra, whose refresh tokens rotate; each refresh ends the access token before.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { browserJourney } from './browser-journey.mjs';
import { hydraAtHand, startHydra } from './hydra.mjs';
import { administeredJourneys, journeys } from './journeys.mjs';
import { openWorld } from './world.mjs';

const timeout = 120_000;
const { found, skip } = await hydraAtHand();

describe('Ory Hydra', { skip }, () => {
  let hydra;
  before(async () => { hydra = await startHydra(found); });
  after(() => hydra?.stop());
  const open = (t, { ofGateway, ...options } = {}) => openWorld(t, {
    begin: hydra.openClient, ofGateway: { preset: 'hydra', ...ofGateway }, ...options,
  });

  browserJourney('a browser logs in, works, follows a link from elsewhere, and logs out', {
    open,
    signIn: (page) => page.click('button[value=alice]'),
    loginForm: 'button[value=alice]',
  });

  journeys({ open, timeout, clientAuths: ['client_secret_basic', 'client_secret_post', 'none'] });

  administeredJourneys({ open, timeout });

  test('`check --online` says what to change at the provider', { timeout }, async (t) => {
    const { gateway } = await open(t);
    const { code, output } = await gateway.check();
    assert.equal(code, 0, output);
    assert.match(output, /^The configuration works with this provider/m);
    assert.match(output, /^warning: refresh\.reuse: "family"/m, 'several replicas would end the login');
    assert.match(output, /^note: .*let it take a spent one again/m, 'rotation_grace_period');
  });
});
