"""A sender with a DPoP key and a token: makes proofs (RFC 9449) with PyJWT."""
import base64
import hashlib
import json
import time
import uuid

import jwt
from cryptography.hazmat.primitives import serialization


class Sender:
    def __init__(self, key_file, token):
        with open(key_file, "rb") as file:
            self.key = serialization.load_pem_private_key(file.read(), None)
        public = jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key())
        self.jwk = json.loads(public)
        self.token = token
        self.nonce = None

    def proof(self, method, url):
        digest = hashlib.sha256(self.token.encode()).digest()
        claims = {
            "jti": str(uuid.uuid4()),
            "htm": method,
            "htu": url,
            "iat": int(time.time()),
            "ath": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
        }
        if self.nonce:
            claims["nonce"] = self.nonce
        headers = {"typ": "dpop+jwt", "jwk": self.jwk}
        return jwt.encode(claims, self.key, algorithm="ES256", headers=headers)

    def headers(self, method, url):
        return [("authorization", "DPoP " + self.token), ("dpop", self.proof(method, url))]
