// The afternoon in a real browser, whose rules on cookies, sites and redirects nobody here wrote. The app is on
// `localhost`, the provider and a foreign site on `127.0.0.1`: cross-site, so that SameSite=Strict matters.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { startForeignSite } from './app.mjs';
import { openBrowser, openPage, OUT_OF_REACH, picture, session, tenAtOnce, withinReachOfScripts } from './browser.mjs';
import { accessTokenEnded, oneRefresh } from './world.mjs';

/**
 * Declares the test `name`. `open(t)` opens a world as `openWorld` does; `signIn(page)` is what Alice does at the
 * provider's login, where `loginForm` is seen; `paths` are those of the cookies that hold the session.
 */
export function browserJourney(name, { open, signIn, loginForm, paths = ['/'] }) {
  test(name, { timeout: 150_000 }, async (t) => {
    const { provider, app, gateway } = await open(t);
    const browser = await openBrowser(t);
    const page = await openPage(t, browser);
    const answers = recordAnswers(page, gateway.origin);

    await t.test('logs in', async () => {
      await page.goto(gateway.origin);
      await page.click('#login');
      await signIn(page);
      await page.waitForURL(`${gateway.origin}/account/`);
      assert.equal(await page.textContent('h1'), 'Account');
      assert.equal((await session(page)).claims.name, 'Alice Example');
      await picture(page, 'journey-account');
    });

    await t.test('has a session cookie that no script can read (BFF-13, BFF-14)', async () => {
      const cookies = await sessionCookies(page);
      assert.deepEqual(
        cookies.map(({ httpOnly, sameSite, path }) => ({ httpOnly, sameSite, path })),
        paths.map((path) => ({ httpOnly: true, sameSite: 'Strict', path })),
      );
      assert.deepEqual(await withinReachOfScripts(page), OUT_OF_REACH);
    });

    await t.test('lives through three refreshes, ten calls at once each time (BFF-09)', async () => {
      for (let round = 1; round <= 3; round += 1) {
        await accessTokenEnded(() => session(page));
        const burst = async () => assert.deepEqual(await tenAtOnce(page, '/api/me'), Array(10).fill(200), `round ${round}`);
        await oneRefresh(provider, burst, `round ${round}: the refresh token is spent once`);
      }
    });

    await t.test('follows a link from another site without a second login (COOKIE-05)', async () => {
      const target = `${gateway.origin}/account/settings?tab=keys`;
      const elsewhere = await startForeignSite(target);
      t.after(() => elsewhere.stop());
      const before = provider.authorizations();
      await page.goto(elsewhere.origin);
      await page.click('#link');
      await page.waitForURL(target);
      await page.waitForSelector('h1:text-is("Account")');
      assert.equal(provider.authorizations(), before, 'the provider was not asked again');
    });

    await t.test('got no token in any answer (BFF-03)', async () => {
      assert.deepEqual(await withinReachOfScripts(page), OUT_OF_REACH);
      const text = await answers();
      const tokens = app.tokens();
      assert.ok(tokens.length >= 4, 'the first token and three refreshed ones reached the app');
      assert.ok(text.includes('Alice Example'), 'answers were recorded');
      for (const token of tokens) assert.ok(!text.includes(token), 'an access token reached the browser');
      assert.deepEqual(app.trespasses, []);
    });

    await t.test('logs out, here and at the provider; the old cookie is refused', async () => {
      const old = await sessionCookies(page);
      await page.click('#logout');
      await page.waitForURL(`${gateway.origin}/`);
      assert.deepEqual(await session(page), { authenticated: false });
      assert.deepEqual(await sessionCookies(page), []);
      assert.equal(await provider.introspect(app.tokens().at(-1)), undefined);

      await page.context().addCookies(old);
      assert.equal(await page.evaluate(() => fetch('/api/me').then(({ status }) => status)), 401);

      await page.click('#login');
      await page.waitForSelector(loginForm);
    });
  });
}

/** Our cookies, those below a path too. */
async function sessionCookies(page) {
  const cookies = (await page.context().cookies()).filter(({ name }) => name.startsWith('sidegate'));
  return cookies.sort((a, b) => a.path.length - b.path.length);
}

/** Collects headers and bodies of all answers from `origin`; call the result to read them. */
function recordAnswers(page, origin) {
  const pending = [];
  page.on('response', (response) => {
    if (!response.url().startsWith(origin)) return;
    pending.push(Promise.all([
      response.url(),
      response.allHeaders().then((headers) => JSON.stringify(headers)),
      response.text().catch(() => ''), // a redirect has no body to read
    ]));
  });
  return async () => (await Promise.all(pending)).flat().join('\n');
}
