// Says in a header what Node made of each request; prints its port.
import { createServer } from 'node:http';

const server = createServer({ keepAliveTimeout: 60_000, requestTimeout: 0 }, (request, response) => {
  let length = 0;
  request.on('data', (piece) => { length += piece.length; });
  request.on('end', () => {
    response.setHeader('X-Seen', `${request.method} ${request.url} HTTP/${request.httpVersion}|${request.headers.host}`);
    response.setHeader('X-Body', String(length));
    response.end();
  });
});
server.maxRequestsPerSocket = 0;
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
// Ends with whoever started it.
process.stdin.resume().on('end', () => process.exit(0));
