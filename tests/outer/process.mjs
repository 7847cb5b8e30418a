// Another program as a child process: started, listened to, stopped, and never left behind.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { until } from './wait.mjs';

const running = new Set();
process.on('exit', () => running.forEach((end) => end('SIGKILL')));
process.on('SIGINT', () => process.exit(130));
process.on('SIGTERM', () => process.exit(143));

/** Starts `program ARGS…` with this environment and no other, in a process group of its own: its children end with it. */
export function startProcess(program, args, { cwd, env = {} } = {}) {
  const options = { cwd, env: { PATH: process.env.PATH, ...env }, stdio: ['ignore', 'pipe', 'pipe'], detached: true };
  const child = spawn(program, args, options);
  const isOver = () => child.exitCode !== null || child.signalCode !== null;
  const kill = (signal) => {
    try {
      process.kill(-child.pid, signal);
    } catch {
      // gone already
    }
  };
  running.add(kill);
  const exited = once(child, 'exit').finally(() => running.delete(kill));
  const lines = { stdout: [], stderr: [] };
  const read = ['stdout', 'stderr'].map((name) => {
    const reader = createInterface({ input: child[name] });
    reader.on('line', (line) => lines[name].push(line));
    return once(reader, 'close');
  });
  const ended = async () => {
    const [code, signal] = await exited;
    await Promise.all(read);
    return { code, signal };
  };
  const output = () => [...lines.stdout, ...lines.stderr].join('\n');

  const stop = async () => {
    if (!isOver()) kill('SIGTERM');
    const patience = setTimeout(() => kill('SIGKILL'), 15_000);
    return ended().finally(() => clearTimeout(patience));
  };

  return {
    stdout: lines.stdout,
    output,
    /** Resolves as soon as `url` answers 200; fails, and ends the process, if that does not come, at once if it ends itself. */
    ready: async (url, within) => {
      const answers = async () => {
        assert.ok(!isOver(), `${program} ended early:\n${output()}`);
        // One that takes the connection and says nothing is not ready.
        return fetch(url, { signal: AbortSignal.timeout(30_000) }).then((answer) => answer.ok, () => false);
      };
      await until(`${url} answers`, answers, within).catch(async (error) => {
        await stop();
        throw error;
      });
    },
    /** Its own end: exit code and signal. */
    ended,
    /** SIGTERM, and SIGKILL for what does not end by that: exit code and signal. */
    stop,
  };
}

/** What `begin` starts, a process that can be stopped and started again. */
export async function startServer(begin) {
  let server;
  /** Starts it unless it is up. */
  const up = async () => {
    server ??= begin();
    await server.catch((error) => {
      server = undefined;
      throw error;
    });
  };
  await up();
  return {
    up,
    down: async () => {
      const stopped = await server;
      server = undefined;
      await stopped?.stop();
    },
  };
}
