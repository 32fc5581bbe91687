"""The files that `dev` writes: other commands find the installation by them, and no secret is in them."""

import shutil
import stat
from pathlib import Path

import pytest

from evergrant_server.cli.dev import settings_file
from evergrant_server.cli.dev.services import _prepare_api
from evergrant_server.cli.keys import create_keys, make_admin_key
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.settings import Settings, load_settings
from evergrant_server.wiring.platform import open_store
from tests.fakes.databases import migrated_sqlite
from tests.fakes.events.webhook_receiver import a_webhook
from tests.fakes.failures import fails


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    return load_settings(port=8555, temporal_address="127.0.0.1:8557", temporal_ui_port=8556)


def test_other_commands_find_the_installation(settings: Settings, tmp_path: Path):
    assert settings_file.write(settings) == tmp_path / "evergrant.env"
    assert settings_file.read(tmp_path / "evergrant.env") == {
        "EVERGRANT_URL": "http://127.0.0.1:8555",
        "EVERGRANT_GATEWAY_URL": "http://127.0.0.1:8483",
        "EVERGRANT_API_KEY_FILE": str(tmp_path / ".evergrant/admin.key"),
    }
    found = settings_file.load_settings_of_dev()
    assert (found.temporal_address, found.public_url) == ("127.0.0.1:8557", "http://127.0.0.1:8555")
    assert load_settings().temporal_address == "", "the next start isn't set by the one before"
    for name in ("evergrant.env", ".evergrant/dev.env"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_a_copy_has_what_its_original_derived(settings: Settings, tmp_path: Path):
    (tmp_path / "password").write_text("s3cret")
    url = "postgresql://user@db.internal/evergrant"
    remote = load_settings(database_url=url, database_password_file=tmp_path / "password")
    assert [it.__replace__() for it in (settings, remote)] == [settings, remote]


def test_dev_remembers_the_hosts_that_it_was_allowed(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    settings_file.write(settings.__replace__(egress_allow=("localhost:9000",)))
    again = settings_file.with_remembered_hosts(load_settings())
    assert again.egress_allow == ("localhost:9000",)
    settings_file.write(again)
    monkeypatch.setenv("EVERGRANT_EGRESS_ALLOW", "localhost:9001")
    assert settings_file.with_remembered_hosts(load_settings()).egress_allow == ("localhost:9001",)
    monkeypatch.setenv("EVERGRANT_EGRESS_ALLOW", "")
    assert settings_file.with_remembered_hosts(load_settings()).egress_allow == (), "it forgets them"


def test_the_environment_wins(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    settings_file.write(settings)
    monkeypatch.setenv("EVERGRANT_TEMPORAL_ADDRESS", "temporal.internal:7233")
    assert settings_file.load_settings_of_dev().temporal_address == "temporal.internal:7233"


def test_a_server_of_temporals_own_variables_wins(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    settings_file.write(settings)
    monkeypatch.setenv("TEMPORAL_ADDRESS", "temporal.internal:7233")
    assert settings_file.load_settings_of_dev().temporal_address == ""


def test_a_copy_of_the_data_folder_does_not_lead_to_the_original(settings: Settings, tmp_path: Path):
    """Else a command that is tried on a backup would change the database in use."""
    settings_file.write(settings)
    shutil.copytree(settings.data_dir, tmp_path / "copy")
    found = settings_file.load_settings_of_dev(data_dir=tmp_path / "copy")
    assert found.database_url == f"sqlite:///{tmp_path}/copy/evergrant.db"


def test_a_file_that_others_can_write_is_not_read(settings: Settings):
    settings_file.write(settings)
    settings_file.server_file(settings.data_dir).chmod(0o620)
    assert settings_file.load_settings_of_dev().temporal_address == ""


def test_a_settings_file_of_the_operator_stays(settings: Settings, tmp_path: Path):
    (tmp_path / "evergrant.env").write_text("EVERGRANT_LEASE_WAIT=5\n")
    assert settings_file.write(settings) is None
    assert (tmp_path / "evergrant.env").read_text() == "EVERGRANT_LEASE_WAIT=5\n"
    assert settings_file.load_settings_of_dev().port == 8555


def test_no_password_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    settings_file.write(load_settings(database_url="postgresql://u:canary@db/evergrant"))
    for file in (tmp_path / "evergrant.env", tmp_path / ".evergrant/dev.env"):
        assert "canary" not in file.read_text()


async def test_no_new_key_file_is_made_beside_a_database_that_needs_the_old_one(tmp_path: Path):
    """What the database sealed would be lost, and nothing would say so until it is read."""
    settings = load_settings(data_dir=tmp_path)
    await migrated_sqlite(tmp_path)
    await create_keys(settings)  # nothing is in the database yet
    await make_admin_key(settings, again=False, out=tmp_path / "admin.key")
    settings.key_path.rename(tmp_path / "backup.json")
    with fails(ErrorCode.KEY_UNAVAILABLE) as refused:
        await create_keys(settings)
    for named in (str(settings.key_path), str(tmp_path / "evergrant.db"), "Restore the file from its backup"):
        assert named in refused.value.detail
    assert not settings.key_path.exists()


@pytest.mark.parametrize("sealed", [False, True])
async def test_another_installations_key_file_is_named_at_the_start(tmp_path: Path, sealed: bool):
    """Else the first words are of a row that nobody altered, and the next ones of a key that is missing."""
    settings = load_settings(data_dir=tmp_path)
    await _prepare_api(settings)
    if sealed:
        async with open_store(settings, Role.OPERATOR) as (store, _), store.write() as tx:
            webhook = a_webhook("https://app.example/hooks", SystemClock().now())
            await tx.webhooks.add(webhook, Secret("whsec_" + "A" * 32))
    await _prepare_api(settings)
    settings.key_path.rename(tmp_path / "ours.json")
    KeyRing.create(settings.key_path)
    with fails(ErrorCode.KEY_UNAVAILABLE) as refused:
        await _prepare_api(settings)
    assert str(settings.key_path) in refused.value.detail
    assert "set EVERGRANT_KEY_FILE to the key file that filled this database" in refused.value.detail.replace(
        "Set", "set"
    )
