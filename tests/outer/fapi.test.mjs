// FAPI 2.0 with a certified provider, which demands nonces too.
import { generateKeyPairSync } from 'node:crypto';
import { fapiJourney } from './fapi-journey.mjs';
import { startProvider } from './provider.mjs';

const { privateKey: signing } = generateKeyPairSync('ec', { namedCurve: 'P-256' });

fapiJourney('log in, call, refresh and log out under FAPI 2.0', {
  begin: (client) => startProvider(client, {
    jwks: { keys: [{ ...signing.export({ format: 'jwk' }), alg: 'ES256', use: 'sig', kid: 'op-ec' }] },
    enabledJWA: { clientAuthSigningAlgValues: ['ES256', 'PS256', 'EdDSA'], idTokenSigningAlgValues: ['ES256'] },
    clientAuthMethods: ['private_key_jwt'],
    features: {
      fapi: { enabled: true, profile: '2.0' },
      pushedAuthorizationRequests: { enabled: true, requirePushedAuthorizationRequests: true },
      dPoP: { enabled: true, nonceSecret: Buffer.alloc(32, 7), requireNonce: () => true },
    },
  }),
});
