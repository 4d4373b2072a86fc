// An Authorization Server by oidc-provider, on loopback in clear: the edge stands in front of it.
// It makes its signing keys when it starts, so that one that is started anew has rotated them.
// Prints a line of JSON when it listens, and ends when its standard input does.
//
// arguments: port, issuer (its external origin), then any of
//   nonces   DPoP proofs at the token endpoint must carry a nonce of its own
//   unbound  it knows nothing of DPoP and mTLS: each of its tokens is anybody's who has it
//   rotates  each refresh token is redeemed once, and answered with another
import { generateKeyPairSync, randomBytes, X509Certificate } from 'node:crypto'
import { Provider, errors } from 'oidc-provider'

const [port, issuer, ...flags] = process.argv.slice(2)
const [nonces, unbound, rotates] = ['nonces', 'unbound', 'rotates'].map((one) => flags.includes(one))

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
// What somebody's consent is asked for.
const interactive = (client_id) =>
  client(client_id, {
    grant_types: ['authorization_code', 'refresh_token', 'client_credentials'],
    redirect_uris: ['https://app.example/callback'],
    response_types: ['code'],
    scope: 'openid offline_access orders.read',
  })
// The edge terminates TLS and writes RFC 9440's Client-Cert, a client's own removed.
const certificate = (context) => {
  const field = context.get('client-cert')
  if (!field) return undefined
  return new X509Certificate(Buffer.from(field.slice(1, -1), 'base64'))
}

const provider = new Provider(issuer, {
  clients: [
    client('dpop', unbound ? {} : { dpop_bound_access_tokens: true }),
    client('mtls', unbound ? {} : {
      client_secret: undefined,
      token_endpoint_auth_method: 'tls_client_auth',
      tls_client_auth_san_dns: 'alice.example',
      tls_client_certificate_bound_access_tokens: true,
    }),
    client('edge', { grant_types: [] }),
    interactive('app'),
    interactive('other'),
  ],
  jwks: {
    keys: [
      signingKey('ES256', 'ec', { namedCurve: 'P-256' }),
      signingKey('EdDSA', 'ed25519'),
      signingKey('PS256', 'rsa', { modulusLength: 2048 }),
    ],
  },
  clientDefaults: { id_token_signed_response_alg: 'ES256' },
  clientAuthMethods: ['client_secret_basic', ...(unbound ? [] : ['tls_client_auth'])],
  scopes: ['openid', 'offline_access', 'orders.read'],
  ttl: { AccessToken: 600, ClientCredentials: 600, RefreshToken: 3600 },
  rotateRefreshToken: rotates,
  findAccount: (context, accountId) => ({ accountId, claims: () => ({ sub: accountId }) }),
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    dPoP: nonces
      ? { enabled: true, nonceSecret: randomBytes(32), requireNonce: () => true }
      : { enabled: !unbound },
    introspection: {
      enabled: true,
      allowedPolicy: (context, asking, token) => ['edge', token.clientId].includes(asking.clientId),
    },
    mTLS: unbound ? { enabled: false } : {
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
    pushedAuthorizationRequests: { enabled: true },
    // Who asks about another's token is told nothing (RFC 7009 section 2.2 has it answered with 200).
    revocation: {
      enabled: true,
      allowedPolicy: (context, asking, token) => asking.clientId === token.clientId,
    },
    resourceIndicators: {
      enabled: true,
      useGrantedResource: () => true,
      getResourceServerInfo(context, identifier) {
        const resource = resources[identifier]
        if (!resource) throw new errors.InvalidTarget()
        return { scope: 'orders.read', ...resource }
      },
    },
  },
})
provider.proxy = true
// Somebody who is there and agrees to whatever is asked.
provider.use(async (context, next) => {
  if (!context.path.startsWith('/interaction/')) return next()
  const { req, res } = context
  const { params } = await provider.interactionDetails(req, res)
  const accountId = 'somebody'
  const grant = new provider.Grant({ accountId, clientId: params.client_id })
  grant.addOIDCScope(params.scope)
  if (params.resource) grant.addResourceScope(params.resource, 'orders.read')
  const result = { login: { accountId }, consent: { grantId: await grant.save() } }
  context.redirect(await provider.interactionResult(req, res, result))
})
provider.on('server_error', (context, error) => console.error(error))

// It tells of what happens, and nobody reads on.
process.stdout.on('error', () => {})
process.stdin.resume().on('end', () => process.exit())
provider.listen(Number(port), '127.0.0.1', () => console.log(JSON.stringify({ port })))
