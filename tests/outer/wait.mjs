// Waiting for something to become true, with an end.
import { setTimeout as delay } from 'node:timers/promises';

/** The first truthy answer of `probe`, asked again and again; an error that names `what` after `within` ms. */
export async function until(what, probe, within = 45_000) {
  const end = Date.now() + within;
  for (;;) {
    const answer = await probe();
    if (answer) return answer;
    if (Date.now() > end) throw new Error(`waited ${within} ms, and still not: ${what}`);
    await delay(50);
  }
}
