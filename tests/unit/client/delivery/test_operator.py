"""The operator on a scripted Kubernetes API: what it writes, what it never touches, and when it deletes."""

import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from evergrant import Evergrant
from evergrant.delivery.delivery import Pace
from evergrant.delivery.kubernetes import MANAGER, Cluster, ClusterError
from evergrant.delivery.operator import Operator

from tests.fakes.patience import PATIENCE_S
from tests.unit.client.delivery.scripted_cluster import ACCOUNT, NAMESPACE, ScriptedCluster
from tests.unit.client.scripted_evergrant import (
    TOKEN,
    ScriptedEvergrant,
    ScriptedResponse,
    connection,
    lease,
    problem,
)

ENCODED = b64encode(TOKEN.encode()).decode()
REVOKED = problem(409, "ReconnectNeeded", "connection_revoked")
LEASE, CONNECTION = "POST /v1/lease", "GET /v1/connections/con_1"


@pytest.fixture
def cluster() -> Iterator[ScriptedCluster]:
    with ScriptedCluster().running() as cluster:
        yield cluster


class Bench(SimpleNamespace):
    evergrant: ScriptedEvergrant
    cluster: ScriptedCluster
    operator: Operator
    lines: list[str]
    now: float = 0.0

    def round(self, after: float = 15, *, changed: bool = True) -> float:
        self.now += after
        return self.operator.round(changed=changed)


@pytest.fixture
def made(
    evergrant: ScriptedEvergrant, cluster: ScriptedCluster, tmp_path: Path, no_pauses: None
) -> Iterator[Callable[[], Bench]]:
    """Makes operators, each as a new process would be."""
    (tmp_path / "account").write_text(ACCOUNT + "\n")
    evergrant.script(LEASE, lease())
    evergrant.script(CONNECTION, ScriptedResponse(200, connection(revision=3)))
    inner = Cluster(cluster.url, NAMESPACE, token_file=tmp_path / "account")
    with Evergrant(evergrant.url, "evg_key_canary", cache_leases_for=timedelta(0)) as client:

        def make() -> Bench:
            bench = Bench(evergrant=evergrant, cluster=cluster, lines=[], inner=inner)
            bench.operator = Operator(client, inner, Pace(), bench.lines.append, lambda: bench.now)
            return bench

        yield make
    inner.close()


@pytest.fixture
def bench(made: Callable[[], Bench]) -> Bench:
    return made()


def test_an_order_gets_a_secret_that_it_owns(bench: Bench):
    order = bench.cluster.order()
    assert bench.round() == 15
    secret = bench.cluster.secrets["report-token"].shown()
    (owner,) = secret["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"], owner["name"]) == (order.uid, True, "report")
    assert secret["data"] == {"token": ENCODED}
    assert secret["metadata"]["managedFields"] == [{"manager": MANAGER}]
    assert secret["metadata"]["annotations"]["evergrant/generation"] == "7"
    assert bench.cluster.text("report") == ""  # the order itself holds none
    version = bench.cluster.secrets["report-token"].version
    bench.round()
    assert bench.cluster.secrets["report-token"].version == version
    assert bench.lines == ["wrote report-token for report"]


def test_the_annotations_say_what_is_written_where(bench: Bench):
    bench.cluster.order(secret="elsewhere", key="header", format="header", scopes="read write", label="work")
    bench.round()
    text = b64encode(f"Authorization: Bearer {TOKEN}\n".encode()).decode()
    assert bench.cluster.text("elsewhere", "header") == text
    body = bench.evergrant.requests[-1].body
    assert (body["scopes"], body["label"]) == (["read", "write"], "work")


def test_another_token_replaces_the_one_before(bench: Bench):
    bench.cluster.order()
    bench.round()
    bench.evergrant.script(LEASE, lease(access_token="canary-2", generation=8))
    bench.evergrant.script(CONNECTION, ScriptedResponse(200, connection(revision=4)))
    bench.round()
    assert bench.cluster.text("report-token") == b64encode(b"canary-2").decode()


def test_a_secret_is_deleted_once_its_lease_is_refused_and_the_order_says_why(bench: Bench):
    bench.cluster.order()
    bench.round()
    bench.evergrant.script(LEASE, REVOKED)
    bench.evergrant.script(CONNECTION, ScriptedResponse(200, connection(revision=5)))
    bench.round()
    assert "report-token" not in bench.cluster.secrets
    assert bench.cluster.problem() == "connection_revoked: the reason"
    bench.evergrant.script(LEASE, lease())
    bench.round(after=60)
    assert bench.cluster.text("report-token") == ENCODED
    assert bench.cluster.problem() is None


def test_an_order_that_goes_takes_its_secret_with_it(bench: Bench):
    bench.cluster.order()
    bench.round()
    bench.cluster.put("report", labels={}, annotations={})  # the label is taken away
    bench.round()
    assert "report-token" not in bench.cluster.secrets


def test_an_order_that_names_another_secret_leaves_none_behind(bench: Bench):
    bench.cluster.order()
    bench.round()
    bench.cluster.order(secret="elsewhere")
    bench.round()
    assert bench.cluster.text("elsewhere") == ENCODED
    assert "report-token" not in bench.cluster.secrets


def test_what_was_written_for_an_order_that_went_meanwhile_is_deleted(made: Callable[[], Bench]):
    first = made()
    first.cluster.order()
    first.cluster.order("other")
    first.round()
    first.cluster.delete("report")
    second = made()
    second.round()
    assert {name for name in second.cluster.secrets} == {"other", "other-token"}


@pytest.mark.parametrize("theirs", [{}, {"ownerReferences": [{"uid": "uid-9", "controller": True}]}])
def test_a_secret_of_others_is_never_touched(bench: Bench, theirs: dict[str, Any]):
    bench.cluster.put("report-token", data={"token": "dGhlaXJz"}, **theirs)
    before = bench.cluster.secrets["report-token"].shown()
    bench.cluster.order()
    bench.round()
    assert bench.cluster.secrets["report-token"].shown() == before
    assert bench.cluster.problem() == "order_invalid: the Secret report-token isn't of this order"
    bench.evergrant.script(LEASE, REVOKED)
    bench.round()
    assert bench.cluster.secrets["report-token"].shown() == before


def test_a_secret_that_is_made_at_the_same_moment_gets_back_what_was_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    bench.cluster.order()
    apply = bench.cluster.apply

    def after_somebody(name: str, body: dict[str, object], manager: str):
        if name == "report-token" and name not in bench.cluster.secrets:
            apply(name, {"data": {"password": "dGhlaXJz"}}, "kubectl")
        return apply(name, body, manager)

    monkeypatch.setattr(bench.cluster, "apply", after_somebody)
    bench.round()
    assert bench.cluster.secrets["report-token"].shown()["data"] == {"password": "dGhlaXJz"}
    assert "ownerReferences" not in bench.cluster.secrets["report-token"].shown()["metadata"]


@pytest.mark.parametrize(
    ("annotations", "complaint"),
    [
        ({"subject": ""}, "the annotation evergrant/subject is missing"),
        ({"secret": "a-wrong-one"}, "the name of another Secret"),
        ({"secret": "../x"}, "the name of another Secret"),
        ({"key": "a/b"}, "evergrant/key is no key"),
        ({"format": "xml"}, "evergrant/format is one of token, header, env, json"),
    ],
)
def test_an_order_that_cant_be_read_says_so_and_stops_no_other(
    bench: Bench, annotations: dict[str, str], complaint: str
):
    bench.cluster.order("a-wrong-one", **annotations)
    bench.cluster.order()
    bench.round()
    assert complaint in str(bench.cluster.problem("a-wrong-one"))
    assert bench.cluster.text("report-token") == ENCODED


def test_while_the_cluster_refuses_it_is_tried_again(bench: Bench):
    bench.cluster.order()
    bench.cluster.refused = 503
    assert bench.round() == 5
    bench.cluster.refused = 0
    bench.round(after=5)
    assert bench.cluster.text("report-token") == ENCODED


def test_no_token_is_in_a_line_or_an_annotation(bench: Bench):
    bench.cluster.order()
    bench.round()
    shown = [secret.shown()["metadata"] for secret in bench.cluster.secrets.values()]
    assert TOKEN not in str(bench.lines) + str(shown)
    assert ENCODED not in str(bench.lines) + str(shown)


def test_a_watch_wakes_the_operator_and_a_lost_one_begins_anew(bench: Bench):
    stop, wake = threading.Event(), threading.Event()
    thread = threading.Thread(target=bench.operator.run, args=(stop, wake))
    thread.start()

    def until(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    try:
        until(bench.cluster.watching)
        bench.cluster.order()
        until(lambda: bench.cluster.text("report-token"))
        bench.cluster.end_watches()
        until(bench.cluster.watching)
        bench.cluster.order("second")
        until(lambda: bench.cluster.text("second-token"))
    finally:
        stop.set()
        wake.set()
        bench.cluster.end_watches()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_outside_a_pod_the_command_says_what_to_give():
    with pytest.raises(ClusterError) as refused:
        Cluster.of_pod({})
    assert "--api-server" in refused.value.repair
