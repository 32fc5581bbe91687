"""Two persons' approvals of a promotion."""

from datetime import timedelta

import pytest

from evergrant_server.regions.approvals import approve, new_approver, order, public_keys, who_approved
from tests.fakes.databases import NOW


def test_an_approval_counts_for_its_promotion_its_person_and_its_hour():
    (alice, alice_entry), (bob, bob_entry), (eve, _) = (
        new_approver(name) for name in ("alice", "bob", "eve")
    )
    keys = public_keys([alice_entry, bob_entry])
    ordered = order("b", "a", 3, NOW)
    by_alice, by_bob = f"alice={approve(alice, ordered)}", f"bob={approve(bob, ordered)}"
    forged = [
        f"bob={approve(eve, ordered)}",
        f"eve={approve(eve, ordered)}",
        f"bob={by_alice[6:]}",
        "bob=x",
        "",
    ]

    def approved(*approvals: str, epoch: int = 3, later: timedelta = timedelta(0)) -> set[str]:
        return who_approved(approvals, keys, "b", "a", epoch, NOW + later)

    assert approved(by_alice, by_bob, *forged) == {"alice", "bob"}
    assert approved(by_alice, by_alice, *forged) == {"alice"}
    assert approved(by_alice, by_bob, epoch=4) == set()
    assert approved(by_alice, later=timedelta(hours=1)) == {"alice"}
    assert approved(by_alice, later=timedelta(hours=2)) == set()


@pytest.mark.parametrize("entry", ["alice", "=abc", "alice=abc", "alice=ä"])
def test_an_entry_that_is_no_key_is_refused(entry: str):
    with pytest.raises(ValueError):  # noqa: PT011 three libraries' words
        public_keys([entry])
