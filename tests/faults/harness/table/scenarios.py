"""The ways that a refresh and a code exchange can take through the code: together they pass every point."""

from evergrant_server.core.integrations import Rotation
from tests.fakes.providers.scripted_provider import (
    Answer,
    delay,
    drop,
    drop_after_commit,
    error,
    hold_answer,
    ok,
    raw,
    status,
)
from tests.faults.harness.instrumentation.passages import AFTER, BEFORE, Fault
from tests.faults.harness.instrumentation.points import labelled
from tests.faults.harness.table.scenario import (
    AFTER_A_LOST_ANSWER,
    BESIDE_A_WITNESS,
    CONFIRM,
    CROOKED,
    EXCHANGE,
    FOR_DAYS,
    JOURNALLED,
    LAPSE,
    LIMITED,
    NARROWING,
    ON_TRIAL,
    PROVING,
    REFRESH,
    Scenario,
)


def _refused(rotation: Rotation) -> tuple[Answer, ...]:
    return (error("invalid_grant"), error("invalid_grant"), error("invalid_grant"))


def _answered_then_refused(rotation: Rotation) -> tuple[Answer, ...]:
    """The second use is refused: a strict server does so by itself."""
    return () if rotation is Rotation.STRICT else (ok(), error("invalid_grant"))


def _nonce_wanted(rotation: Rotation) -> tuple[Answer, ...]:
    """Nothing was done but to ask for a nonce (RFC 9449 section 8)."""
    headers = {"Content-Type": "application/json", "DPoP-Nonce": "n-1"}
    return (raw(b'{"error": "use_dpop_nonce"}', 400, headers),)


SENDING = labelled("the request is sent")
COMMITTED = labelled("the commit", ".exit")
LOST_COMMIT = Fault(point=COMMITTED, side=AFTER, kind="lost", answered_by="store")
READ_TOO_LATE = Fault(point=SENDING, side=AFTER, kind="stop")
UNEXPECTED = Fault(point=labelled("the library answers"), side=AFTER, kind="lost", answered_by="unexpected")
STORE_AWAY = Fault(
    point=labelled("the commit", ".enter"),
    side=AFTER,
    kind="lost",
    answered_by="store",
    lasts=True,
)
CONSENT_LOADED = labelled("the consent is loaded", ".exit")
LOST_CONSENT = Fault(point=CONSENT_LOADED, side=AFTER, kind="lost", answered_by="store")
LOOKED_TOO_SOON = Fault(point=CONSENT_LOADED, side=AFTER, kind="stop")

UNSENT = Fault(point=SENDING, side=BEFORE, kind="die")
STOPPED = Fault(point=SENDING, side=BEFORE, kind="stop")
KEPT_AND_STOPPED = Fault(point=JOURNALLED, side=AFTER, kind="stop")
UNHEARD = Fault(point=SENDING, side=AFTER, kind="die")

SCENARIOS = (
    Scenario("refresh", REFRESH, leased=True),
    Scenario("code exchange", EXCHANGE),
    Scenario("refresh, refused", REFRESH, _refused, refused=True),
    Scenario(
        "refresh, an unknown error keeps coming back",
        REFRESH,
        lambda _: (error("invented"),) * 3,
        refused=True,
        recurs=FOR_DAYS,
        layouts=("one worker",),
        rotations=(Rotation.STRICT,),
    ),
    Scenario(
        "refresh, a 500 keeps coming back",
        REFRESH,
        lambda _: (status(500),) * 3,
        refused=True,
        recurs=FOR_DAYS,
        layouts=("one worker",),
        rotations=(Rotation.STRICT,),
    ),
    Scenario(
        "refresh, refused again after a lost answer",
        REFRESH,
        lambda _: (error("invented"),) * 3,
        refused=True,
        recurs=AFTER_A_LOST_ANSWER,
        layouts=("one worker",),
        rotations=(Rotation.STRICT,),
    ),
    Scenario(
        "refresh, refused as a token is that doesn't exist",
        REFRESH,
        lambda _: (error("invented"),) * 4,
        refused=True,
        recurs=BESIDE_A_WITNESS,
        layouts=("one worker",),
        rotations=(Rotation.STRICT,),
    ),
    Scenario(
        "refresh, a caller comes once there is evidence",
        REFRESH,
        lambda _: (error("invented"),) * 4,
        refused=True,
        looks=True,
        recurs=BESIDE_A_WITNESS,
        layouts=("one worker",),
        rotations=(Rotation.STRICT,),
    ),
    Scenario(
        "refresh, refused by a passing error, and a token that doesn't exist by another",
        REFRESH,
        lambda _: (error("invented"), error("invalid_grant")),
        recurs=BESIDE_A_WITNESS,
        layouts=("one worker",),
        rotations=(Rotation.STRICT,),
    ),
    Scenario("refresh, connection closed without acting", REFRESH, lambda _: (drop(),)),
    Scenario("refresh, definition can't be used", REFRESH, refused=True, provider=CROOKED),
    Scenario("refresh, nothing to refresh with", REFRESH, refused=True, refreshable=False),
    Scenario("refresh, the commit's answer lost", REFRESH, faults=(LOST_COMMIT,)),
    Scenario(
        "refresh, answer read too late",
        REFRESH,
        _answered_then_refused,
        faults=(READ_TOO_LATE,),
        refused=True,
    ),
    Scenario(
        "refresh, refusal read too late",
        REFRESH,
        lambda _: (error("invalid_grant"), ok()),
        faults=(READ_TOO_LATE,),
        refused=True,  # unless another host went on meanwhile
    ),
    Scenario("code exchange, answer read too late", EXCHANGE, faults=(READ_TOO_LATE,), refused=True),
    Scenario("refresh, a library's mistake", REFRESH, faults=(UNEXPECTED,), refused=True),
    Scenario("refresh, in a queue after an outage", REFRESH, queued=True),
    Scenario(
        "refresh ahead, within its provider's limit",
        REFRESH,
        provider=LIMITED,
        ahead=True,
        layouts=("one worker",),
        rotations=(Rotation.STRICT,),
    ),
    Scenario("refresh, definition on trial works", REFRESH, provider=ON_TRIAL),
    Scenario(
        "refresh, definition on trial fails",
        REFRESH,
        lambda _: (error("invalid_grant"), ok()),
        provider=ON_TRIAL,
    ),
    Scenario(
        "refresh, definition on trial is passed over",
        REFRESH,
        provider=ON_TRIAL,
        replayed=True,
        leaves=UNHEARD,
        rotations=(Rotation.NONE,),
    ),
    Scenario(
        "refresh, a second use refused too late",
        REFRESH,
        lambda _: (drop(), error("invalid_grant"), ok()),
        faults=(READ_TOO_LATE.model_copy(update={"passage": 2}),),
        refused=True,  # unless another host went on meanwhile
        rotations=(Rotation.NONE,),
    ),
    Scenario("refresh, for a narrower token", REFRESH, provider=NARROWING, scopes=("read",)),
    Scenario(
        "refresh, for a narrower token that is refused",
        REFRESH,
        lambda _: (error("invalid_scope"),),
        provider=NARROWING,
        scopes=("read",),
        rotations=(Rotation.STRICT,),
    ),
    Scenario(
        "refresh, a narrower token in a journal",
        REFRESH,
        provider=NARROWING,
        scopes=("read",),
        replayed=True,
        rotations=(Rotation.STRICT,),
    ),
    Scenario("refresh, worker shut down meanwhile", REFRESH, held=True),
    Scenario(
        "refresh, worker shut down while the store is away",
        REFRESH,
        faults=(STORE_AWAY,),
        held=True,
        ends=True,
    ),
    Scenario("refresh, a proof lacks its nonce", REFRESH, _nonce_wanted, provider=PROVING),
    Scenario(
        "refresh, two answers lost",
        REFRESH,
        lambda _: (drop_after_commit(), drop_after_commit()),
        refused=True,
    ),
    Scenario("refresh, secret rotated too early", REFRESH, secrets="rotated too early"),
    Scenario("refresh, no secret is right", REFRESH, secrets="wrong", refused=True),
    Scenario("refresh, answer in a journal", REFRESH, replayed=True),
    Scenario("code exchange, answer in a journal", EXCHANGE, replayed=True),
    Scenario(
        "refresh, answer in a neighbour's journal",
        REFRESH,
        replayed=True,
        neighbour=True,
        rotations=(Rotation.STRICT,),  # others send again sooner than they look
    ),
    Scenario(
        "refresh, answer in a stopped neighbour's journal",
        REFRESH,
        replayed=True,
        neighbour=True,
        leaves=KEPT_AND_STOPPED,
        layouts=("one worker", "two, one host"),
    ),
    Scenario("refresh, a dead worker's room", REFRESH, replayed=True, leaves=UNSENT),
    Scenario(
        "refresh, a dead worker's room, not swept yet",
        REFRESH,
        replayed=True,
        leaves=UNSENT,
        sweeps_late=True,
    ),
    Scenario("refresh, a dead neighbour's room", REFRESH, replayed=True, neighbour=True, leaves=UNSENT),
    Scenario(
        "refresh, a stopped neighbour is fenced off",
        REFRESH,
        replayed=True,
        neighbour=True,
        leaves=STOPPED,
        layouts=("two, one host",),
    ),
    Scenario(
        "refresh, fenced off with an answer",
        REFRESH,
        _answered_then_refused,
        faults=(READ_TOO_LATE,),
        refused=True,
        layouts=("two, one host",),
    ),
    Scenario(
        "refresh, an answer crosses its successor",
        REFRESH,
        faults=(READ_TOO_LATE,),
        refused=True,
        crosses=hold_answer,
        layouts=("two, one host",),
        rotations=(Rotation.STRICT,),
    ),
    Scenario(
        "refresh, an answer crosses a use that has none",
        REFRESH,
        faults=(READ_TOO_LATE,),
        crosses=lambda gate: delay(gate, drop()),
        layouts=("two, one host",),
        rotations=(Rotation.STRICT,),
    ),
    Scenario("code exchange, confirmed by its app", CONFIRM, rotations=(Rotation.STRICT,)),
    Scenario(
        "code exchange, another subject came back",
        CONFIRM,
        refused=True,
        subject="user-2",
        rotations=(Rotation.STRICT,),
    ),
    Scenario("code exchange, confirmed too late", CONFIRM, late=True, rotations=(Rotation.STRICT,)),
    Scenario("code exchange, not confirmed", LAPSE, late=True, rotations=(Rotation.STRICT,)),
    Scenario("code exchange, refused", EXCHANGE, _refused, refused=True),
    Scenario("code exchange, consent never started", EXCHANGE, started=False, refused=True),
    Scenario("code exchange, store away at first", EXCHANGE, faults=(LOST_CONSENT,)),
    Scenario(
        "code exchange, done by another meanwhile",
        EXCHANGE,
        faults=(LOOKED_TOO_SOON,),
        layouts=("two, one host", "two hosts"),
        rotations=(Rotation.STRICT,),
    ),
    Scenario(
        "refresh, tokens that its definition can't read", REFRESH, unread=True, rotations=(Rotation.STRICT,)
    ),
    Scenario(
        "code exchange, tokens that its definition can't read",
        EXCHANGE,
        unread=True,
        rotations=(Rotation.STRICT,),
    ),
)
