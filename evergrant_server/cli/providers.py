"""`providers`: the commands about the catalogue. Each imports its work when it runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from evergrant_server.process import exit_process

Output = Annotated[Literal["text", "json"], Parameter(name=["--output", "-o"])]

providers = App(name="providers", help="The provider catalogue.")


@providers.command(name="check")
def check_providers(
    *,
    catalog: Path | None = None,
    vectors: Path | None = None,
    sources: bool = False,
    output: Output = "text",
) -> None:
    """Check every provider definition and exchange vector for contradictions and omissions.

    Sends no request. Exits 0 when nothing is wrong, otherwise 1 with file, field and repair.

    Args:
        catalog: A folder of definitions; default: the checkout's own.
        vectors: A folder of exchange vectors; default: the checkout's own.
        sources: List instead what each entry rests on, and when it was changed last.
        output: `text`, or `json`: the counts, and problems with `file`, `field`, `what` and `repair`.
    """
    from evergrant_server.cli import provider_check

    if not provider_check.run(catalog, vectors, output, sources=sources):
        exit_process(1)


@providers.command(name="explain")
def explain_reply(
    name: str,
    /,
    *,
    status: int,
    body: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
    header: tuple[str, ...] = (),
    at: Literal["refresh", "exchange", "device", "revocation"] = "refresh",
    should_be: Literal["dead_token", "dead_code", "subject", "client", "passing"] | None = None,
    source: str = "unverified",
    out: Path | None = None,
    output: Output = "text",
) -> None:
    """Say what a provider's reply is read as, by which rule of which file, and whose turn it is.

    Sends no request. If the reading is wrong, say what the reply should be: a vector is written, without what
    looks like a secret or a name, for your report and for `providers try --vector`. Read every line of it
    before you give it away.

    Args:
        name: A provider of the catalogue; `generic` for a server that publishes metadata.
        status: The reply's HTTP status.
        body: A file with its body, - for the standard input; default: none.
        header: One of its headers, as "NAME: VALUE".
        at: What was requested.
        should_be: What it is rightly, by whose turn it is: `client` is the integration's admin's.
        source: Where the reply is documented or was seen: a public page or issue.
        out: The vector's file; by default NAME.observed.yaml. One that is there gets one more refusal.
        output: `text` or `json`.
    """
    from evergrant_server.cli import misreading

    seen = misreading.Seen(name, status, header, misreading.body_in(body), at)
    misreading.explain(seen, output)
    if should_be is not None:
        misreading.write(seen, should_be, source, out or Path(f"{name}.observed.yaml"))


@Parameter(name="*")
@dataclass(frozen=True)
class TrialArguments:
    """The options of `providers try`. A client secret is none: every process could read it."""

    definition: Path | None = None
    "A definition of your own, in the catalogue's format."

    issuer: str | None = None
    "The issuer of a server that publishes metadata."

    client_id: str | None = None
    "Your client there; by default EVERGRANT_TRY_CLIENT_ID, or a prompt."

    client_secret_file: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None
    "A file with its secret, - for the standard input; by default EVERGRANT_TRY_CLIENT_SECRET, or a prompt."

    redirect_uri: str = "http://127.0.0.1:8477/callback"
    "Registered with your client. If it isn't http on this machine, you paste the URL that the browser shows."

    param: tuple[str, ...] = ()
    "A parameter of the provider's URLs, as NAME=VALUE."

    scope: tuple[str, ...] = ()
    "A scope to request; by default the definition's."

    flow: Literal["authorization_code", "device_code", "client_credentials"] | None = None
    "By default the first of these that the definition has."

    wrong_secret: bool = False
    "Try a wrong client secret too."

    reuse: bool = False
    "Use a rotated refresh token a second time, which may end the grant."

    second_grant: bool = False
    "Walk a second consent, and see whether it outlives the revocation of the first."

    vector: Path | None = None
    "Send nothing: say what the definition reads each refusal of this vector as. Exits with 1 if one differs."

    out: Path | None = None
    "The vector's file; by default NAME.observed.yaml. It may not exist yet."

    browser: bool = True
    "Open the consent in your browser; otherwise its URL is only printed."

    wait: float = 600
    "Seconds to wait for the consent."

    egress_allow: str | None = None
    "Hosts that may be private or plain http: HOST:PORT,…; by default EVERGRANT_EGRESS_ALLOW."

    output: Output = "text"
    "`text`, or `json`: a list of objects with `step`, `saw`, `definition` and `differs`."


@providers.command(name="try")
def try_provider(name: str | None = None, /, *, arguments: TrialArguments | None = None) -> None:
    """Try a provider with your own client: consent, refresh, a dead refresh token, revocation.

    Walks one consent in your browser, sends the requests that a worker sends, and says for each step what
    it saw, what the definition says and what differs. Revokes what it obtained, also after Ctrl-C. Stores
    nothing but a vector without secrets, which you may contribute (docs/guide/adding-a-provider.md).

    Args:
        name: A provider of the catalogue; left out with --definition or --issuer.
    """
    from evergrant_server.cli import misreading, provider_try

    options = arguments or TrialArguments()
    if options.vector is None:
        provider_try.run(name, options)
    elif not misreading.compare(name, options, options.vector):
        exit_process(1)
