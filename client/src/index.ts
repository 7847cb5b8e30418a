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
      expires_at: number;
      /** When the access token ends, if the provider told. It is refreshed by itself. */
      access_token_expires_at: number | null;
      /** When the session ends unless it is used, if it does. */
      idle_expires_at: number | null;
      now: number;
    };

export interface Options {
  /** `endpoints.prefix` of the configuration. Default: `/auth`. */
  prefix?: string;
  /** `csrf.header` of the configuration. Default: `X-CSRF`. */
  header?: string;
  /**
   * Seconds before its end at which the access token is refreshed by this page, once for all tabs; at most half of its
   * life. Default: 65, which is more than `refresh.before_expiry`, so that the page is first. 0: leave it to the server.
   */
  margin?: number;
  /** Whether a refusal by sidegate for want of a login, or of a stronger one, starts it. Default: true. */
  login?: boolean;
}

export interface Client {
  /** Asks who is logged in. Rejects when there is no answer to be had: that is not a logout. */
  session(): Promise<Session>;
  /** Goes to the login; comes back to `returnTo`, by default this page. `params`: `prompt`, `login_hint` and the like. */
  login(returnTo?: string, params?: Record<string, string>): void;
  /** Logs out here and at the provider; leaves the page. */
  logout(): Promise<void>;
  /** As the browser's, for everything behind sidegate. A 401 that starts a login is returned all the same: the page is leaving. */
  fetch(input: RequestInfo | URL, init?: RequestInit): Promise<Response>;
  /** Is told the session now, and whenever it changes in any tab. Returns what ends that. */
  subscribe(listener: (session: Session) => void): () => void;
}

/** What one tab tells the others: what it heard of the session, or for how long to leave the server alone. */
interface News {
  session?: Session;
  /** Of a whole access token, in seconds; 0 if this tab does not know. */
  life: number;
}

/** No second login for the same reason on the same page within this time, in milliseconds: something else is wrong then. */
const AGAIN = 10_000;
/** Pause before the server is asked again what it could not say, or what had nothing to say, in milliseconds. */
const PAUSE = 5_000;
/** An answer that takes longer than this, in milliseconds, keeps nobody waiting. */
const PATIENCE = 30_000;

/** In a browser only: a page that is rendered on a server makes its client when it has arrived. */
export function createClient(options: Options = {}): Client {
  const { prefix = '/auth', header = 'X-CSRF', margin = 65, login: starts = true } = options;
  const ask = globalThis.fetch.bind(globalThis);
  const name = `sidegate${prefix}`;
  const { locks } = navigator;
  const tabs = new BroadcastChannel(name);
  const listeners = new Set<(session: Session) => void>();
  /** Until then requests may go without a look at the token, by this computer's clock; 0 before anything is known. */
  let until = 0;
  let life = 0;
  let last: Session | undefined;
  let watching: AbortController | undefined;
  /** On the way to the logout: a page that sees nobody logged in must not turn to the login now. */
  let leaving = false;

  const here = () => location.pathname + location.search;
  const fresh = () => Date.now() < until;

  async function call<T>(path: string, method = 'GET'): Promise<T> {
    // `keepalive`: a page that is left while it refreshes must not lose the new cookie.
    const init = { method, headers: { [header]: '1' }, keepalive: true, signal: AbortSignal.timeout(PATIENCE) };
    const answer = await ask(prefix + path, init);
    if (!answer.ok) throw new Error(`${prefix}${path}: ${answer.status}`, { cause: answer });
    return answer.json();
  }

  /** Seconds that the access token has left, if that is known. */
  function left(session: Session) {
    return session.authenticated && session.access_token_expires_at ? session.access_token_expires_at - session.now : undefined;
  }

  function heard(news: News) {
    life = news.life || life;
    const session = news.session;
    const seconds = session && left(session);
    until = Date.now() + (seconds === undefined ? PAUSE : (seconds - Math.min(margin, life / 2 || margin)) * 1000);
    if (!session) return;
    const changed = JSON.stringify({ ...session, now: 0 }) !== JSON.stringify({ ...last, now: 0 });
    last = session;
    if (session.authenticated) void watch();
    if (changed) listeners.forEach((listener) => listener(session));
  }

  function tell(session?: Session) {
    const news: News = session ? { session, life } : { life };
    heard(news);
    tabs.postMessage(news);
  }

  tabs.onmessage = ({ data }: MessageEvent<News>) => heard(data);

  async function session() {
    const answer = await call<Session>('/session');
    tell(answer);
    return answer;
  }

  /** One at a time over all tabs; who comes later finds it done. */
  async function refresh() {
    try {
      if (fresh() || left(await session()) === undefined || fresh()) return;
      const answer = await call<Session>('/refresh', 'POST');
      life = left(answer) ?? life; // a token of short life is not refreshed all its life
      tell(answer);
    } catch {
      tell(); // what is over or out of reach, the request itself will say
    }
  }

  function leave(url: string, why: string) {
    const key = `${name} ${why} ${here()}`;
    if (leaving || Date.now() - Number(sessionStorage.getItem(key)) < AGAIN) return;
    sessionStorage.setItem(key, `${Date.now()}`);
    location.assign(url);
  }

  function loginUrl(returnTo: string, params: Record<string, string> = {}) {
    return `${prefix}/login?${new URLSearchParams({ ...params, return_to: returnTo })}`;
  }

  /** A refusal of sidegate's, if it is one: an API may have its own. */
  async function refused(response: Response) {
    if (!response.headers.get('content-type')?.startsWith('application/problem+json')) return;
    const { code, login_url: url } = await response.clone().json();
    if (!/^(login|step_up)_required$/.test(code)) return;
    const wanted = new URL(url, location.href).searchParams;
    leave(loginUrl(here(), Object.fromEntries(wanted)), code);
  }

  /** Hears the server until the session is over. Resolves to whether it ended rather than broke. */
  function listen(signal: AbortSignal) {
    return new Promise<boolean>((done) => {
      const source = new EventSource(`${prefix}/events`);
      const end = (ended: boolean) => {
        source.close();
        done(ended);
      };
      source.addEventListener('refreshed', () => void session().catch(() => {}));
      source.addEventListener('ended', () => end(true));
      // It tries again by itself unless the answer was none it understands.
      source.onerror = () => source.readyState === EventSource.CLOSED && end(false);
      signal.addEventListener('abort', () => end(true));
    });
  }

  /** While there are listeners and a session, one tab hears the server for all: browsers open few connections to one origin. */
  async function watch() {
    if (watching || !listeners.size || !locks) return;
    const given = (watching = new AbortController());
    const { signal } = given;
    for (;;) {
      const ended = await locks.request(`${name} events`, { signal }, () => listen(signal)).catch(() => true);
      if (!ended) await new Promise((done) => setTimeout(done, PAUSE));
      if (signal.aborted) return;
      // A session that was replaced has ended too, and another is there.
      if ((await session().catch(() => undefined))?.authenticated === false) break;
    }
    if (watching === given) watching = undefined;
  }

  return {
    session,
    login(returnTo = here(), params) {
      if (!leaving) location.assign(loginUrl(returnTo, params));
    },
    async logout() {
      leaving = true;
      try {
        const { location: next } = await call<{ location: string }>('/logout', 'POST');
        tell({ authenticated: false });
        location.assign(next);
      } catch (error) {
        leaving = false;
        throw error;
      }
    },
    async fetch(input, init) {
      const request = new Request(input, init);
      if (new URL(request.url).origin !== location.origin) return ask(request);
      // A browser without locks sends what it has; the server does what it can.
      if (margin && !fresh() && locks) await locks.request(name, refresh);
      request.headers.set(header, '1');
      const response = await ask(request);
      if (response.status === 401) {
        until = 0;
        if (starts) await refused(response).catch(() => {});
      }
      return response;
    },
    subscribe(listener) {
      listeners.add(listener);
      if (last) listener(last);
      if (last?.authenticated) void watch();
      else void session().catch(() => {});
      return () => {
        listeners.delete(listener);
        if (listeners.size) return;
        watching?.abort();
        watching = undefined;
      };
    },
  };
}
