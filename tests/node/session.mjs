// A client of an Authorization Server and of a resource, both behind the edge, that does one thing at a
// time as it is told: a line of JSON in, one out. Its keys and nonces last as long as it does.
//
// arguments: openid-client or oauth4webapi, issuer, client, resource identifier (or nothing: tokens for
// the server itself), resource URL, directory of ca.pem, alice.pem and bob.pem with their keys, then `certified` for one that shows alice's
// certificate and no proofs, and `secretless` for one that is authenticated by it
//
// in: {do, token, key, sender}
//   do      metadata, token, flow, push (a flow that is pushed), use, downgrade, userinfo, refresh,
//           introspect, revoke
//   token   what it is done with
//   key     a name; the key of that name is made when it is first used
//   sender  alice, bob or nobody: whose certificate is shown from now on
// out: {status, error} or {status, told} or {status, body}
import { createInterface } from 'node:readline'
import { SECRET, enter } from './libraries.mjs'

const [library, issuer, clientId, resource, url, directory, ...flags] = process.argv.slice(2)
const certified = flags.includes('certified')
const secret = flags.includes('secretless') ? undefined : SECRET
const party = await enter({
  library, issuer, clientId, secret, certified, resource, url, directory })
const handles = new Map()

async function once({ do: what, token, key = 'own', sender }) {
  if (sender) party.show(sender)
  if (!handles.has(key)) handles.set(key, await party.handle())
  const handle = handles.get(key)
  const tasks = {
    metadata: async () => party.metadata,
    token: () => party.token(handle),
    flow: () => party.flow(handle, false),
    push: () => party.flow(handle, true),
    use: () => party.use(token, handle),
    refresh: () => party.refresh(token, handle),
    userinfo: () => party.userinfo(token, handle),
    introspect: () => party.introspect(token),
    revoke: () => party.revoke(token),
  }
  if (what === 'downgrade') return party.raw({ authorization: `Bearer ${token}` })
  return party.result(tasks[what])
}

for await (const line of createInterface({ input: process.stdin })) {
  const before = party.exchanges.length
  const outcome = await once(JSON.parse(line)).catch((error) => ({ fault: String(error) }))
  console.log(JSON.stringify({ ...outcome, exchanges: party.exchanges.slice(before) }))
}
await party.leave()
