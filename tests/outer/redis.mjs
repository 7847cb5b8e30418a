// A redis-server of the test's own, on a unix socket, that keeps nothing on disk.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { until } from './wait.mjs';

/** Starts it, and ends it with the test `t`; gives what belongs into the configuration. */
export async function startRedis(t) {
  const folder = await mkdtemp(path.join(tmpdir(), 'sidegate-redis-'));
  const socket = path.join(folder, 'socket');
  const options = ['--port', '0', '--unixsocket', socket, '--save', '', '--appendonly', 'no'];
  const server = spawn('redis-server', options, { cwd: folder, stdio: 'ignore' });
  const kill = () => server.kill('SIGKILL');
  process.on('exit', kill);
  t.after(async () => {
    process.off('exit', kill);
    kill();
    if (server.exitCode === null && server.signalCode === null) await once(server, 'exit');
    await rm(folder, { recursive: true });
  });
  await until('redis-server listens', () => new Promise((resolve) => {
    const connection = net.connect(socket, () => { connection.destroy(); resolve(true); });
    connection.on('error', () => resolve(false));
  }));
  return `[redis]\nurl = "unix:${socket}"\n`;
}
