// The afternoon with Keycloak, whose refresh tokens rotate and end the user's session when one comes twice.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { browserJourney } from './browser-journey.mjs';
import { fapiJourney } from './fapi-journey.mjs';
import { endings, journeys } from './journeys.mjs';
import { keycloakAtHand, PASSWORD, startKeycloak } from './keycloak.mjs';
import { Visitor } from './visitor.mjs';
import { accessTokenEnded, openWorld } from './world.mjs';

// One server for all, and perhaps a slow machine.
const timeout = 300_000;
const answers = { username: 'alice', password: PASSWORD };
const { found, skip } = await keycloakAtHand();

describe('Keycloak', { skip }, () => {
  let keycloak;
  before(async () => { keycloak = await startKeycloak(found); });
  after(() => keycloak?.stop(), { timeout });
  const open = (t, { ofGateway, ...options } = {}) => openWorld(t, {
    begin: keycloak.openRealm, ofGateway: { preset: 'keycloak', ...ofGateway }, ...options,
  });

  browserJourney('a browser logs in, works, follows a link from elsewhere, and logs out', {
    open,
    signIn: async (page) => {
      await page.fill('#username', answers.username);
      await page.fill('#password', answers.password);
      await page.click('#kc-login');
    },
    loginForm: '#kc-login',
  });

  journeys({ open, answers, timeout, clientAuths: ['client_secret_basic', 'client_secret_post', 'none'] });

  fapiJourney('log in, call, refresh and log out under FAPI 2.0', {
    begin: (client) => keycloak.openRealm(client, FAPI2), preset: 'keycloak', answers, timeout,
  });

  endings({ open, answers, timeout });

  test('an administrator ends the session there, and the next refresh tells', { timeout }, async (t) => {
    const { provider, gateway } = await open(t);
    const alice = new Visitor(gateway.origin, answers);
    await alice.login();
    await provider.logOutUser();
    await accessTokenEnded(() => alice.session());
    const refused = await alice.fetch('/api/me');
    assert.equal(refused.status, 401);
    assert.equal(refused.json().code, 'login_required');
    assert.deepEqual(await alice.session(), { authenticated: false });
    assert.equal((await alice.login()).url, `${gateway.origin}/account/`, 'and she can log in again');
  });

  test('logging out ends the session there, without any question', { timeout }, async (t) => {
    const { provider, gateway } = await open(t);
    const alice = new Visitor(gateway.origin, answers);
    await alice.login();
    assert.equal(await provider.sessions(), 1);
    const { location } = (await alice.fetch('/auth/logout', 'POST')).json();
    await alice.navigate(location);
    assert.equal(await provider.sessions(), 0);
  });

  test('PAR is used, as it is announced', { timeout }, async (t) => {
    const { provider, gateway } = await open(t);
    await new Visitor(gateway.origin, answers).login();
    assert.deepEqual(provider.endpoint('ext/par/request').map(({ status }) => status), [201]);
  });

  test('`check --online` finds nothing wrong', { timeout }, async (t) => {
    const { gateway } = await open(t);
    const { code, output } = await gateway.check();
    assert.equal(code, 0, output);
    assert.match(output, /the provider offers all that it asks for/);
  });
});

// What Keycloak's own profile of FAPI 2.0 with DPoP checks at each request, for clients with DPoP. It would check
// too that redirect URIs are https, which loopback's are not.
const FAPI2 = {
  clientProfiles: {
    profiles: [{
      name: 'fapi-2-on-loopback',
      executors: [
        { executor: 'confidential-client', configuration: {} },
        { executor: 'secure-client-authenticator', configuration: { 'allowed-client-authenticators': ['client-jwt'] } },
        { executor: 'secure-signature-algorithm', configuration: {} },
        { executor: 'secure-signature-algorithm-signed-jwt', configuration: {} },
        { executor: 'reject-implicit-grant', configuration: {} },
        { executor: 'pkce-enforcer', configuration: {} },
        { executor: 'secure-client-authentication-assertion', configuration: {} },
        { executor: 'secure-par-content', configuration: {} },
        { executor: 'dpop-bind-enforcer', configuration: { 'enforce-authorization-code-binding-to-dpop': 'true' } },
      ],
    }],
  },
  clientPolicies: {
    policies: [{
      name: 'FAPI 2.0',
      enabled: true,
      conditions: [{ condition: 'client-attributes', configuration: { attributes: JSON.stringify([{ key: 'dpop.bound.access.tokens', value: 'true' }]) } }],
      profiles: ['fapi-2-on-loopback'],
    }],
  },
};
