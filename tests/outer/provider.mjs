// A certified OpenID Provider (the npm package oidc-provider) with two accounts, short-lived access tokens and strictly
// rotating refresh tokens. It lives on 127.0.0.1 while the gateway is `localhost`: for a browser two different sites.
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import Provider from 'oidc-provider';
import { close, listen } from './servers.mjs';

/** Long enough for one burst of requests, short enough to be watched ending. */
export const ACCESS_TOKEN_SECONDS = 4;

const ACCOUNTS = {
  alice: { name: 'Alice Example', preferred_username: 'alice', email: 'alice@example.test' },
  bob: { name: 'Bob Example', preferred_username: 'bob', email: 'bob@example.test' },
};

/**
 * Starts the provider with one client, given as client metadata (RFC 7591). `features` join those that are always on;
 * `more` replaces what the package takes besides.
 */
export async function startProvider(client, { accessTokenSeconds = ACCESS_TOKEN_SECONDS, features = {}, ...more } = {}) {
  // Answered requests by route, as `{ form, status }`.
  const seen = { authorization: [], token: [], revocation: [] };
  // The issuer holds the port, so the port comes first.
  let handle = () => {};
  const serve = (request, response) => handle(request, response);
  let server = await listen(serve);
  const { port } = server.address();
  const issuer = `http://127.0.0.1:${port}`;

  const oidc = new Provider(issuer, {
    clients: [client],
    jwks: { keys: [signingKey()] },
    cookies: { keys: [randomBytes(24).toString('hex')] },
    claims: { openid: ['sub'], profile: ['name', 'preferred_username'], email: ['email'] },
    scopes: ['openid', 'offline_access', 'profile', 'email'],
    findAccount: (_ctx, id) => ACCOUNTS[id] && { accountId: id, claims: () => ({ sub: id, ...ACCOUNTS[id] }) },
    pkce: { required: () => true },
    rotateRefreshToken: true,
    // Without its dispatcher, which reaches no loopback address: the gateway is on one, for logout tokens.
    fetch: (url, options) => fetch(url, { ...options, dispatcher: undefined }),
    ttl: { AccessToken: accessTokenSeconds, IdToken: 300, RefreshToken: 3600, Session: 3600, Grant: 3600, Interaction: 300 },
    interactions: { url: (_ctx, { uid }) => `/interaction/${uid}` },
    features: {
      devInteractions: { enabled: false },
      revocation: { enabled: true },
      rpInitiatedLogout: { enabled: true, logoutSource: confirmLogout },
      ...features,
    },
    ...more,
  });

  oidc.use(async (ctx, next) => {
    if (ctx.path.startsWith('/interaction/')) return interact(oidc, ctx);
    await next();
    seen[ctx.oidc?.route]?.push({ form: { ...ctx.oidc.params }, status: ctx.status });
  });
  handle = oidc.callback();
  const tokenRequests = (type) => seen.token.filter(({ form }) => form.grant_type === type);

  return {
    issuer,
    accessTokenSeconds,
    /** Answers requests that came another way. */
    handle: serve,
    /** How often a browser was sent here. */
    authorizations: () => seen.authorization.length,
    /** The token requests of this grant type, refused ones included. */
    tokenRequests,
    /** How many they are. */
    grants: (type) => tokenRequests(type).length,
    /** How many token requests were refused: a refresh token that comes twice is, and ends the whole grant. */
    refusals: () => seen.token.filter(({ status }) => status >= 400).length,
    /** The revocations (RFC 7009). */
    revocations: () => seen.revocation,
    /** The user's session ends here, not at the app: this visitor asks for it. */
    logOutUser: (visitor) => visitor.navigate(`${issuer}/session/end`),
    /** The account that a live access token belongs to. */
    introspect: async (token) => {
      const found = token && await oidc.AccessToken.find(token);
      return found && !found.isExpired ? found.accountId : undefined;
    },
    /** What is known of an access token: its account and the key that it is bound to. */
    find: (token) => oidc.AccessToken.find(token),
    goDown: () => close(server),
    comeBack: async () => { server = await listen(serve, port); },
    stop: () => close(server),
  };
}

function signingKey() {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  return { ...privateKey.export({ format: 'jwk' }), alg: 'RS256', use: 'sig', kid: 'outer' };
}

/** Who is it? A known browser is not asked again, and consent is never asked for. */
async function interact(oidc, ctx) {
  const { params, session } = await oidc.interactionDetails(ctx.req, ctx.res);
  const accountId = session?.accountId ?? (ctx.method === 'POST' ? await chosenAccount(ctx.req) : undefined);
  if (!accountId) {
    const buttons = Object.entries(ACCOUNTS).map(([id, { name }]) => `<button name="account" value="${id}">${name}</button>`);
    ctx.body = page('Sign in', `<form method="post" action="${ctx.path}">${buttons.join('')}</form>`);
    return;
  }
  const grant = new oidc.Grant({ accountId, clientId: params.client_id });
  grant.addOIDCScope(params.scope);
  ctx.respond = false;
  await oidc.interactionFinished(ctx.req, ctx.res, { login: { accountId }, consent: { grantId: await grant.save() } });
}

async function chosenAccount(request) {
  const body = Buffer.concat(await request.toArray()).toString();
  return new URLSearchParams(body).get('account');
}

/** Asks nothing: the form that the provider made is sent at once. */
function confirmLogout(ctx, form) {
  const yes = form.replace('</form>', '<input type="hidden" name="logout" value="yes"></form>');
  ctx.body = page('Signing out', `${yes}<script>document.forms[0].submit()</script>`);
}

const page = (title, body) => `<!doctype html><html lang="en"><title>${title}</title><h1>${title}</h1>${body}</html>`;
