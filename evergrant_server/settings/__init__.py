"""The settings of a process: what an operator may set, the forms of values, and what is wrong with one.

Owns every variable `EVERGRANT_…`, its default and its check (`settings`; `audit_streams`: those of one
subject), the types of values (`types`) and the words for a mistake (`errors`). Doesn't own what a setting
means to the part that reads it.
"""

from evergrant_server.settings.errors import SETTINGS_FILE, BadSettings
from evergrant_server.settings.settings import Settings, load_settings

__all__ = ["SETTINGS_FILE", "BadSettings", "Settings", "load_settings"]
