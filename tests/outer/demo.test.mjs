// `sidegate demo`, as somebody sees it who tries the project for the first time.
import assert from 'node:assert/strict';
import { tmpdir } from 'node:os';
import { test } from 'node:test';
import { start } from './binary.mjs';
import { openBrowser, openPage, OUT_OF_REACH, picture, withinReachOfScripts } from './browser.mjs';
import { freePort } from './servers.mjs';

const PHONE = { viewport: { width: 375, height: 812 }, isMobile: true, hasTouch: true };

test('the demo shows what sidegate does', { timeout: 120_000 }, async (t) => {
  const port = await freePort();
  const demo = start(['demo', '--port', String(port)], tmpdir());
  t.after(() => demo.stop());
  await demo.ready(`http://localhost:${port}/`);
  const url = demo.output().match(new RegExp(`http://[\\w.-]+:${port}`))?.[0];
  assert.ok(url, `it prints where to look:\n${demo.output()}`);
  assert.match(demo.output(), /alice[^]*bob/i, 'and who may log in');
  const browser = await openBrowser(t);

  await t.test('Alice logs in and calls the API', async () => {
    const page = await openPage(t, browser);
    await page.goto(url);
    await page.waitForSelector('#login:visible');
    await picture(page, 'demo-welcome');
    await page.click('#login');
    await picture(page, 'demo-provider');
    await page.click('button[name=user][value=alice]');
    await page.waitForSelector('#who:has-text("Alice Example")');
    await page.click('#burst');
    await page.waitForSelector('#results li.ok >> nth=9');
    assert.equal(await page.locator('#results li').count(), 10);
    assert.equal(await page.textContent('#failed'), '0');
    assert.deepEqual(await withinReachOfScripts(page), OUT_OF_REACH);
    await picture(page, 'demo-signed-in');

    // By itself, when the token has ended: ten calls, one refresh.
    await page.waitForSelector('#burst-says:has-text("10 of 10 answered. The provider was asked for 1 refresh.")', { timeout: 40_000 });
    assert.equal(await page.textContent('#failed'), '0');
    await picture(page, 'demo-refreshed');

    await page.click('#logout');
    await page.waitForSelector('#welcome:visible');
    await page.click('#call-anonymous');
    await page.waitForSelector('#anonymous:has-text("401 login_required")');
  });

  await t.test('the keyboard is enough', async () => {
    const page = await openPage(t, browser);
    await page.goto(url);
    await page.waitForSelector('#login:visible');
    await tabTo(page, '#login');
    await page.keyboard.press('Enter');
    await page.waitForSelector('button[name=user]');
    await tabTo(page, 'button[value=alice]');
    await page.keyboard.press('Enter');
    await page.waitForSelector('#who:has-text("Alice Example")');
    await tabTo(page, '#burst');
    await page.keyboard.press('Enter');
    await page.waitForSelector('#results li.ok >> nth=9');
  });

  await t.test('it fits a phone', async () => {
    const page = await openPage(t, browser, PHONE);
    await page.goto(url);
    await page.waitForSelector('#login:visible');
    assert.ok(await fits(page), 'signed out');
    await page.tap('#login');
    await page.waitForSelector('button[value=bob]');
    assert.ok(await fits(page), 'at the provider');
    await page.tap('button[value=bob]');
    await page.waitForSelector('#who:has-text("Bob Example")');
    await page.tap('#burst');
    await page.waitForSelector('#results li.ok >> nth=9');
    assert.ok(await fits(page), 'signed in');
    await picture(page, 'demo-phone');
  });
});

/** Presses Tab until the element has the focus. */
async function tabTo(page, selector) {
  for (let presses = 0; presses < 15; presses += 1) {
    await page.keyboard.press('Tab');
    if (await page.locator(selector).evaluate((element) => element === document.activeElement)) return;
  }
  assert.fail(`${selector} cannot be reached with the Tab key`);
}

/** No horizontal scrolling. */
function fits(page) {
  return page.evaluate((width) => document.documentElement.scrollWidth <= width, PHONE.viewport.width);
}
