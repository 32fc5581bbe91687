"""The controls of SOC 2 and ISO 27001 for which Evergrant has something to show, and by what. Pure.

The numbers of SOC 2 are those of the AICPA's Trust Services Criteria, those of ISO 27001 of Annex A (2022).
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple


class Framework(StrEnum):
    SOC2 = "soc2"
    ISO27001 = "iso27001"


class Topic(StrEnum):
    """What the store, the log and the settings are asked about."""

    ACCESS = "access"
    CHANGES = "changes"
    KEYS = "keys"
    ENDS = "ends"
    AUTHENTICATION = "authentication"
    MONITORING = "monitoring"
    INCIDENTS = "incidents"
    RECORDS = "records"


class Control(NamedTuple):
    id: str
    title: str
    topics: tuple[Topic, ...]


class TopicEvidence(NamedTuple):
    """What was found out about a topic. `query` and `command` give it whole; `lacks` can't be shown."""

    topic: str
    query: str
    command: str
    answer: Mapping[str, object]
    lacks: tuple[str, ...] = ()


_T = Topic
CONTROLS: Mapping[Framework, tuple[Control, ...]] = {
    Framework.SOC2: (
        Control("CC6.1", "Logical access security", (_T.ACCESS, _T.KEYS)),
        Control("CC6.2", "Users are registered and authorized", (_T.CHANGES,)),
        Control("CC6.3", "Roles, least privilege, segregation of duties", (_T.ACCESS, _T.CHANGES)),
        Control("CC6.5", "Disposal of protected data", (_T.ENDS,)),
        Control("CC6.6", "Protection against threats from outside", (_T.AUTHENTICATION,)),
        Control("CC6.7", "Transmission of data is restricted", (_T.AUTHENTICATION,)),
        Control("CC7.2", "Monitoring for anomalies", (_T.MONITORING,)),
        Control("CC7.3", "Evaluation of security events", (_T.MONITORING,)),
        Control("CC7.4", "Response to incidents", (_T.INCIDENTS,)),
        Control("CC8.1", "Changes are authorized", (_T.CHANGES,)),
    ),
    Framework.ISO27001: (
        Control("A.5.15", "Access control", (_T.ACCESS,)),
        Control("A.5.16", "Identity management", (_T.CHANGES, _T.AUTHENTICATION)),
        Control("A.5.18", "Access rights", (_T.ACCESS, _T.CHANGES)),
        Control("A.5.24", "Incident management: planning", (_T.INCIDENTS,)),
        Control("A.5.25", "Assessment of security events", (_T.MONITORING,)),
        Control("A.5.26", "Response to incidents", (_T.INCIDENTS,)),
        Control("A.5.27", "Learning from incidents", (_T.INCIDENTS, _T.MONITORING)),
        Control("A.5.28", "Collection of evidence", (_T.INCIDENTS, _T.RECORDS)),
        Control("A.5.33", "Protection of records", (_T.RECORDS,)),
        Control("A.5.34", "Privacy and protection of personal data", (_T.RECORDS, _T.ENDS)),
        Control("A.8.2", "Privileged access rights", (_T.CHANGES,)),
        Control("A.8.3", "Restriction of access to information", (_T.ACCESS,)),
        Control("A.8.5", "Secure authentication", (_T.AUTHENTICATION,)),
        Control("A.8.10", "Deletion of information", (_T.ENDS,)),
        Control("A.8.15", "Logging", (_T.MONITORING, _T.RECORDS)),
        Control("A.8.16", "Monitoring activities", (_T.MONITORING,)),
        Control("A.8.24", "Use of cryptography", (_T.KEYS,)),
    ),
}
