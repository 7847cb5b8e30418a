/**
 * What a page needs of sidegate: who is logged in, login, logout, and a `fetch` that goes on working.
 *
 * The page never sees a token. This code never makes it see one: all it knows is when the token ends.
 */

/** What `GET /auth/session` says. Times are epoch seconds; compare them with `now`, not with this computer's clock. */
export type Session =
  | { authenticated: false }
  | {
      authenticated: true;
      /** The claims that `claims.expose` lists. */
      claims: Record<string, unknown>;
      /** When the session ends, whatever happens. */
      expires_at?: number;
      /** When the access token ends. It is refreshed by itself. */
      access_token_expires_at?: number;
      /** When the session ends unless it is used. */
      idle_expires_at?: number;
      now: number;
    };

export interface Options {
  /** `endpoints.prefix` of the configuration. Default: `/auth`. */
  prefix?: string;
  /** `csrf.header` of the configuration. Default: `X-CSRF`. */
  header?: string;
  /**
   * Seconds before its end at which the access token is refreshed by this page, once for all tabs. Default: 65, which is
   * more than `refresh.before_expiry`, so that the page is first. 0: leave it to the server.
   */
  margin?: number;
  /** Whether a 401 of sidegate starts a login. Default: true. */
  login?: boolean;
}

export interface Client {
  /** Asks who is logged in. */
  session(): Promise<Session>;
  /** Goes to the login; comes back to `returnTo`, by default this page. `params`: `prompt`, `login_hint` and the like. */
  login(returnTo?: string, params?: Record<string, string>): void;
  /** Logs out here and at the provider; leaves the page. */
  logout(): Promise<void>;
  /** As the browser's, for everything behind sidegate. */
  fetch(input: RequestInfo | URL, init?: RequestInit): Promise<Response>;
  /** Is told the session now, and whenever it changes in any tab. Returns what ends that. */
  subscribe(listener: (session: Session) => void): () => void;
}

/** No second login on the same page within this time, in milliseconds: something else is wrong then. */
const AGAIN = 10_000;
/** How long the answer "nobody is logged in" or "nobody knows when the token ends" is believed, in seconds. */
const UNKNOWN = 5;

export function createClient(options: Options = {}): Client {
  const { prefix = '/auth', header = 'X-CSRF', login: loginOn401 = true } = options;
  let margin = options.margin ?? 65;
  const ask = globalThis.fetch.bind(globalThis);
  const name = `sidegate${prefix}`;
  const { locks } = navigator;
  const tabs = new BroadcastChannel(name);
  const listeners = new Set<(session: Session) => void>();
  /** End of the access token by this computer's clock, in milliseconds; 0 before anything is known. */
  let end = 0;
  let last: Session | undefined;
  let stopWatching: (() => void) | undefined;

  const here = () => location.pathname + location.search;
  const fresh = () => end - Date.now() > margin * 1000;
  const call = (path: string, method = 'GET') => ask(prefix + path, { method, headers: { [header]: '1' } });

  function heard(session: Session) {
    const left = session.authenticated && session.access_token_expires_at ? session.access_token_expires_at - session.now : 0;
    end = Date.now() + (left || margin + UNKNOWN) * 1000;
    const changed = JSON.stringify({ ...session, now: 0 }) !== JSON.stringify({ ...last, now: 0 });
    last = session;
    if (changed) listeners.forEach((listener) => listener(session));
    return left;
  }

  function learn(session: Session) {
    const left = heard(session);
    tabs.postMessage({ session, margin });
    return left;
  }

  tabs.onmessage = ({ data }) => {
    margin = data.margin;
    heard(data.session);
  };

  async function session() {
    const answer: Session = await (await call('/session')).json();
    learn(answer);
    return answer;
  }

  /** One at a time over all tabs; who comes later finds it done. */
  async function refresh() {
    if (fresh()) return;
    const current = await session();
    if (!current.authenticated || !current.access_token_expires_at || fresh()) return;
    const answer = await call('/refresh', 'POST');
    if (!answer.ok) return; // what is over or out of reach, the request itself will say
    const left = learn(await answer.json());
    margin = Math.min(margin, left / 2); // a token of short life is not refreshed all its life
  }

  function leave(url: string) {
    const key = `${name} ${here()}`;
    const before = Number(sessionStorage.getItem(key));
    if (Date.now() - before < AGAIN) return;
    sessionStorage.setItem(key, `${Date.now()}`);
    location.assign(url);
  }

  function loginUrl(returnTo: string, params: Record<string, string> = {}) {
    return `${prefix}/login?${new URLSearchParams({ return_to: returnTo, ...params })}`;
  }

  /** A refusal of sidegate's, if it is one: an API may have its own. */
  async function refused(response: Response) {
    if (!response.headers.get('content-type')?.startsWith('application/problem+json')) return;
    const { code, login_url: url } = await response.clone().json();
    if (code === 'login_required') leave(loginUrl(here()));
    if (code === 'step_up_required' && url) {
      const target = new URL(url, location.href);
      target.searchParams.set('return_to', here());
      leave(target.pathname + target.search);
    }
  }

  /** One tab listens to the server for all: browsers open few connections to one origin. */
  function watch() {
    let source: EventSource | undefined;
    const given = new AbortController();
    const listen = () =>
      new Promise<void>((done) => {
        source = new EventSource(`${prefix}/events`);
        source.addEventListener('refreshed', () => void session());
        source.addEventListener('ended', () => {
          learn({ authenticated: false });
          source?.close();
          done();
        });
        source.onerror = () => source?.readyState === EventSource.CLOSED && done();
        given.signal.addEventListener('abort', () => done());
      });
    void session().then(({ authenticated }) => {
      if (authenticated && locks) void locks.request(`${name} events`, { signal: given.signal }, listen).catch(() => {});
    });
    return () => {
      given.abort();
      source?.close();
    };
  }

  return {
    session,
    login: (returnTo = here(), params) => location.assign(loginUrl(returnTo, params)),
    async logout() {
      const { location: next } = await (await call('/logout', 'POST')).json();
      learn({ authenticated: false });
      location.assign(next);
    },
    async fetch(input, init) {
      const request = new Request(input, init);
      if (new URL(request.url).origin !== location.origin) return ask(request);
      // A browser without locks sends what it has; the server does what it can.
      if (margin && !fresh() && locks) await locks.request(name, refresh).catch(() => {});
      request.headers.set(header, '1');
      const response = await ask(request);
      if (response.status === 401) {
        end = 0;
        if (loginOn401) await refused(response);
      }
      return response;
    },
    subscribe(listener) {
      listeners.add(listener);
      if (last) listener(last);
      stopWatching ??= watch();
      return () => {
        listeners.delete(listener);
        if (!listeners.size) {
          stopWatching?.();
          stopWatching = undefined;
        }
      };
    },
  };
}
