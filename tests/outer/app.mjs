// What stands behind the gateway: a page for everybody, a page for members, and an API that checks the access token.
import { readFile } from 'node:fs/promises';
import { KIT } from './kit.mjs';
import { close, listen } from './servers.mjs';


/** `introspect` turns an access token into its account, or undefined. */
export async function startApp(introspect) {
  /** Every access token that arrived, in order. */
  const tokens = new Set();
  /** Paths at which something arrived that must not: a cookie of the gateway's, or a token on a public page. */
  const trespasses = [];

  const server = await listen(async (request, response) => {
    const { authorization, cookie = '' } = request.headers;
    const { pathname } = new URL(request.url, 'http://app');
    const token = authorization?.match(/^Bearer (\S+)$/)?.[1];
    if (token) tokens.add(token);
    if (/(^|; )sidegate/.test(cookie)) trespasses.push(request.url);
    if (pathname === '/api/refused') return json(response, 401, { error: 'insufficient' });
    if (pathname === '/api/transfer') return strongerLogin(response);
    if (pathname.startsWith('/api/')) {
      const account = await introspect(token);
      if (account && pathname === '/api/orders') return json(response, 200, [{ id: 1, title: 'Chalk' }]);
      return account ? json(response, 200, { account }) : json(response, 401, { error: 'invalid_token' });
    }
    if (pathname.endsWith('/client.js')) return file(response, KIT);
    if (pathname.startsWith('/plain/')) return file(response, new URL(`../../examples${pathname}`, import.meta.url));
    if (pathname.startsWith('/account/')) return html(response, 'Account');
    if (authorization) trespasses.push(request.url);
    return pathname === '/' ? html(response, 'Welcome') : json(response, 404, { error: 'not_found' });
  });

  return {
    origin: `http://127.0.0.1:${server.address().port}`,
    trespasses,
    tokens: () => [...tokens],
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

async function file(response, url) {
  response.writeHead(200, { 'content-type': url.pathname.endsWith('.js') ? 'text/javascript' : 'text/html; charset=utf-8' });
  response.end(await readFile(url));
}

/** RFC 9470 section 3. */
function strongerLogin(response) {
  response.setHeader('www-authenticate', 'Bearer error="insufficient_user_authentication", acr_values="gold"');
  json(response, 401, { error: 'insufficient_user_authentication' });
}

function json(response, status, document) {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify(document));
}
