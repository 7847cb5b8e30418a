// One refresh for all tabs. Several processes of sidegate that share nothing cannot know that another one is refreshing;
// the browser can. Before the token is due, one tab refreshes it under a lock, and the requests of all tabs wait for that.
// For providers that end the whole session when a refresh token comes twice, where neither Redis nor session affinity is
// to be had. Call `api` instead of `fetch` for everything on a route with a session.

/** `margin`, in seconds: more than `refresh.before_expiry`, or the server is the first to refresh. */
export function oneRefreshForAllTabs({ prefix = '/auth', margin = 65 } = {}) {
  const tabs = new BroadcastChannel('sidegate');
  let end = 0; // of the access token, in milliseconds of this browser's clock
  tabs.onmessage = ({ data }) => ({ end, margin } = data);

  const left = ({ access_token_expires_at: expires, now }) => expires - now; // by the server's clock
  const isFresh = () => end - Date.now() > margin * 1000;

  function learn(seconds) {
    end = Date.now() + seconds * 1000;
    tabs.postMessage({ end, margin });
  }

  async function refresh() {
    if (isFresh()) return; // another tab was faster
    const session = await (await fetch(`${prefix}/session`)).json();
    // Without a login, or a known end, there is nothing to refresh ahead of time; asked again in five seconds.
    learn(session.access_token_expires_at ? left(session) : margin + 5);
    if (isFresh()) return;
    const answer = await fetch(`${prefix}/refresh`, { method: 'POST' });
    if (!answer.ok) return; // what is over or out of reach, the request itself will say
    const refreshed = await answer.json();
    margin = Math.min(margin, left(refreshed) / 2); // a token of short life is not refreshed all its life
    learn(left(refreshed));
  }

  return async function api(input, options) {
    // A browser without locks sends what it has; the server does what it can.
    if (!isFresh() && navigator.locks) await navigator.locks.request('sidegate', refresh).catch(() => {});
    return fetch(input, options);
  };
}
