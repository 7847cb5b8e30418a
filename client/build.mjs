// Bundles and minifies the kit into dist/index.js, and keeps its promise of size.
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { buildSync } from 'esbuild';

/** In bytes. */
const LIMIT = 3000;
const outfile = 'dist/index.js';

const absWorkingDir = fileURLToPath(new URL('.', import.meta.url));
buildSync({ absWorkingDir, entryPoints: ['src/index.ts'], bundle: true, format: 'esm', minify: true, target: 'es2022', outfile });
const built = readFileSync(new URL(outfile, import.meta.url));
console.log(`${outfile}: ${built.length} bytes, ${gzipSync(built).length} compressed`);
if (built.length > LIMIT) throw new Error(`more than ${LIMIT} bytes`);
