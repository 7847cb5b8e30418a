// The afternoon of browser-journey.mjs, with each way to keep a session.
import { describe } from 'node:test';
import { browserJourney } from './browser-journey.mjs';
import { startRedis } from './redis.mjs';
import { openWorld } from './world.mjs';

describe('a browser logs in, works, follows a link from elsewhere, and logs out', { concurrency: true }, () => {
  journey('one cookie', async () => ({}), ['/']);
  journey('two cookies', async () => ({ session: 'layout = "split"' }), ['/', '/auth/']);
  journey('a ticket', async (t) => ({ session: 'store = "redis"', more: await startRedis(t) }), ['/']);
});

function journey(name, ofGateway, paths) {
  browserJourney(name, {
    open: async (t) => openWorld(t, { ofGateway: await ofGateway(t) }),
    signIn: (page) => page.click('button[value=alice]'),
    loginForm: 'button[value=bob]',
    paths,
  });
}
