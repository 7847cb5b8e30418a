// The program under test as a child process: started, listened to, stopped, and never left behind.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import path from 'node:path';
import { until } from './wait.mjs';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const running = new Set();
process.on('exit', () => running.forEach((child) => child.kill('SIGKILL')));
process.on('SIGTERM', () => process.exit(143));

function binary() {
  if (process.env.SIDEGATE_BIN) return process.env.SIDEGATE_BIN;
  const target = path.resolve(ROOT, process.env.CARGO_TARGET_DIR ?? 'target');
  const built = ['debug', 'release'].map((profile) => path.join(target, profile, 'sidegate')).find(existsSync);
  assert.ok(built, 'no sidegate binary: run `cargo build`, or set SIDEGATE_BIN');
  return built;
}

/** Starts `sidegate ARGS…` with an environment of its own. */
export function start(args, cwd) {
  const child = spawn(binary(), args, { cwd, env: { PATH: process.env.PATH }, stdio: ['ignore', 'pipe', 'pipe'] });
  running.add(child);
  const exited = once(child, 'exit').finally(() => running.delete(child));
  const lines = { stdout: [], stderr: [] };
  const read = ['stdout', 'stderr'].map((name) => {
    const reader = createInterface({ input: child[name] });
    reader.on('line', (line) => lines[name].push(line));
    return once(reader, 'close');
  });
  const output = () => [...lines.stdout, ...lines.stderr].join('\n');

  return {
    stdout: lines.stdout,
    output,
    /** Resolves as soon as `url` answers 200; fails at once if the process ends instead. */
    ready: (url) => until(`${url} answers`, async () => {
      assert.equal(child.exitCode ?? child.signalCode, null, `sidegate ended early:\n${output()}`);
      return fetch(url).then((answer) => answer.ok, () => false);
    }),
    /** SIGTERM, and a graceful end: exit code 0. */
    stop: async () => {
      if (child.exitCode === null && child.signalCode === null) child.kill('SIGTERM');
      const patience = setTimeout(() => child.kill('SIGKILL'), 15_000);
      const [code, signal] = await exited;
      clearTimeout(patience);
      await Promise.all(read);
      assert.deepEqual({ code, signal }, { code: 0, signal: null }, `sidegate did not stop gracefully:\n${output()}`);
    },
  };
}
