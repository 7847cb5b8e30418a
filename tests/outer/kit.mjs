// The SPA kit on a page of the test's application.

/** The built kit, as the repository holds it. */
export const KIT = new URL('../../src/demo/page/client.js', import.meta.url);

/**
 * Runs `run(kit, argument)` on the page. The page's one kit is made the first time; what its listener was told last is
 * `globalThis.told` there.
 */
export function withKit(page, run, argument = null) {
  return page.evaluate(`(async () => {
    if (!globalThis.kit) {
      globalThis.kit = (await import('/client.js')).createClient();
      globalThis.kit.subscribe((session) => { globalThis.told = session; });
    }
    return (${run})(globalThis.kit, ${JSON.stringify(argument)});
  })()`);
}

/** Waits until the page's listener was told a session for which `holds(told, argument)`; returns it. */
export async function told(page, holds, argument = null) {
  await withKit(page, () => {});
  const found = await page.waitForFunction(`globalThis.told && (${holds})(globalThis.told, ${JSON.stringify(argument)}) && globalThis.told`);
  return found.jsonValue();
}
