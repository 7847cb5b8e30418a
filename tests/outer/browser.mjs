// Chromium without a window, and what the tests ask of a page.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { chromium } from 'playwright-core';

const PLACES = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];
const QUIET = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync'];

/** A browser with a fresh profile; ends with the test `t`. */
export async function openBrowser(t) {
  const executablePath = process.env.CHROMIUM ?? PLACES.find(existsSync);
  assert.ok(executablePath, 'no Chromium: install it, or set CHROMIUM to its path');
  const browser = await chromium.launch({ executablePath, headless: true, args: QUIET, timeout: 30_000 });
  t.after(() => browser.close());
  return browser;
}

/** A page with a cookie jar of its own. A script error on it fails the test `t`. */
export async function openPage(t, browser, options = {}) {
  const context = await browser.newContext(options);
  context.setDefaultTimeout(15_000);
  const page = await context.newPage();
  const errors = [];
  page.on('pageerror', (error) => errors.push(error.message));
  t.after(() => assert.deepEqual(errors, [], 'no script error on any page'));
  return page;
}

/** Ten fetches at once by the page's script: their status codes. Each has a query of its own: a browser fetches one URL once at a time. */
export function tenAtOnce(page, url) {
  return page.evaluate((target) => {
    const once = () => fetch(`${target}?${crypto.randomUUID()}`).then(({ status }) => status);
    return Promise.all(Array.from({ length: 10 }, once));
  }, url);
}

/** What the session endpoint tells the page's script. */
export function session(page) {
  return page.evaluate(() => fetch('/auth/session').then((answer) => answer.json()));
}

/** Everything that a script on this page could steal. */
export function withinReachOfScripts(page) {
  return page.evaluate(async () => ({
    cookie: document.cookie,
    localStorage: { ...localStorage },
    sessionStorage: { ...sessionStorage },
    databases: (await indexedDB.databases()).map(({ name }) => name),
    caches: await caches.keys(),
  }));
}

export const OUT_OF_REACH = { cookie: '', localStorage: {}, sessionStorage: {}, databases: [], caches: [] };

/** A picture for people, where SCREENSHOTS names a folder. */
export async function picture(page, name) {
  const folder = process.env.SCREENSHOTS;
  if (!folder) return;
  await mkdir(folder, { recursive: true });
  await page.screenshot({ path: path.join(folder, `${name}.png`), fullPage: true });
}
