// The program under test.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import path from 'node:path';
import { startProcess } from './process.mjs';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));

function binary() {
  if (process.env.SIDEGATE_BIN) return process.env.SIDEGATE_BIN;
  const target = path.resolve(ROOT, process.env.CARGO_TARGET_DIR ?? 'target');
  const built = ['debug', 'release'].map((profile) => path.join(target, profile, 'sidegate')).find(existsSync);
  assert.ok(built, 'no sidegate binary: run `cargo build`, or set SIDEGATE_BIN');
  return built;
}

/** Starts `sidegate ARGS…` with an environment of its own. */
export function start(args, cwd) {
  const started = startProcess(binary(), args, { cwd });
  return {
    ...started,
    /** SIGTERM, and a graceful end: exit code 0. */
    stop: async () => {
      assert.deepEqual(await started.stop(), { code: 0, signal: null }, `sidegate did not stop gracefully:\n${started.output()}`);
    },
  };
}

/** Runs `sidegate ARGS…` to its end: exit code and output. */
export async function ask(args, cwd) {
  const asked = startProcess(binary(), args, { cwd });
  const { code } = await asked.ended();
  return { code, output: asked.output() };
}
