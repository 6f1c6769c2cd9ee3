"""Signatures by Standard Webhooks 1.0 (pure)."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

PREFIX = "whsec_"
MIN_BYTES, MAX_BYTES = 24, 64


def secret_bytes(secret: str) -> bytes:
    """From its usual form `whsec_` + base64. Raises ValueError with what to change."""
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith(PREFIX) or not MIN_BYTES <= len(key) <= MAX_BYTES:
        raise ValueError(f"a secret is {PREFIX} and {MIN_BYTES} to {MAX_BYTES} random bytes in base64")
    return key


def signature_header(secrets: Sequence[bytes], *, webhook_id: str, timestamp_s: int, body: bytes) -> str:
    """One signature per secret, so that a receiver may change from an old one to a new one at its own time."""
    signed = f"{webhook_id}.{timestamp_s}.".encode() + body
    digests = (hmac.new(secret, signed, hashlib.sha256).digest() for secret in secrets)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)
