// A page without a framework. `client.js` is the built kit: client/dist/index.js.
import { createClient } from './client.js';

const sidegate = createClient();
const byId = (id) => document.getElementById(id);

sidegate.subscribe(async (session) => {
  byId('who').textContent = session.authenticated ? session.claims.name : 'Nobody is logged in';
  byId('login').hidden = session.authenticated;
  byId('logout').hidden = !session.authenticated;
  byId('orders').replaceChildren(...(session.authenticated ? await orders() : []));
});
byId('login').addEventListener('click', () => sidegate.login());
byId('logout').addEventListener('click', () => sidegate.logout());

async function orders() {
  const answer = await sidegate.fetch('/api/orders');
  if (!answer.ok) return [];
  const found = await answer.json();
  return found.map(({ title }) => Object.assign(document.createElement('li'), { textContent: title }));
}
