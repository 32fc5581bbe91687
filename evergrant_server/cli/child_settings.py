"""The settings of a process, as variables for the processes that it starts."""

from evergrant_server.settings import BadSettings, Settings, load_settings
from evergrant_server.settings.types import without_password

_PASSED_TO_CHILDREN = (
    "data_dir",
    "database_url",
    "key_file",
    "host",
    "port",
    "public_url",
    "api_workers",
    "gateway_host",
    "gateway_port",
    "gateway_public_url",
    "temporal_address",
    "temporal_namespace",
    "temporal_task_queue",
    "temporal_ui_url",
    "allow_unbound_consent",
    "log_level",
    "log_format",
)


def settings_environment(settings: Settings) -> dict[str, str]:
    """The variables that give a child process these settings, without a secret that it reads from a file.

    Each further child inherits them, and every process of the same user can read them.
    """
    values = {f"EVERGRANT_{name.upper()}": str(getattr(settings, name)) for name in _PASSED_TO_CHILDREN}
    values["EVERGRANT_EGRESS_ALLOW"] = ",".join(settings.egress_allow)
    if settings.database_password_file is not None and not settings.uses_sqlite:
        values["EVERGRANT_DATABASE_URL"] = without_password(settings.database_url)
        values["EVERGRANT_DATABASE_PASSWORD_FILE"] = str(settings.database_password_file.absolute())
    elif _is_read_without_flags(settings.database_url):
        del values["EVERGRANT_DATABASE_URL"]
    return values


def _is_read_without_flags(database_url: str) -> bool:
    """Whether a child that starts in this folder reads this URL by itself, perhaps from the settings file."""
    try:
        return load_settings().database_url == database_url
    except BadSettings:  # a flag replaces the setting that is wrong
        return False
