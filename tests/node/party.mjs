// One client of an Authorization Server and of a resource, both behind the edge: it gets a token,
// uses it, then does with it what a thief would. Prints a line of JSON.
//
// arguments: openid-client or oauth4webapi, issuer, client (dpop or mtls), resource identifier,
// resource URL, directory of ca.pem, alice.pem and bob.pem with their keys
import { SECRET, enter, read } from './libraries.mjs'

const [library, issuer, clientId, resource, url, directory] = process.argv.slice(2)
const certified = clientId === 'mtls'
const secret = certified ? undefined : SECRET
const party = await enter({
  library, issuer, clientId, secret, certified, resource, url, directory })
const { result, raw } = party

const handle = await party.handle()
const token = await party.token(handle)
const text = token.access_token
const outcome = { tokenType: token.token_type, ...read(text) }
outcome.first = await result(() => party.use(text, handle))
outcome.second = await result(() => party.use(text, handle))
outcome.exchanges = [...party.exchanges]
if (certified) {
  for (const name of ['bob', 'nobody', 'alice']) {
    party.show(name)
    outcome[name] = await result(() => party.use(text, handle))
  }
} else {
  outcome.replayed = await raw(party.sent())
  outcome.downgraded = await raw({ authorization: `Bearer ${text}` })
  const thief = await party.handle()
  outcome.stolen = await result(() => party.use(text, thief))
}
party.show('nobody')
outcome.resource = await party.describe?.(new URL('/orders', url))
console.log(JSON.stringify(outcome))
await party.leave()
