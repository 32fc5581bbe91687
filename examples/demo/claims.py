"""The demo's claims and their observations. A claim that wasn't observed is a failure."""

from enum import StrEnum

from rich.console import Console
from rich.markup import escape


class Claim(StrEnum):
    """One line each, in the order of the story."""

    CONFIGURED = "an integration, an app and a permit are there"
    CONSENT = "the person consented and the connection is active"
    RESOURCE = "a lease opened the protected resource"
    PIPELINE = "a pipeline signalled for its token and called the resource"
    AGENT = "an agent called the API through the gateway, and wrote once a person had approved that call"
    NOT_HELD = "no token is in the agent's memory"
    ROTATED = "the token expired, after a refresh that rotated its refresh token"
    COALESCED = "50 callers asked at once with an expired token: one refresh"
    SURVIVED = "the worker was killed during a refresh and the connection stayed active"
    REVOKED = "revoked: the authorization server's introspection says active: false"
    REFUSED = "Evergrant refuses the lease from then on"
    HISTORY = "the workflow's history shows every step"
    NO_SECRET = "no token is in any workflow's history"
    ENDED = "everything that was started has ended"


class NotObserved(RuntimeError):
    """The demo observed something else than the claim; the message tells what."""


class Claims:
    """Prints observations as they are made, and the verdict."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._seen: dict[Claim, str] = {}

    def observed(self, claim: Claim, figure: str) -> None:
        """Record a claim as observed, with the observed figure."""
        self._seen[claim] = figure
        self._console.print(f"[green]✓[/] {escape(claim)} [dim]— {escape(figure)}[/]", soft_wrap=True)

    def missing(self) -> list[Claim]:
        return [claim for claim in Claim if claim not in self._seen]

    def conclude(self, seconds: float) -> bool:
        """Print the verdict; True when every claim was observed."""
        missing = self.missing()
        for claim in missing:
            self._console.print(f"[red]✗ not observed:[/] {escape(claim)}", soft_wrap=True)
        if missing:
            self._console.print(f"[red]{len(self._seen)} of {len(Claim)} observed[/] in {seconds:.0f} s")
        else:
            self._console.print(f"[bold green]all {len(Claim)} observed[/] in {seconds:.0f} s")
        return not missing


def expect(condition: bool, seen: str) -> None:
    """Raise NotObserved with the observation unless the condition holds."""
    if not condition:
        raise NotObserved(seen)
