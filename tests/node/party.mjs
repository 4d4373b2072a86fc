// One client of an Authorization Server and of a resource, both behind the edge: it gets a token,
// uses it, then does with it what a thief would. Prints a line of JSON.
//
// arguments: openid-client or oauth4webapi, issuer, client (dpop or mtls), resource identifier,
// resource URL, directory of ca.pem, alice.pem and bob.pem with their keys
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Agent, fetch as send } from 'undici'

const [library, issuer, clientId, resource, url, directory] = process.argv.slice(2)
const secret = 'only-for-this-test'
const certified = clientId === 'mtls'
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

async function openidClient() {
  const client = await import('openid-client')
  const auth = certified ? client.TlsClientAuth() : client.ClientSecretBasic(secret)
  const hook = { [client.customFetch]: exchange }
  const config = await client.discovery(new URL(issuer), clientId, undefined, auth, hook)
  return {
    async handle() {
      if (certified) return undefined
      return client.getDPoPHandle(config, await client.randomDPoPKeyPair())
    },
    token: (handle) => client.clientCredentialsGrant(config, parameters, { DPoP: handle }),
    use: (token, handle) =>
      client.fetchProtectedResource(config, token, new URL(url), 'GET', null, undefined, {
        DPoP: handle,
      }),
  }
}

async function oauth4webapi() {
  const oauth = await import('oauth4webapi')
  const auth = certified ? oauth.TlsClientAuth() : oauth.ClientSecretBasic(secret)
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
    // What one learns who knows no more than the resource (RFC 9728): from a challenge, then from
    // the resource's own word, then from the server that it names.
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
  }
}

const party = await { 'openid-client': openidClient, oauth4webapi }[library]()

// Both libraries throw when an answer has a challenge; what it says stands in the answer.
async function result(ask) {
  try {
    const answer = await ask()
    if (answer.ok) return { status: answer.status, body: await answer.text() }
  } catch (error) {
    if (last.answer.status !== 401) throw error
  }
  const challenge = last.answer.headers.get('www-authenticate') ?? ''
  return { status: last.answer.status, error: /error="([^"]*)"/.exec(challenge)?.[1] }
}
// A request that no library makes: once more what was sent last, or with other credentials.
const raw = (headers) => result(() => exchange(url, { headers }))

const handle = await party.handle()
const token = await party.token(handle)
const text = token.access_token
const outcome = { tokenType: token.token_type }
const parts = text.split('.')
if (parts.length === 3) {
  const read = (part) => JSON.parse(Buffer.from(part, 'base64url'))
  outcome.header = read(parts[0])
  outcome.claims = read(parts[1])
}
outcome.first = await result(() => party.use(text, handle))
outcome.second = await result(() => party.use(text, handle))
outcome.exchanges = [...exchanges]
if (certified) {
  for (const name of ['bob', 'nobody', 'alice']) {
    sender = agents[name]
    outcome[name] = await result(() => party.use(text, handle))
  }
} else {
  outcome.replayed = await raw(last.options.headers)
  outcome.downgraded = await raw({ authorization: `Bearer ${text}` })
  const thief = await party.handle()
  outcome.stolen = await result(() => party.use(text, thief))
}
sender = agents.nobody
outcome.resource = await party.describe?.(new URL('/orders', url))
console.log(JSON.stringify(outcome))
await Promise.all(Object.values(agents).map((one) => one.close()))
