// Servers that nobody here wrote are large: they are brought once, and kept outside the repository.
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, rename, rm } from 'node:fs/promises';
import { homedir } from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';

const ROOT = path.join(process.env.XDG_CACHE_HOME || path.join(homedir(), '.cache'), 'sidegate-test');
const MINUTES = 60_000;

/** Something that is not to be had on this machine: a reason to skip, not to fail. */
export class Unavailable extends Error {}

/**
 * What `bring` gives, as `{ found }`; where it is not to be had `{ skip }`, the reason. With SERVERS=required (`make
 * test-servers`) that is a failure.
 */
export async function atHand(bring) {
  try {
    return { found: await bring(), skip: false };
  } catch (error) {
    if (!(error instanceof Unavailable) || process.env.SERVERS === 'required') throw error;
    return { skip: error.message };
  }
}

/** The folder `name` of the cache; the first time `fill(folder)` makes it. Half-made ones are never seen. */
export async function cached(name, fill) {
  const folder = path.join(ROOT, name);
  if (existsSync(folder)) return folder;
  await mkdir(ROOT, { recursive: true });
  const draft = await mkdtemp(`${folder}.draft-`);
  try {
    await fill(draft);
    // Somebody else may have been faster.
    await rename(draft, folder).catch((error) => { if (!existsSync(folder)) throw error; });
  } finally {
    await rm(draft, { recursive: true, force: true });
  }
  return folder;
}

/**
 * Runs a program to its end; what it wrote. A missing program makes a thing `Unavailable`, and so does one that fails
 * where it reaches out for something: `downloads`.
 */
export async function run(program, args, { cwd, env = {}, minutes = 10, downloads = false } = {}) {
  const options = { cwd, env: { ...process.env, ...env }, timeout: minutes * MINUTES, maxBuffer: 1 << 26 };
  try {
    const { stdout, stderr } = await promisify(execFile)(program, args, options);
    return stdout + stderr;
  } catch (error) {
    if (error.code === 'ENOENT') throw new Unavailable(`${program} is not installed`);
    const said = `${error.stdout ?? ''}${error.stderr ?? ''}`.trim().split('\n').slice(-5).join(' / ');
    throw new (downloads ? Unavailable : Error)(`${[program, ...args].join(' ')} failed: ${said || error.message}`);
  }
}
