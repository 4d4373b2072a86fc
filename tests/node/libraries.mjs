// What the clients here are made of: openid-client and oauth4webapi behind one face, certificates to
// show, and a record of what was sent.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Agent, fetch as send } from 'undici'

export const SECRET = 'only-for-this-test'
const callback = 'https://app.example/callback'

// Without a `secret` it is authenticated by its certificate; `certified`: it shows alice's and no proofs.
export async function enter(who) {
  const { library, issuer, clientId, secret, certified, resource, url, directory } = who
  const parameters = { resource, scope: 'orders.read' }
  const file = (name) => readFileSync(join(directory, name))
  const agent = (name) =>
    new Agent({
      connect: {
        ca: file('ca.pem'),
        ...(name ? { cert: file(`${name}.pem`), key: file(`${name}.key`) } : undefined),
      },
    })
  const agents = { alice: agent('alice'), bob: agent('bob'), nobody: agent() }

  // What every request goes through, the libraries' own included.
  const exchanges = []
  let sender = certified ? agents.alice : agents.nobody
  let last
  async function exchange(target, options) {
    const answer = await send(target, { ...options, dispatcher: sender })
    exchanges.push(`${new URL(target).pathname} ${answer.status}`)
    last = { options, answer }
    return answer
  }

  // A browser: where it is sent to, until that is the client's own.
  async function browse(target) {
    const jar = new Map()
    for (let left = 10; left > 0; left -= 1) {
      const cookie = [...jar].map(([name, value]) => `${name}=${value}`).join('; ')
      const answer = await exchange(target, { redirect: 'manual', headers: { cookie } })
      for (const line of answer.headers.getSetCookie()) {
        const [, name, value] = /^([^=]*)=([^;]*)/.exec(line)
        if (value) jar.set(name, value)
        else jar.delete(name)
      }
      const next = answer.headers.get('location')
      if (!next) throw new Error(`${target}: ${answer.status} ${await answer.text()}`)
      target = new URL(next, target)
      if (target.href.startsWith(callback)) return target
    }
    throw new Error('sent from one to the next without end')
  }

  async function openidClient() {
    const client = await import('openid-client')
    const auth = secret ? client.ClientSecretBasic(secret) : client.TlsClientAuth()
    const hook = { [client.customFetch]: exchange }
    const config = await client.discovery(new URL(issuer), clientId, undefined, auth, hook)
    return {
      metadata: config.serverMetadata(),
      async handle() {
        if (certified) return undefined
        return client.getDPoPHandle(config, await client.randomDPoPKeyPair())
      },
      token: (handle) => client.clientCredentialsGrant(config, parameters, { DPoP: handle }),
      use: (token, handle) =>
        client.fetchProtectedResource(config, token, new URL(url), 'GET', null, undefined, {
          DPoP: handle,
        }),
      async flow(handle, pushed) {
        const pkceCodeVerifier = client.randomPKCECodeVerifier()
        const expectedState = client.randomState()
        const asked = {
          ...(resource ? { resource } : undefined),
          redirect_uri: callback,
          scope: 'openid offline_access orders.read',
          prompt: 'consent',
          state: expectedState,
          code_challenge: await client.calculatePKCECodeChallenge(pkceCodeVerifier),
          code_challenge_method: 'S256',
        }
        const options = { DPoP: handle }
        const begin = pushed
          ? await client.buildAuthorizationUrlWithPAR(config, asked, options)
          : client.buildAuthorizationUrl(config, asked)
        const checks = { pkceCodeVerifier, expectedState }
        const end = await browse(begin)
        return client.authorizationCodeGrant(config, end, checks, undefined, options)
      },
      refresh: (token, handle) =>
        client.refreshTokenGrant(config, token, undefined, { DPoP: handle }),
      userinfo: (token, handle) =>
        client.fetchUserInfo(config, token, client.skipSubjectCheck, { DPoP: handle }),
      introspect: (token) => client.tokenIntrospection(config, token),
      revoke: (token) => client.tokenRevocation(config, token),
    }
  }

  async function oauth4webapi() {
    const oauth = await import('oauth4webapi')
    const auth = secret ? oauth.ClientSecretBasic(secret) : oauth.TlsClientAuth()
    const hook = { [oauth.customFetch]: exchange }
    const client = { client_id: clientId }
    const found = await oauth.discoveryRequest(new URL(issuer), hook)
    const server = await oauth.processDiscoveryResponse(new URL(issuer), found)
    // The library says that a nonce is asked for; to ask again is its user's part.
    const retried = async (ask) => {
      try {
        return await ask()
      } catch (error) {
        if (!oauth.isDPoPNonceError(error)) throw error
        return ask()
      }
    }
    return {
      metadata: server,
      async handle() {
        if (certified) return undefined
        return oauth.DPoP(client, await oauth.generateKeyPair('ES256'))
      },
      token: (handle) =>
        retried(async () => {
          const options = { ...hook, DPoP: handle }
          const answer = await oauth.clientCredentialsGrantRequest(
            server, client, auth, parameters, options)
          return oauth.processClientCredentialsResponse(server, client, answer)
        }),
      use: (token, handle) =>
        retried(() =>
          oauth.protectedResourceRequest(token, 'GET', new URL(url), undefined, null, {
            ...hook,
            DPoP: handle,
          })),
      // What one learns who knows no more than the resource (RFC 9728): from a challenge, then from the
      // resource's own word, then from the server that it names.
      async describe(identifier) {
        const challenges = await oauth
          .protectedResourceRequest('nonsense', 'GET', new URL(url), undefined, null, hook)
          .catch((error) => error.cause)
        const told = await oauth.resourceDiscoveryRequest(identifier, hook)
        const metadata = await oauth.processResourceDiscoveryResponse(identifier, told)
        const named = new URL(metadata.authorization_servers[0])
        const answer = await oauth.discoveryRequest(named, hook)
        const { issuer } = await oauth.processDiscoveryResponse(named, answer)
        const urls = challenges.map(({ parameters }) => parameters.resource_metadata)
        return { urls, metadata, issuer }
      },
      refresh: (token, handle) =>
        retried(async () => {
          const options = { ...hook, DPoP: handle }
          const answer = await oauth.refreshTokenGrantRequest(server, client, auth, token, options)
          return oauth.processRefreshTokenResponse(server, client, answer)
        }),
      async introspect(token) {
        const answer = await oauth.introspectionRequest(server, client, auth, token, hook)
        return oauth.processIntrospectionResponse(server, client, answer)
      },
      async revoke(token) {
        const answer = await oauth.revocationRequest(server, client, auth, token, hook)
        return oauth.processRevocationResponse(answer)
      },
    }
  }

  const party = await { 'openid-client': openidClient, oauth4webapi }[library]()

  // Both libraries throw when an answer has a challenge or is an error; what it says stands in the
  // answer.
  async function result(ask) {
    try {
      const answer = await ask()
      if (answer?.ok) return { status: answer.status, body: await answer.text() }
      if (answer?.ok === undefined) return { status: last.answer.status, told: answer }
    } catch (error) {
      if (last.answer.status < 400) throw error
      if (error.error) return { status: last.answer.status, error: error.error }
    }
    const challenge = last.answer.headers.get('www-authenticate') ?? ''
    return { status: last.answer.status, error: /error="([^"]*)"/.exec(challenge)?.[1] }
  }

  return {
    ...party,
    exchanges,
    result,
    // A request that no library makes: once more what was sent last, or with other credentials.
    raw: (headers) => result(() => exchange(url, { headers })),
    sent: () => last.options.headers,
    show(name) {
      sender = agents[name]
    },
    leave: () => Promise.all(Object.values(agents).map((one) => one.close())),
  }
}

// The parts of a JWT that can be read; `undefined` for another token.
export function read(token) {
  const parts = token.split('.')
  if (parts.length !== 3) return undefined
  const [header, claims] = parts.map((part, index) =>
    index < 2 ? JSON.parse(Buffer.from(part, 'base64url')) : undefined)
  return { header, claims }
}
