// No framework, no token: the kit says who is logged in and when the access token ends, and that is all a page needs.
import { createClient } from '/client.js';

// `margin: 0`: this page wants to show how the gateway refreshes. `login: false`: it shows a 401 rather than leaving.
const sidegate = createClient({ margin: 0, login: false });
const $ = (id) => document.getElementById(id);
const state = { session: null, skew: 0, life: 1, calls: 0, failed: 0, busy: false };

sidegate.subscribe((session) => {
  const previous = state.session;
  state.session = session;
  state.skew = session.now ? session.now - Date.now() / 1000 : 0;
  if (session.authenticated && session.access_token_expires_at !== previous?.access_token_expires_at) {
    state.life = Math.max(1, session.access_token_expires_at - session.now);
    heard(previous?.authenticated ? 'The access token is a new one' : `${session.claims.name} is logged in`);
  }
  show();
});

function show() {
  const { session } = state;
  const on = session.authenticated;
  $('welcome').hidden = on;
  $('signed-in').hidden = !on;
  $('login').hidden = on;
  $('logout').hidden = !on;
  $('who').textContent = on ? session.claims.name : 'Nobody is logged in';
  $('token-says').textContent = on
    ? 'Holds the tokens. All the page knows is when the access token ends.'
    : 'Holds no token for this browser: nobody is logged in.';
  if (on) $('session').textContent = JSON.stringify(session, null, 2);
  else $('left').textContent = '–';
  showWhatScriptsSee();
}

function showWhatScriptsSee() {
  const seen = {
    'document.cookie': document.cookie,
    localStorage: Object.keys(localStorage).join(', '),
    sessionStorage: Object.keys(sessionStorage).join(', '),
  };
  $('sees').replaceChildren(...Object.entries(seen).flatMap(([name, value]) => {
    const dt = document.createElement('dt');
    const dd = document.createElement('dd');
    dt.textContent = name;
    dd.textContent = value === '' ? 'nothing' : value;
    return [dt, dd];
  }));
}

/** Newest first, and only a few. */
function heard(what) {
  const li = document.createElement('li');
  const time = document.createElement('time');
  time.textContent = new Date().toLocaleTimeString();
  li.append(time, what);
  $('events').prepend(li);
  while ($('events').children.length > 6) $('events').lastChild.remove();
}

async function call() {
  const begun = performance.now();
  const result = { ms: 0, status: 0, token: '' };
  try {
    const response = await sidegate.fetch('/api/me');
    result.status = response.status;
    if (response.ok) {
      const body = await response.json();
      result.token = body.token;
      $('refreshes').textContent = body.refreshes;
      $('bearer').textContent = `fingerprint ${body.token}`;
    }
  } catch {
    result.status = 0; // the network, or the demo was stopped
  }
  result.ms = Math.round(performance.now() - begun);
  state.calls += 1;
  if (result.status !== 200) state.failed += 1;
  $('calls').textContent = state.calls;
  $('failed').textContent = state.failed;
  return result;
}

function showResults(results) {
  $('results').replaceChildren(...results.map(({ status, ms, token }) => {
    const li = document.createElement('li');
    const b = document.createElement('b');
    b.textContent = `${status || 'no answer'} · ${ms} ms`;
    li.className = status === 200 ? 'ok' : 'bad';
    li.append(b, token ? `token ${token}` : '–');
    return li;
  }));
}

async function calls(count) {
  if (state.busy) return;
  state.busy = true;
  const before = Number($('refreshes').textContent);
  const results = await Promise.all(Array.from({ length: count }, call));
  showResults(results);
  const asked = Number($('refreshes').textContent) - before;
  const fine = results.filter((result) => result.status === 200).length;
  $('burst-says').textContent = `${fine} of ${count} answered. The provider was asked for ${asked} refresh${asked === 1 ? '' : 'es'}.`;
  await sidegate.session().catch(() => {}); // the next call says so too
  state.busy = false;
}

function tick() {
  const { session } = state;
  const left = session?.authenticated ? session.access_token_expires_at - (Date.now() / 1000 + state.skew) : 0;
  $('dial').style.setProperty('--part', Math.max(0, Math.min(1, left / state.life)));
  if (!session?.authenticated) return;
  $('left').textContent = Math.max(0, Math.ceil(left));
  if (left < -0.5 && $('auto').checked && !document.hidden) calls(10);
}

$('call').addEventListener('click', () => calls(1));
$('burst').addEventListener('click', () => calls(10));
$('call-anonymous').addEventListener('click', async () => {
  const response = await sidegate.fetch('/api/me');
  const body = await response.json();
  $('anonymous').textContent = `${response.status} ${body.code ?? ''}`;
});
$('logout').addEventListener('click', () => sidegate.logout()); // the provider ends its own session and sends the browser back
setInterval(tick, 250);
