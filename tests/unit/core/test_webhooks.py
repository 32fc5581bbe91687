"""Signing, judged by the Standard Webhooks package; and when what failed is tried again."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook as Judge

from evergrant_server.core.events import DEFAULT_EVENTS, EventType
from evergrant_server.core.ids import EventId
from evergrant_server.core.secret import Secret
from evergrant_server.core.webhook_signatures import new_signing_secret, signed_headers
from evergrant_server.core.webhooks import (
    RETRY_DELAYS,
    Delivery,
    DeliveryProblem,
    DeliveryStatus,
    DisabledBy,
    Webhook,
    delivery_problem,
    endpoint_pause,
    retry_delay,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
GIVE_UP = timedelta(days=5)
ONE, OTHER = new_signing_secret(b"1" * 32), new_signing_secret(b"2" * 32)


@given(body=st.text(max_size=200), raw=st.binary(min_size=24, max_size=64))
def test_what_we_sign_the_standard_package_accepts(body: str, raw: bytes):
    secret = new_signing_secret(raw)
    headers = signed_headers((secret,), EventId("evt_1"), datetime.now(UTC), body)
    Judge(secret.reveal()).verify(body.encode(), headers, json_parse=False)


def test_the_signature_of_the_specification():
    """The vector that the reference libraries carry."""
    secret = Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    at = datetime.fromtimestamp(1614265330, UTC)
    headers = signed_headers((secret,), EventId("msg_p5jXN8AQM9LWM0D4loKWxJek"), at, '{"test": 2432232314}')
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


STATUSES = {
    None: (200, 204, 299),
    DeliveryProblem.REFUSED: (101, 400, 404, 429, 500),
    DeliveryProblem.REDIRECTED: (301, 307),
    DeliveryProblem.GONE: (410,),
}


@pytest.mark.parametrize("problem", STATUSES)
def test_what_a_status_means(problem: DeliveryProblem | None):
    assert {delivery_problem(status) for status in STATUSES[problem]} == {problem}


def a_webhook(**changes: Any) -> Webhook:
    names = {"tenant": "acme", "id": "whk_1", "name": "hooks", "url": "https://hooks.example.com"}
    dates = dict.fromkeys(("secret_changed_at", "created_at", "changed_at"), NOW)
    return Webhook(**{**names, **dates, "events": DEFAULT_EVENTS, **changes})


def a_delivery(**changes: Any) -> Delivery:
    names = {"tenant": "acme", "id": "dlv_1", "webhook_id": "whk_1", "event_id": "evt_1"}
    facts = {"event_type": EventType.CREATED, "next_at": NOW, "created_at": NOW}
    return Delivery(**{**names, **facts, **changes})


def test_a_delivery_is_tried_for_days_and_then_given_up():
    delivery, at = a_delivery(), NOW
    while delivery.next_at is not None:
        at = delivery.next_at
        delivery = delivery.failed(503, DeliveryProblem.REFUSED, at)
    assert delivery.status is DeliveryStatus.FAILED
    assert delivery.attempts == len(RETRY_DELAYS) + 1
    assert timedelta(days=2) < at - NOW < timedelta(days=5)
    assert (delivery.ended_at, delivery.response_status, delivery.problem) == (at, 503, "refused")


def test_a_replay_goes_first_and_has_all_its_tries_again():
    delivery = a_delivery(status=DeliveryStatus.FAILED, attempts=10, tries=10, next_at=None)
    again = delivery.replayed(NOW)
    assert (again.status, again.by_hand, again.tries, again.attempts) == ("pending", True, 0, 10)
    missed = again.failed(None, DeliveryProblem.TIMED_OUT, NOW)
    assert missed.status is DeliveryStatus.PENDING
    assert not missed.by_hand, "from then on it waits like any other"
    delivered = missed.delivered(204, NOW)
    assert (delivered.attempts, delivered.problem, delivered.next_at) == (12, None, None)


@given(tries=st.integers(1, 12), share=st.floats(0, 1, exclude_max=True))
def test_waits_grow_and_are_spread(tries: int, share: float):
    wait = retry_delay(tries, share)
    if tries > len(RETRY_DELAYS):
        assert wait is None
    else:
        assert wait is not None
        assert 0.8 * RETRY_DELAYS[tries - 1] <= wait <= 1.2 * RETRY_DELAYS[tries - 1]


@given(failures=st.integers(1, 10_000), share=st.floats(0, 1, exclude_max=True))
def test_a_pause_is_never_longer_than_a_bit_over_an_hour(failures: int, share: float):
    assert timedelta(seconds=4) <= endpoint_pause(failures, None, share) <= timedelta(minutes=72)
    assert endpoint_pause(1, 7200, 0.5) == timedelta(hours=2)
    assert endpoint_pause(1, 1e12, 0.5) == timedelta(days=1)


def test_an_endpoint_that_fails_for_days_is_disabled_and_one_success_forgives_all():
    webhook, now = a_webhook(), NOW
    while not webhook.disabled:
        assert now - NOW < GIVE_UP + timedelta(hours=2)
        webhook = webhook.failed(now, None, GIVE_UP)
        assert webhook.paused_until is not None
        now = webhook.paused_until
    assert webhook.disabled_by is DisabledBy.FAILING
    assert webhook.failing_since == NOW
    assert webhook.failures < 200, "days of an outage cost calls by the hour, not by the event"
    assert webhook.enabled() == a_webhook()
    assert a_webhook().failed(NOW, None, GIVE_UP).succeeded() == a_webhook()


def test_failures_with_days_between_them_in_which_nothing_was_tried_are_not_one_outage():
    webhook, now = a_webhook(), NOW
    while now < NOW + timedelta(days=3):  # the tries of one event that the receiver never takes
        webhook = webhook.failed(now, None, GIVE_UP)
        now += timedelta(hours=24)
    blip = NOW + timedelta(days=6)
    webhook = webhook.failed(blip, None, GIVE_UP)
    assert (webhook.disabled, webhook.failures, webhook.failing_since) == (False, 1, blip)
