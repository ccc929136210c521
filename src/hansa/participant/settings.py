"""participant.toml: who this participant is, what it pins of its consortium, where the coordinator is, what it shows."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from hansa.federation.fields import Address, ParticipantName, Slug
from hansa.federation.invitations import Addresses, Invitation
from hansa.federation.settings_files import Settings, load_settings

FILE_NAME = "participant.toml"


class Pinned(Settings):
    """What is pinned of the consortium."""

    name: Slug = Field(description="short name of the consortium")
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(
        description="fingerprint of the consortium, which was compared when this participant joined"
    )


class Metrics(Settings):
    """The agent's status page. Without this section there is none."""

    listen: Address = Field(description="host:port on loopback, such as 127.0.0.1:9448")


class ParticipantSettings(Settings):
    """The keys of participant.toml."""

    schema_version: Literal["hansa/participant/v1"] = Field(
        alias="schema", description="version of the format"
    )
    name: ParticipantName = Field(description="name in the consortium")
    consortium: Pinned = Field(description="what is pinned of the consortium")
    addresses: Addresses = Field(description="where the coordinator's services are")
    metrics: Metrics | None = Field(default=None, description="status page of the agent; default: none")


def load_participant_settings(home: Path) -> ParticipantSettings:
    """Read participant.toml of a home; raises as `load_settings` does."""
    return load_settings(home / FILE_NAME, ParticipantSettings)


def participant_toml(invitation: Invitation) -> str:
    """Write the file that a new participant begins with."""
    lines = [
        "# Settings of a hansa participant; docs/pki.md lists the keys. Data sets stand in datasets.toml.",
        'schema = "hansa/participant/v1"',
        f'name = "{invitation.participant}"',
        "",
        "[consortium]  # pinned: never change it; another consortium needs another home",
        f'name = "{invitation.name}"',
        f'fingerprint = "{invitation.fingerprint.hex()}"',
        "",
        "[addresses]  # where the coordinator's services are",
        *(f'{key} = "{value}"' for key, value in invitation.addresses.model_dump().items()),
        "",
        "# [metrics]  # health and metrics of the agent, on loopback only; without this section there are none",
        '# listen = "127.0.0.1:9448"',
    ]
    return "\n".join(lines) + "\n"
