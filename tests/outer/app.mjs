// What stands behind the gateway: a page for everybody, a page for members, and an API that checks the access token.
import { close, listen } from './servers.mjs';

/** `introspect` turns an access token into its account, or undefined. */
export async function startApp(introspect) {
  /** The `Authorization` of every request to the API, in order; undefined where there was none. */
  const authorizations = [];
  /** Paths at which one of the gateway's cookies, or a credential on a public page, arrived. */
  const trespasses = [];

  const server = await listen(async (request, response) => {
    const { authorization, cookie = '' } = request.headers;
    if (/(^|; )sidegate/.test(cookie)) trespasses.push(request.url);
    const { pathname } = new URL(request.url, 'http://app');
    if (pathname.startsWith('/api/')) {
      authorizations.push(authorization);
      const account = await introspect(authorization?.replace(/^Bearer /, ''));
      return account ? json(response, 200, { account }) : json(response, 401, { error: 'invalid_token' });
    }
    if (pathname.startsWith('/account/')) return html(response, 'Account');
    if (authorization) trespasses.push(request.url);
    return pathname === '/' ? html(response, 'Welcome') : json(response, 404, { error: 'not_found' });
  });

  return {
    origin: `http://127.0.0.1:${server.address().port}`,
    trespasses,
    /** Every access token that was sent here. */
    tokens: () => [...new Set(authorizations.filter(Boolean).map((value) => value.replace(/^\S+ /, '')))],
    stop: () => close(server),
  };
}

/** A page of some other site, with a link to `target`. */
export async function startForeignSite(target) {
  const server = await listen((_request, response) => html(response, 'Elsewhere', `<a id="link" href="${target}">look</a>`));
  return { origin: `http://127.0.0.1:${server.address().port}`, stop: () => close(server) };
}

const MENU = `<a id="login" href="/auth/login?return_to=/account/">Log in</a> <button id="logout">Log out</button>
<script type="module">
  document.getElementById('logout').addEventListener('click', async () => {
    const answer = await fetch('/auth/logout', { method: 'POST' });
    window.location.assign((await answer.json()).location);
  });
</script>`;

function html(response, title, body = MENU) {
  response.writeHead(200, { 'content-type': 'text/html; charset=utf-8' });
  response.end(`<!doctype html><html lang="en"><title>${title}</title><link rel="icon" href="data:,"><h1>${title}</h1>${body}</html>`);
}

function json(response, status, document) {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify(document));
}
