// One protected resource request with oauth4webapi: it signs the proof, takes the nonce from the
// challenge and retries, as any client of it would. Prints a line of JSON.
//
// arguments: resource URL, access token, file with the client's private key (PKCS #8, PEM)
import { readFile } from 'node:fs/promises'
import { webcrypto } from 'node:crypto'

// Node 18 has them, but not by these names.
globalThis.crypto ??= webcrypto
globalThis.CryptoKey ??= webcrypto.CryptoKey
const oauth = await import('oauth4webapi')

const [url, token, keyFile] = process.argv.slice(2)
const algorithm = { name: 'ECDSA', namedCurve: 'P-256' }
const pem = await readFile(keyFile, 'utf8')
const der = Buffer.from(pem.replace(/-----[^-]+-----|\s/g, ''), 'base64')
const privateKey = await crypto.subtle.importKey('pkcs8', der, algorithm, true, ['sign'])
const { kty, crv, x, y } = await crypto.subtle.exportKey('jwk', privateKey)
const publicJwk = { kty, crv, x, y }
const publicKey = await crypto.subtle.importKey('jwk', publicJwk, algorithm, true, ['verify'])

const handle = oauth.DPoP({ client_id: 'client-1' }, { privateKey, publicKey })
const ask = () =>
  oauth.protectedResourceRequest(token, 'GET', new URL(url), undefined, null, { DPoP: handle })

const outcome = { challenges: 0, statuses: [] }
for (let left = 2; left > 0; left -= 1) {
  try {
    const answer = await ask()
    outcome.statuses.push(answer.status)
    outcome.body = await answer.text()
  } catch (error) {
    if (!oauth.isDPoPNonceError(error)) throw error
    outcome.challenges += 1
    const answer = await ask()
    outcome.statuses.push(answer.status)
    outcome.body = await answer.text()
  }
}
console.log(JSON.stringify(outcome))
