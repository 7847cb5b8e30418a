// The SPA kit in a real browser, before the real gateway and a certified provider. What it does for many tabs at once is
// in tabs.test.mjs.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { openBrowser, openPage, session } from './browser.mjs';
import { KIT, told, withKit } from './kit.mjs';
import { until } from './wait.mjs';
import { accessTokenEnded, openWorld } from './world.mjs';

const BUILT = new URL('../../client/dist/index.js', import.meta.url);
const LIFE = 120;

test('the demo has the kit as its source says', { timeout: 10_000, skip: !existsSync(BUILT) && 'not built: `make kit`' }, async () => {
  const [built, shipped] = await Promise.all([BUILT, KIT].map((file) => readFile(file, 'utf8')));
  assert.equal(shipped, built, 'src/demo/page/client.js is not the current build: `make kit`');
});

test('a page with the kit', { timeout: 150_000 }, async (t) => {
  const { app, gateway } = await openWorld(t, {
    ofProvider: { accessTokenSeconds: LIFE },
    ofGateway: { more: '[csrf]\nmode = "header"' },
  });
  const browser = await openBrowser(t);
  const page = await openPage(t, browser);
  const home = `${gateway.origin}/?tab=one`;
  const loginAskedFor = async () => {
    const request = await page.waitForRequest((found) => found.url().startsWith(`${gateway.origin}/auth/login?`));
    return Object.fromEntries(new URL(request.url()).searchParams);
  };

  await t.test('nobody is logged in, and a listener is told so', async () => {
    await page.goto(home);
    assert.deepEqual(await withKit(page, (kit) => kit.session()), { authenticated: false });
    await told(page, (session) => !session.authenticated);
  });

  await t.test('a 401 of the gateway starts a login that comes back to this page', async () => {
    await withKit(page, (kit) => void kit.fetch('/api/me'));
    await page.click('button[value=alice]');
    await page.waitForURL(`${home}#`);
    const account = await withKit(page, (kit) => kit.fetch('/api/me').then((answer) => answer.json()));
    assert.deepEqual(account, { account: 'alice' });
    await told(page, (session) => session.authenticated && session.claims.name === 'Alice Example');
  });

  await t.test('its requests have the header that csrf.mode = "header" asks for, a plain fetch has not', async () => {
    const status = (kit) => kit.fetch('/api/me', { method: 'POST', body: 'x' }).then((answer) => answer.status);
    assert.equal(await withKit(page, status), 200);
    assert.equal(await page.evaluate(() => fetch('/api/me', { method: 'POST', body: 'x' }).then((answer) => answer.status)), 403);
  });

  await t.test('an API may have a 401 of its own', async () => {
    const answer = await withKit(page, (kit) => kit.fetch('/api/refused').then((found) => found.json()));
    assert.deepEqual(answer, { error: 'insufficient' });
    assert.equal(page.url(), `${home}#`);
  });

  await t.test('a demand for a stronger login starts that login', async () => {
    const asked = loginAskedFor();
    // This provider has no such login, which the gateway notices; the old session stays.
    const refused = page.waitForResponse((answer) => answer.url().startsWith(`${gateway.origin}/auth/callback?`));
    await withKit(page, (kit) => void kit.fetch('/api/transfer'));
    assert.deepEqual(await asked, { acr_values: 'gold', return_to: '/?tab=one' });
    assert.equal((await refused).status(), 400);
  });

  await t.test('a refresh that another made is heard by every tab, by way of one', async () => {
    const other = await page.context().newPage();
    const tabs = [page, other];
    const streams = [];
    for (const tab of tabs) {
      tab.on('request', (request) => request.url().endsWith('/auth/events') && streams.push(request));
      await tab.goto(home);
      await told(tab, (session) => session.authenticated);
    }
    await until('there is a stream', () => streams.length);
    const session = await withKit(other, (kit) => kit.session());
    const before = session.access_token_expires_at;
    // In whole seconds, so that the next end differs; the provider may say one less than the token's life.
    await until('the next second but one', async () => (await withKit(other, (kit) => kit.session())).now + LIFE > before + 1);
    const answer = await page.evaluate(() => fetch('/auth/refresh', { method: 'POST', headers: { 'X-CSRF': '1' } }).then(({ status }) => status));
    assert.equal(answer, 200);
    for (const tab of tabs) await told(tab, (heard, old) => heard.access_token_expires_at > old, before);
    assert.equal(streams.length, 1, 'one stream for both');
    await other.close();
  });

  await t.test('a logout in one tab is seen by the other', async () => {
    const other = await page.context().newPage();
    await other.goto(home);
    for (const tab of [page, other]) await told(tab, (session) => session.authenticated);
    await withKit(page, (kit) => void kit.logout());
    await page.waitForURL(`${gateway.origin}/`);
    await told(other, (session) => !session.authenticated);
    assert.equal(other.url(), home, 'and that page stays where it is');
    await other.close();
  });

  await t.test('login() goes to the login, with the wishes given', async () => {
    const asked = loginAskedFor();
    await withKit(page, (kit) => kit.login('/account/', { login_hint: 'bob' }));
    assert.deepEqual(await asked, { login_hint: 'bob', return_to: '/account/' });
    await page.click('button[value=bob]');
    await page.waitForSelector('h1:text-is("Account")'); // by way of the hop page
  });

  await t.test('the plain example works', async () => {
    await page.goto(`${gateway.origin}/plain/index.html`);
    await page.waitForSelector('#who:text-is("Bob Example")');
    await page.waitForSelector('#orders li:text-is("Chalk")');
    await page.click('#logout');
    await page.waitForURL(`${gateway.origin}/`);
  });
  assert.deepEqual(app.trespasses, []);
});

test('a provider that is down delays a page with the kit once, and logs nobody out', { timeout: 90_000 }, async (t) => {
  const { provider, gateway } = await openWorld(t);
  const page = await openPage(t, await openBrowser(t));
  const statuses = (kit) => Promise.all(Array.from({ length: 10 }, () => kit.fetch(`/api/me?${crypto.randomUUID()}`).then(({ status }) => status)));
  await page.goto(gateway.origin);
  await page.click('#login');
  await page.click('button[value=alice]');
  await page.waitForSelector('h1:text-is("Account")');
  const tries = [];
  page.on('request', (request) => request.url().endsWith('/auth/refresh') && tries.push(request));

  await accessTokenEnded(() => session(page));
  await provider.goDown();
  assert.deepEqual(await withKit(page, statuses), Array(10).fill(503));
  assert.equal(tries.length, 1, 'the other nine did not wait for tries of their own');
  assert.equal(page.url(), `${gateway.origin}/account/`, 'no login');

  await provider.comeBack();
  await until('the provider is asked again', async () => (await withKit(page, statuses)).every((status) => status === 200));
  await told(page, (heard) => heard.authenticated);
});
