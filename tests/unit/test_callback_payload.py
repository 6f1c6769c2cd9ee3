import json

from gpu_daemon.jobs.callback import with_delivery

PAYLOAD = '{"job_id" : "0f8b8f4e", "result" : {"text": "Привет \\u0000 \\"", "n": 1.10}, "metadata" : null}'


def test_the_delivery_is_added_to_the_text_that_was_stored() -> None:
    sent = with_delivery(PAYLOAD, 1_700_000_000_000)
    assert sent.startswith(PAYLOAD[:-1])
    assert json.loads(sent) == {
        **json.loads(PAYLOAD),
        "callback": {"delivered": True, "delivered_at_ms": 1_700_000_000_000, "error": None},
    }
