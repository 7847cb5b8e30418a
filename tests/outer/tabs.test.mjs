// Five tabs of a real browser, ten expiries, and a provider that ends everything when a refresh token comes twice
// (RFC 9700 section 4.14.2). Nobody sees a login page.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { openBrowser, openPage, session, tenAtOnce } from './browser.mjs';
import { withKit } from './kit.mjs';
import { accessTokenEnded, openWorld } from './world.mjs';

const TABS = 5;
const EXPIRIES = 10;

// At once: most of the time they wait for a token to end.
describe('five tabs live through ten expiries', { concurrency: true }, () => {
  // One process knows of all its requests; nothing is asked of the app.
  fiveTabs('one process', {}, tenAtOnce);

  // Several know nothing of each other; the kit makes the browser refresh once. What it let go has to be sent before
  // the new token is due, though the browser sends six at a time: tokens of a longer life, for slow machines.
  fiveTabs(
    'three processes without Redis, one refresh for all tabs by the kit',
    { ofGateway: { replicas: 3 }, ofProvider: { accessTokenSeconds: 8 } },
    tenAtOnceByTheKit,
  );
});

function fiveTabs(name, options, call) {
  test(name, { timeout: 240_000 }, async (t) => {
    const { provider, app, gateway } = await openWorld(t, options);
    const browser = await openBrowser(t);
    const first = await openPage(t, browser);
    await first.goto(gateway.origin);
    await first.click('#login');
    await first.click('button[value=alice]');
    await first.waitForURL(`${gateway.origin}/account/`);
    const tabs = [first];
    while (tabs.length < TABS) tabs.push(await first.context().newPage());
    for (const tab of tabs) await tab.goto(gateway.origin);
    const logins = provider.authorizations();

    for (let round = 1; round <= EXPIRIES; round += 1) {
      await accessTokenEnded(() => session(first));
      const before = provider.grants('refresh_token');
      const statuses = await Promise.all(tabs.map((tab) => call(tab, '/api/me')));
      assert.deepEqual(statuses.flat(), Array(10 * TABS).fill(200), `round ${round}`);
      assert.ok(provider.grants('refresh_token') > before, `round ${round}: the token was over`);
      assert.equal(provider.refusals(), 0, `round ${round}: each refresh token came once`);
    }
    assert.equal(provider.authorizations(), logins, 'nobody was sent to the provider');
    for (const tab of tabs) assert.equal((await session(tab)).authenticated, true);
    assert.deepEqual(app.trespasses, []);
  });
}

function tenAtOnceByTheKit(page, url) {
  return withKit(page, (kit, target) => {
    const once = () => kit.fetch(`${target}?${crypto.randomUUID()}`).then(({ status }) => status);
    return Promise.all(Array.from({ length: 10 }, once));
  }, url);
}
