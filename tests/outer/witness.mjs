// Stands before a provider that is another process, and remembers what the gateway asked it for.
import http from 'node:http';
import { close, listen } from './servers.mjs';

/** `port` is the provider's own; everybody else, browsers too, knows the witness's. */
export async function startWitness(port) {
  const seen = [];
  const server = await listen(async (request, response) => {
    const sent = await request.toArray().catch(() => undefined);
    if (!sent) return response.destroy();
    const body = Buffer.concat(sent);
    const { method, url, headers } = request;
    const passed = http.request({ host: '127.0.0.1', port, method, path: url, headers, agent: false });
    // A provider that is away is away for whoever asks the witness.
    passed.on('error', () => response.destroy());
    passed.on('response', async (answer) => {
      const came = await answer.toArray().catch(() => undefined);
      if (!came) return response.destroy();
      const text = Buffer.concat(came);
      seen.push(record(request, body.toString(), answer, text.toString()));
      response.writeHead(answer.statusCode, answer.rawHeaders);
      response.end(text);
    });
    passed.end(body);
  });

  return {
    origin: `http://127.0.0.1:${server.address().port}`,
    /** How many requests were answered. */
    count: () => seen.length,
    /** Those to this path, without the first `earlier` of all: `{ method, path, headers, form, status, answer }`. */
    requests: (path, earlier = 0) => seen.slice(earlier).filter((request) => request.path === path),
    stop: () => close(server),
  };
}

function record({ method, url, headers }, body, { statusCode: status }, text) {
  const form = Object.fromEntries(new URLSearchParams(body));
  let answer = {};
  try {
    answer = JSON.parse(text);
  } catch {
    // a page
  }
  return { method, path: new URL(url, 'http://provider').pathname, headers, form, status, answer };
}
