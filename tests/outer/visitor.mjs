// A user's browser as far as HTTP shows it: a cookie jar, navigations that follow redirects and press the first button of
// a form, and the fetches of the app's scripts. SameSite and the rest of a browser's rules: see browser.test.mjs.
import http from 'node:http';

const MAX_STEPS = 20;

export class Visitor {
  /** `home` is the origin of the app; `answers` are what this person fills into fields of forms, by name. */
  constructor(home, answers = {}) {
    this.home = home;
    this.answers = answers;
    this.jar = [];
  }

  /** The same person an instant earlier, or a thief: the same cookies in another jar. */
  clone() {
    const other = new Visitor(this.home, this.answers);
    other.jar = this.jar.map((cookie) => ({ ...cookie }));
    return other;
  }

  /** A typed address. Ends at the first page without a form. */
  async navigate(address) {
    let step = { method: 'GET', url: new URL(address, this.home) };
    let initiator = null;
    for (let steps = 0; steps < MAX_STEPS; steps += 1) {
      const site = initiator === null ? 'none' : initiator === step.url.origin ? 'same-origin' : 'cross-site';
      const answer = await this.#send(step, {
        accept: 'text/html,*/*;q=0.8',
        'sec-fetch-mode': 'navigate',
        'sec-fetch-dest': 'document',
        'sec-fetch-site': site,
      });
      const { location } = answer.headers;
      const form = answer.body.match(/<form.*?<\/form>/s)?.[0];
      if (location) {
        step = { method: 'GET', url: new URL(location, step.url) };
      } else if (form) {
        initiator = step.url.origin;
        step = submission(form, step.url, this.answers);
      } else {
        return answer;
      }
    }
    throw new Error(`no end after ${MAX_STEPS} redirects and forms, at ${step.url}`);
  }

  /** Follows "log in" in the app and presses what the provider shows. */
  login(returnTo = '/account/') {
    return this.navigate(`/auth/login?return_to=${encodeURIComponent(returnTo)}`);
  }

  /** A fetch by the app's own script. Follows what sends the same request once more within the app (307). */
  async fetch(path, method = 'GET') {
    const headers = { accept: '*/*', 'sec-fetch-mode': 'cors', 'sec-fetch-dest': 'empty', 'sec-fetch-site': 'same-origin' };
    if (method !== 'GET') headers.origin = this.home;
    let url = new URL(path, this.home);
    for (let steps = 0; steps < MAX_STEPS; steps += 1) {
      const answer = await this.#send({ method, url }, headers);
      if (answer.status !== 307) return { ...answer, json: () => JSON.parse(answer.body) };
      url = new URL(answer.headers.location, url);
    }
    throw new Error(`no end after ${MAX_STEPS} redirects, at ${url}`);
  }

  /** What the session endpoint says. */
  async session() {
    return (await this.fetch('/auth/session')).json();
  }

  async #send({ method, url, form }, headers) {
    const cookies = this.jar.filter(({ host, path }) => host === url.hostname && url.pathname.startsWith(path));
    if (cookies.length > 0) headers.cookie = cookies.map(({ name, value }) => `${name}=${value}`).join('; ');
    if (form !== undefined) headers['content-type'] = 'application/x-www-form-urlencoded';
    const response = await new Promise((resolve, reject) => {
      const request = http.request(url, { method, headers, timeout: 30_000 }, resolve);
      request.on('timeout', () => request.destroy(new Error(`${url} did not answer`)));
      request.on('error', reject);
      request.end(form);
    });
    const body = Buffer.concat(await response.toArray()).toString();
    for (const line of response.headers['set-cookie'] ?? []) this.#store(url, line);
    // Our redirects end in an empty fragment, lest the browser carries the provider's along.
    return { url: url.href.replace(/#$/, ''), status: response.statusCode, headers: response.headers, body };
  }

  #store(url, line) {
    const [pair, ...attributes] = line.split(/;\s*/);
    const equals = pair.indexOf('=');
    const [name, value] = [pair.slice(0, equals), pair.slice(equals + 1)];
    const of = (wanted) => attributes.find((text) => text.toLowerCase().startsWith(`${wanted}=`))?.slice(wanted.length + 1);
    const path = of('path') ?? '/';
    this.jar = this.jar.filter((known) => known.name !== name || known.host !== url.hostname || known.path !== path);
    const ended = Number(of('max-age') ?? 1) <= 0 || new Date(of('expires') ?? Infinity) < new Date();
    if (!ended) this.jar.push({ host: url.hostname, path, name, value });
  }
}

/** What the browser sends when the fields are filled in and the first button of the form is pressed. */
function submission(form, page, answers) {
  const attribute = (tag, name) => tag.match(new RegExp(`\\s${name}="([^"]*)"`))?.[1].replaceAll('&amp;', '&');
  const controls = [...form.matchAll(/<input[^>]*>/g), ...[...form.matchAll(/<button[^>]*>/g)].slice(0, 1)].map(([tag]) => tag);
  const names = controls.filter((tag) => attribute(tag, 'name') && attribute(tag, 'type') !== 'checkbox');
  const fields = names.map((tag) => [attribute(tag, 'name'), answers[attribute(tag, 'name')] ?? attribute(tag, 'value') ?? '']);
  return { method: 'POST', url: new URL(attribute(form, 'action'), page), form: new URLSearchParams(fields).toString() };
}
