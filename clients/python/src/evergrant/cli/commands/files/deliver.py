"""`evergrant deliver`: a token that is kept fresh in a file, or in Secrets of Kubernetes."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from evergrant.cli.arguments import Scopes, Seconds, argument_error
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import printable
from evergrant.delivery.delivery import Delivery, Format, Look, Order, Pace
from evergrant.delivery.files import TokenFile
from evergrant.transport import ClientOptions

deliver = App(name="deliver")

Flag = Annotated[bool, Parameter(negative=())]
# one order that isn't answered keeps no other from being looked at
_EACH_LEASE_IS_JUDGED = ClientOptions(cache_leases_for=timedelta(0), deadline=timedelta(seconds=10))


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Times:
    """When it looks, renews and gives up."""

    look: Seconds = 15
    "Seconds between looks whether the connection has changed; a revocation is noticed by then."
    lease: Seconds = 300
    "Seconds between leases, each with an audit record; a permit that has ended is noticed by then."
    ahead: Seconds = 300
    "Seconds before its end a token is renewed."
    unanswered: Seconds | None = None
    "Seconds after which a token is deleted where Evergrant doesn't answer; by default when it ends."

    @property
    def pace(self) -> Pace:
        if self.look < 1 or self.lease < self.look:
            raise argument_error("--look is a second or more, and --lease no less than --look")
        unanswered = None if self.unanswered is None else timedelta(seconds=self.unanswered)
        look, lease, ahead = (timedelta(seconds=each) for each in (self.look, self.lease, self.ahead))
        return Pace(look, lease, ahead, unanswered)


USUAL = Times()


@deliver.command
def file(
    path: Path,
    integration: str,
    subject: str,
    /,
    *,
    label: str = "default",
    scope: Scopes = (),
    format: Format = Format.TOKEN,
    mode: str = "0600",
    owner: str | None = None,
    once: Flag = False,
    times: Times = USUAL,
    options: Options = DEFAULTS,
) -> None:
    """Keep a token in a file: replaced before it ends, and deleted once Evergrant refuses it.

    It runs until it is stopped, and leaves the file then.

    Args:
        path: The file, replaced as a whole. A file that is there and wasn't made so is left alone.
        format: token, header (a line for curl -H @FILE), env (ACCESS_TOKEN=…) or json.
        mode: The file's mode.
        owner: USER or USER:GROUP that the file belongs to; needs the right to give it away.
        once: Write it once, and end.
    """
    if not mode.isdecimal() or set(mode) & set("89") or len(mode) > 4:
        raise argument_error("--mode is octal, such as 0640")
    order, pace = Order(integration, subject, label, scope or None, format), times.pace
    place = TokenFile(path, mode=int(mode, 8), owner=owner)
    with options.client(**_EACH_LEASE_IS_JUDGED) as client, place:
        delivery = Delivery(client, order, place, pace)
        if not once:
            _keep(path, delivery)
        elif (problem := (look := delivery.look()).refusal or look.delay) is not None:
            raise problem


def _keep(path: Path, delivery: Delivery) -> None:
    """Look again and again, until the process is stopped."""
    stop, problem_told = _stopped(), ""
    while True:
        look = delivery.look()
        problem_told = _say_look(path, look, problem_told)
        if stop.wait(look.wait_s):
            return


def _say_look(path: Path, look: Look, before: str) -> str:
    """Say what has changed, once; returns what stands now."""
    problem = look.refusal or look.delay
    now = "" if problem is None else f"{problem.code}: {problem.detail}"
    if look.written:
        _say(f"wrote {path}")
    if look.removed:
        _say(f"deleted {path}: {problem}")
    elif now and now != before:
        _say(str(problem))
    return now


@deliver.command
def kubernetes(
    *,
    namespace: str | None = None,
    api_server: str | None = None,
    token_file: Path | None = None,
    times: Times = USUAL,
    options: Options = DEFAULTS,
) -> None:
    """Keep tokens in Secrets of a namespace, for each Secret with the label evergrant/deliver.

    Args:
        namespace: By default that of the pod.
        api_server: The URL of the Kubernetes API, such as that of kubectl proxy; by default the pod's.
        token_file: With api_server: a file with a bearer token for it.
    """
    from evergrant.delivery.kubernetes import Cluster
    from evergrant.delivery.operator import Operator

    pace = times.pace
    if api_server is None:
        cluster = Cluster.of_pod(os.environ, namespace)
    elif namespace is None:
        raise argument_error("--api-server needs --namespace")
    else:
        cluster = Cluster(api_server, namespace, token_file=token_file)
    with options.client(**_EACH_LEASE_IS_JUDGED) as client:
        wake = threading.Event()
        Operator(client, cluster, pace, _say).run(_stopped(wake.set), wake)


def _stopped(also: Callable[[], None] = lambda: None) -> threading.Event:
    """An event that SIGTERM and SIGINT set, which then do `also`."""
    stop = threading.Event()

    def end(*_: object) -> None:
        stop.set()
        also()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
    return stop


def _say(line: str) -> None:
    print(f"evergrant: {printable(line)}", file=sys.stderr, flush=True)
