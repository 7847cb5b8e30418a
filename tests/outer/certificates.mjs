// Certificates for mutual TLS on loopback, of an authority of their own.
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';

const openssl = (folder, ...args) => promisify(execFile)('openssl', args, { cwd: folder });
const NEW_KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];

/**
 * An authority, a server on 127.0.0.1 and a client with this subject: `files` of PEM, `{ authority, server, client }` each
 * `{ cert, key }`, and the same as `pem`, their contents. They end with the test `t`.
 */
export async function makeCertificates(t, subject) {
  const folder = await mkdtemp(path.join(tmpdir(), 'sidegate-certificates-'));
  t.after(() => rm(folder, { recursive: true }));
  const files = {};
  const named = (name) => ({ cert: path.join(folder, `${name}.pem`), key: path.join(folder, `${name}.key`) });
  files.authority = named('authority');
  await openssl(folder, 'req', '-x509', ...NEW_KEY, '-keyout', 'authority.key', '-out', 'authority.pem', '-subj', '/CN=outer tests', '-days', '2');
  for (const [name, dn] of [['server', '/CN=localhost'], ['client', subject]]) {
    files[name] = named(name);
    const extensions = path.join(folder, `${name}.ext`);
    await writeFile(extensions, 'subjectAltName = IP:127.0.0.1\nbasicConstraints = critical, CA:FALSE\n');
    await openssl(folder, 'req', ...NEW_KEY, '-keyout', `${name}.key`, '-out', `${name}.csr`, '-subj', dn);
    await openssl(
      folder, 'x509', '-req', '-in', `${name}.csr`, '-CA', 'authority.pem', '-CAkey', 'authority.key', '-CAcreateserial',
      '-days', '2', '-extfile', extensions, '-out', `${name}.pem`,
    );
  }
  const pem = {};
  for (const [name, { cert, key }] of Object.entries(files)) pem[name] = { cert: await readFile(cert), key: await readFile(key) };
  return { files, pem };
}
