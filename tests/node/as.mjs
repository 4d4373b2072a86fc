// An Authorization Server by oidc-provider, on loopback in clear: the edge stands in front of it.
// It makes its signing keys when it starts, so that one that is started anew has rotated them.
// Prints a line of JSON when it listens, and ends when its standard input does.
//
// arguments: port, issuer (its external origin), then any of
//   nonces   DPoP proofs at the token endpoint must carry a nonce of its own
import { generateKeyPairSync, randomBytes, X509Certificate } from 'node:crypto'
import { Provider, errors } from 'oidc-provider'

const [port, issuer, ...flags] = process.argv.slice(2)
const nonces = flags.includes('nonces')

const signingKey = (alg, type, options) => ({
  ...generateKeyPairSync(type, options).privateKey.export({ format: 'jwk' }),
  alg,
  use: 'sig',
})

// What tokens are asked for: by the resource's identifier, their form.
const resources = {
  'https://es256.example/': { accessTokenFormat: 'jwt', jwt: { sign: { alg: 'ES256' } } },
  'https://ed25519.example/': { accessTokenFormat: 'jwt', jwt: { sign: { alg: 'EdDSA' } } },
  'https://ps256.example/': { accessTokenFormat: 'jwt', jwt: { sign: { alg: 'PS256' } } },
  'https://opaque.example/': { accessTokenFormat: 'opaque' },
}

const client = (client_id, more) => ({
  client_id,
  client_secret: 'only-for-this-test',
  grant_types: ['client_credentials'],
  redirect_uris: [],
  response_types: [],
  scope: 'orders.read',
  ...more,
})
// The edge terminates TLS and writes RFC 9440's Client-Cert, a client's own removed.
const certificate = (context) => {
  const field = context.get('client-cert')
  if (!field) return undefined
  return new X509Certificate(Buffer.from(field.slice(1, -1), 'base64'))
}

const provider = new Provider(issuer, {
  clients: [
    client('dpop', { dpop_bound_access_tokens: true }),
    client('mtls', {
      client_secret: undefined,
      token_endpoint_auth_method: 'tls_client_auth',
      tls_client_auth_san_dns: 'alice.example',
      tls_client_certificate_bound_access_tokens: true,
    }),
    client('edge', { grant_types: [] }),
  ],
  jwks: {
    keys: [
      signingKey('ES256', 'ec', { namedCurve: 'P-256' }),
      signingKey('EdDSA', 'ed25519'),
      signingKey('PS256', 'rsa', { modulusLength: 2048 }),
    ],
  },
  clientDefaults: { id_token_signed_response_alg: 'ES256' },
  clientAuthMethods: ['client_secret_basic', 'tls_client_auth'],
  scopes: ['orders.read'],
  ttl: { ClientCredentials: 600 },
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    dPoP: nonces
      ? { enabled: true, nonceSecret: randomBytes(32), requireNonce: () => true }
      : { enabled: true },
    introspection: { enabled: true, allowedPolicy: (context, asking) => asking.clientId === 'edge' },
    mTLS: {
      enabled: true,
      certificateBoundAccessTokens: true,
      tlsClientAuth: true,
      getCertificate: certificate,
      // The edge's handshake verified it.
      certificateAuthorized: (context) => certificate(context) !== undefined,
      certificateSubjectMatches: (context, property, expected) =>
        property === 'tls_client_auth_san_dns' &&
        certificate(context).subjectAltName.split(', ').includes(`DNS:${expected}`),
    },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo(context, identifier) {
        const resource = resources[identifier]
        if (!resource) throw new errors.InvalidTarget()
        return { scope: 'orders.read', ...resource }
      },
    },
  },
})
provider.proxy = true
provider.on('server_error', (context, error) => console.error(error))

process.stdin.resume().on('end', () => process.exit())
provider.listen(Number(port), '127.0.0.1', () => console.log(JSON.stringify({ port })))
