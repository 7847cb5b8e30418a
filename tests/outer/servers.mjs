// Loopback servers and free ports.
import http from 'node:http';
import net from 'node:net';
import { randomInt } from 'node:crypto';
import { once } from 'node:events';

/** Listens on 127.0.0.1; port 0 picks a free one. */
export async function listen(handler, port = 0) {
  const server = http.createServer(handler).listen(port, '127.0.0.1');
  await once(server, 'listening');
  return server;
}

/** Closes a server and whatever is still connected to it. */
export async function close(server) {
  if (!server.listening) return;
  server.close();
  server.closeAllConnections();
  await once(server, 'close');
}

/**
 * A port that was free a moment ago, for a process that must know its own address before it starts. Below those that the
 * kernel gives to outgoing connections, or one of them could have it by then.
 */
export async function freePort() {
  for (;;) {
    const server = net.createServer().listen(randomInt(10_000, 32_000), '127.0.0.1');
    const free = await once(server, 'listening').then(() => true, (error) => {
      if (error.code !== 'EADDRINUSE') throw error;
      return false;
    });
    if (!free) continue;
    const { port } = server.address();
    server.close();
    await once(server, 'close');
    return port;
  }
}

/** Hands each request to one of these ports, at random, as a load balancer without affinity does. */
export function startDistributor(port, ports) {
  return listen((request, response) => {
    const { method, url: path, headers } = request;
    const target = { host: '127.0.0.1', port: ports[Math.floor(Math.random() * ports.length)], method, path, headers, agent: false };
    const passed = http.request(target, (answer) => {
      response.writeHead(answer.statusCode, answer.rawHeaders);
      answer.pipe(response);
    });
    passed.on('error', () => response.destroy());
    response.on('close', () => passed.destroy());
    request.pipe(passed);
  }, port);
}
