"""A node that nobody of ours wrote: fetches a runtime capsule over TLS and checks all of it.

Reads what to do as JSON, prints one line of JSON: `facts`, what was seen, and `checks`, each true or
what is wrong. Everything is computed anew, from the documented constructions alone: signatures by
`cryptography`, proofs and sealed keys by `jwcrypto`, the rest by the standard library.
"""
import base64
import datetime
import hashlib
import hmac
import http.client
import json
import os
import socket
import sqlite3
import ssl
import struct
import sys
import time
import uuid

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from jwcrypto import jwe, jwk, jws


def b64u(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64u(text):
    """Strict: no padding, no other alphabet, no bits left over."""
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if b64u(data) != text:
        raise ValueError("not base64url: " + text)
    return data


def sha256(data):
    return hashlib.sha256(data).digest()


def lp(data):
    return struct.pack(">H", len(data)) + data


def hkdf(ikm, salt, info):
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(ikm)


def canonical(value):
    """RFC 8785, of what an envelope's claims are made of."""
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(canonical(n) + ":" + canonical(value[n]) for n in names) + "}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        assert abs(value) < 2**53
        return str(value)
    if isinstance(value, str):
        return '"' + "".join(escaped(char) for char in value) + '"'
    raise TypeError(repr(value))


def escaped(char):
    short = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f",
             "\r": "\\r"}
    return short.get(char) or (f"\\u{ord(char):04x}" if char < " " else char)


def thumbprint(key):
    members = {"EC": ["crv", "kty", "x", "y"], "OKP": ["crv", "kty", "x"]}[key["kty"]]
    return b64u(sha256(canonical({name: key[name] for name in members}).encode()))


class Edge:
    """One TLS connection for each request, to a loopback port under the edge's name."""

    def __init__(self, ask):
        self.ask = ask
        self.tls = ssl.create_default_context(cafile=ask["authority"])
        if "certificate" in ask:
            self.tls.load_cert_chain(ask["certificate"], ask["certificateKey"])

    def get(self, target, headers):
        raw = socket.create_connection(("127.0.0.1", self.ask["port"]), timeout=30)
        name = self.ask["origin"].removeprefix("https://")
        connection = http.client.HTTPSConnection(name)
        connection.sock = self.tls.wrap_socket(raw, server_hostname=name)
        connection.request("GET", target, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, answer.headers, body


class Node:
    def __init__(self, ask):
        self.ask = ask
        self.edge = Edge(ask)
        self.path = "/api/runtime/capsule/" + ask["node"]
        self.target = self.path + ask.get("query", "")
        self.key = self.proof_key() if "key" in ask else None
        curve = ask.get("seal")
        self.ephemeral = jwk.JWK.generate(kty="EC", crv=curve) if curve else None

    def proof_key(self):
        """The same from one run to the next."""
        file = self.ask["key"]
        if not os.path.exists(file):
            kind = {"kty": "OKP", "crv": "Ed25519"} if self.ask.get("okp") else {
                "kty": "EC", "crv": "P-256"}
            with open(file, "w") as out:
                out.write(jwk.JWK.generate(**kind).export())
        with open(file) as text:
            return jwk.JWK.from_json(text.read())

    def sealed_to(self):
        return self.ephemeral.export_public(as_dict=True)

    def proof(self, nonce):
        claims = {"jti": str(uuid.uuid4()), "htm": "GET", "htu": self.ask["origin"] + self.path,
                  "iat": int(time.time()), "ath": b64u(sha256(self.ask["secret"].encode()))}
        if nonce:
            claims["nonce"] = nonce
        if self.ephemeral:
            claims["enc_jwk"] = self.sealed_to()
        algorithm = "EdDSA" if self.ask.get("okp") else "ES256"
        header = {"typ": "dpop+jwt", "alg": algorithm, "jwk": self.key.export_public(as_dict=True)}
        made = jws.JWS(json.dumps(claims))
        made.add_signature(self.key, None, json.dumps(header))
        return made.serialize(compact=True)

    def headers(self, nonce):
        headers = {"X-Node-Fingerprint": self.ask["fingerprint"],
                   "X-Node-Boot-Id": self.ask["boot"]}
        if "version" in self.ask:
            headers["X-Node-Version"] = self.ask["version"]
        if self.key:
            headers["Authorization"] = "DPoP " + self.ask["secret"]
            headers["DPoP"] = self.proof(nonce)
        else:
            headers["Authorization"] = "Bearer " + self.ask["secret"]
            if self.ephemeral:
                text = json.dumps(self.sealed_to()).encode()
                headers["X-Node-Enc-Jwk"] = b64u(text)
        return headers

    def fetch(self):
        """Asks, and answers at most one challenge."""
        challenges, nonce = 0, None
        while True:
            status, headers, body = self.edge.get(self.target, self.headers(nonce))
            new = headers.get("DPoP-Nonce")
            if status != 401 or not self.key or not new or challenges == 1:
                return status, challenges, headers, json.loads(body)
            challenges, nonce = challenges + 1, new


def verified(envelope, keys):
    """The protected header and the claims, once the signature holds."""
    head, payload, signature = envelope.split(".")
    header, claims = json.loads(unb64u(head)), json.loads(unb64u(payload))
    [key] = [key for key in keys if thumbprint(key) == header["kid"]]
    message, signature = f"{head}.{payload}".encode(), unb64u(signature)
    if header["alg"] == "EdDSA":
        assert (key["kty"], key["crv"], len(signature)) == ("OKP", "Ed25519", 64)
        public = ed25519.Ed25519PublicKey.from_public_bytes(unb64u(key["x"]))
        public.verify(signature, message)
    else:
        assert (header["alg"], key["kty"], key["crv"]) == ("ES256", "EC", "P-256")
        assert len(signature) == 64
        x, y = (int.from_bytes(unb64u(key[name]), "big") for name in ("x", "y"))
        public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
        r, s = (int.from_bytes(part, "big") for part in (signature[:32], signature[32:]))
        public.verify(encode_dss_signature(r, s), message, ec.ECDSA(SHA256()))
    return header, claims


def is_forged_found_out(envelope, keys):
    """Whether another payload under the same signature is refused."""
    head, payload, signature = envelope.split(".")
    claims = json.loads(unb64u(payload))
    claims["riskScore"] += 1
    try:
        verified(".".join([head, b64u(canonical(claims).encode()), signature]), keys)
    except InvalidSignature:
        return True
    return "a changed payload is taken"


def same(found, expected):
    return True if found == expected else f"found {found!r}, expected {expected!r}"


def runtime_key(ask, claims):
    """DESIGN.md, "Runtime key", from the master key's file."""
    numbers, _, software = claims["keyVersion"].partition("@")
    master, node = (int(text[1:]) for text in numbers.split("."))
    with open(os.path.join(ask["keys"], f"master-{master}.json")) as file:
        stored = json.load(file)
    info = b"".join([
        lp(b"runtime-capsule/v1"), lp(b"runtime-key"), lp(ask["cluster"].encode()),
        lp(ask["node"].encode()), lp(sha256(ask["fingerprint"].encode())),
        struct.pack(">IIH", master, node, 32),
        lp(software.encode()) if software else b"",
    ])
    return hkdf(unb64u(stored["master"]), unb64u(stored["salt"]), info)


def signature(ikm, node, claims, material):
    info = lp(b"runtime-capsule/v1") + lp(b"envelope-mac") + lp(node.encode())
    message = canonical(claims).encode() + material.encode()
    return b64u(hmac.digest(hkdf(ikm, None, info), message, "sha256"))


def texts(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for one in value for text in texts(one)]
    return [value] if isinstance(value, str) else []


def stored_texts(ask):
    """Every text that the registry's database holds about the node."""
    database = sqlite3.connect(f"file:{ask['store']}?mode=ro", uri=True)
    [(record,)] = database.execute("SELECT record FROM nodes WHERE id = ?", [ask["node"]]).fetchall()
    lines = database.execute("SELECT line FROM audit").fetchall()
    meta = database.execute("SELECT value FROM meta").fetchall()
    database.close()
    found = texts(json.loads(record)) + [value for (value,) in meta]
    return record, found + [text for (line,) in lines for text in texts(json.loads(line))]


def forgery(ask, claims, body, material):
    """Whether nothing in the database is a key that makes this signature, in any writing of it."""
    record, found = stored_texts(ask)
    digest = sha256(ask["secret"].encode())
    if b64u(digest) not in found:
        return "the database does not hold the secret's SHA-256 where it is looked for"
    if ask["secret"] in record or ask["secret"] in found:
        return "the database holds the secret"
    tried = {digest, digest.hex().encode(), base64.b64encode(digest), b"", record.encode()}
    for text in found:
        tried.add(text.encode())
        try:
            tried.add(unb64u(text))
        except ValueError:
            pass
    for ikm in tried:
        if signature(ikm, ask["node"], claims, material) == body["signature"]:
            return "the database is enough to sign"
    return True if len(tried) > 20 else f"only {len(tried)} were tried"


def seconds(text):
    assert text.endswith("Z")
    return int(datetime.datetime.fromisoformat(text.removesuffix("Z") + "+00:00").timestamp())


def unsealed(node, body, claims, checks):
    """The key, and the text that it came as."""
    if "sealedKey" not in body:
        checks["not sealed"] = same(claims["sealed"], False)
        return base64.b64decode(body["runtimeKey"], validate=True), body["runtimeKey"]
    text = body["sealedKey"]
    parts = text.split(".")
    header = json.loads(unb64u(parts[0]))
    checks["sealed"] = same(claims["sealed"], True)
    checks["no plain key"] = same("runtimeKey" in body, False)
    checks["jwe alg"] = same((header["alg"], header["enc"]), ("ECDH-ES", "A256GCM"))
    checks["jwe direct"] = same((len(parts), parts[1]), (5, ""))
    checks["apu"] = same(unb64u(header["apu"]).decode(), node.ask["cluster"])
    checks["apv"] = same(unb64u(header["apv"]).decode(), node.ask["node"])
    checks["epk"] = same((header["epk"]["crv"], "d" in header["epk"]), (node.ask["seal"], False))
    opener = jwe.JWE()
    opener.allowed_algs = ["ECDH-ES", "A256GCM"]
    opener.deserialize(text, node.ephemeral)
    stranger = jwe.JWE()
    stranger.allowed_algs = ["ECDH-ES", "A256GCM"]
    try:
        stranger.deserialize(text, jwk.JWK.generate(kty="EC", crv=node.ask["seal"]))
        checks["stranger"] = "another key opens it"
    except jwe.InvalidJWEData:
        checks["stranger"] = True
    return opener.payload, text


def check(node, body):
    ask, checks = node.ask, {}
    status, headers, text = node.edge.get("/.well-known/holdfast/capsule-jwks.json", {})
    keys = json.loads(text)["keys"]
    checks["jwks status"] = same((status, headers["Content-Type"]), (200, "application/jwk-set+json"))
    checks["jwks public"] = same([name for key in keys for name in key if name in "dkpq"], [])
    checks["jwks kids"] = same([key["kid"] for key in keys], [thumbprint(key) for key in keys])
    header, claims = verified(body["envelope"], keys)
    checks["header"] = same(sorted(header), ["alg", "kid", "typ"])
    checks["typ"] = same(header["typ"], "runtime-capsule+jwt")
    checks["forged"] = is_forged_found_out(body["envelope"], keys)
    names = ["cluster", "exp", "iat", "jti", "keyHash", "keyVersion", "riskScore", "sealed", "sub"]
    checks["claims"] = same(sorted(claims), names)
    checks["cluster"] = same(claims["cluster"], ask["cluster"])
    for claim, member in [("jti", "capsuleId"), ("sub", "nodeId"), ("keyVersion", "keyVersion"),
                          ("riskScore", "riskScore")]:
        checks[claim] = same(claims[claim], body[member])
    checks["sub is asked"] = same(claims["sub"], ask["node"])
    checks["iat"] = same(abs(claims["iat"] - time.time()) < 60, True)
    checks["times"] = same((claims["iat"], claims["exp"]),
                           (seconds(body["issuedUtc"]), seconds(body["expiresUtc"])))
    checks["lifetime"] = same(claims["exp"] - claims["iat"], 24 * 3600)
    key, material = unsealed(node, body, claims, checks)
    checks["key length"] = same(len(key), 32)
    checks["keyHash"] = same(claims["keyHash"], b64u(sha256(lp(b"capsule-key-hash") + key)))
    checks["derived"] = same(key.hex(), runtime_key(ask, claims).hex())
    made = signature(ask["secret"].encode(), ask["node"], claims, material)
    checks["signature"] = same(body["signature"], made)
    checks["registry forges nothing"] = forgery(ask, claims, body, material)
    facts = {"key": key.hex(), "keyVersion": claims["keyVersion"], "alg": header["alg"],
             "kid": header["kid"], "kids": [key["kid"] for key in keys],
             "envelope": body["envelope"]}
    return facts, checks


def earlier(ask, keys):
    """Whether envelopes of before still hold."""
    return [verified(envelope, keys)[0]["kid"] for envelope in ask.get("earlier", [])]


def main():
    ask = json.load(sys.stdin)
    node = Node(ask)
    status, challenges, headers, body = node.fetch()
    told = {"status": status, "challenges": challenges, "cache": headers["Cache-Control"],
            "reason": body.get("reason"), "facts": {}, "checks": {}}
    if status == 200:
        told["facts"], told["checks"] = check(node, body)
    _, _, text = node.edge.get("/.well-known/holdfast/capsule-jwks.json", {})
    told["earlier"] = earlier(ask, json.loads(text)["keys"])
    print(json.dumps(told))


main()
