import base64
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from gpu_daemon.callbacks.signing import secret_bytes, signature_header

OLD, NEW, OTHER = ("whsec_" + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2, 3))
BODY = '{"job_id": "x", "text": "привет"}'


def headers(*secrets: str) -> dict[str, str]:
    timestamp_s = int(datetime.now(UTC).timestamp())
    signed = signature_header(
        [secret_bytes(secret) for secret in secrets], webhook_id="msg_1", timestamp_s=timestamp_s, body=BODY.encode()
    )
    return {"webhook-id": "msg_1", "webhook-timestamp": str(timestamp_s), "webhook-signature": signed}


@pytest.mark.parametrize("receiver", [OLD, NEW])
def test_the_reference_library_verifies_us_while_secrets_change(receiver: str) -> None:
    assert Webhook(receiver).verify(BODY, headers(NEW, OLD)) == {"job_id": "x", "text": "привет"}


def test_another_secret_or_another_body_is_refused() -> None:
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(BODY, headers(NEW, OLD))
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW).verify(BODY.replace("x", "y"), headers(NEW))


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_short", NEW.removeprefix("whsec_"), NEW + "!"])
def test_a_secret_that_is_none_is_explained(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_"):
        secret_bytes(secret)
