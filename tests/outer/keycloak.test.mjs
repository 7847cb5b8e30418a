// The afternoon with Keycloak, whose refresh tokens rotate and end the user's session when one comes twice.
import { after, before, describe } from 'node:test';
import { browserJourney } from './browser-journey.mjs';
import { journeys } from './journeys.mjs';
import { keycloakAtHand, PASSWORD, startKeycloak } from './keycloak.mjs';
import { openWorld } from './world.mjs';

const { found, skip } = await keycloakAtHand();

describe('Keycloak', { skip }, () => {
  let keycloak;
  before(async () => { keycloak = await startKeycloak(found); });
  after(() => keycloak?.stop());
  const open = (t, { ofGateway, ...options } = {}) => openWorld(t, {
    begin: keycloak.openRealm, ofGateway: { preset: 'keycloak', ...ofGateway }, ...options,
  });
  const answers = { username: 'alice', password: PASSWORD };

  browserJourney('a browser logs in, works, follows a link from elsewhere, and logs out', {
    open,
    signIn: async (page) => {
      await page.fill('#username', answers.username);
      await page.fill('#password', answers.password);
      await page.click('#kc-login');
    },
    loginForm: '#kc-login',
  });

  journeys({ open, answers, clientAuths: ['client_secret_basic', 'client_secret_post', 'none'], timeout: 120_000 });
});
