"""From the run file's words about machines to each client's profile.  Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping

from securefed.config import ProfileSection
from securefed.engines.naming import named_clients
from securefed.errors import ConfigError
from securefed.federation.capability import CapabilityProfile

_GIB, _BYTES_OF_MBIT = 2**30, 125_000


def profiles_of(
    sections: Mapping[str, ProfileSection], seconds_per_token: float
) -> dict[str, CapabilityProfile]:
    """What each client's machine can do.

    Args:
        sections: of each client (:func:`sections_of`).
        seconds_per_token: of the machine that plans, > 0.
    """
    return {
        name: CapabilityProfile(
            memory=round(section.memory_gib * _GIB),
            seconds_per_token=section.slowdown * seconds_per_token,
            upload=section.upload_mbit * _BYTES_OF_MBIT,
            download=section.download_mbit * _BYTES_OF_MBIT,
            availability=section.availability,
        )
        for name, section in sections.items()
    }


def sections_of(sections: list[ProfileSection], cohort: list[str]) -> dict[str, ProfileSection]:
    """The profile that the run file has for each client of a cohort.

    Raises:
        ConfigError: a client has no profile or two, or a profile names nobody of the cohort.
    """
    found: dict[str, ProfileSection] = {}
    for section in sections:
        if section.clients == "others":
            continue
        for name in section.clients:
            if name not in cohort:
                raise ConfigError(
                    f"cohort.profiles: {name!r} is no client of this run; {named_clients(cohort)}"
                )
            if name in found:
                raise ConfigError(f"cohort.profiles: {name!r} is named twice; give it one profile")
            found[name] = section
    others = [section for section in sections if section.clients == "others"]
    if len(others) > 1:
        raise ConfigError(
            f"cohort.profiles: {len(others)} tables have clients = 'others'; one at most can"
        )
    missing = [name for name in cohort if name not in found]
    if missing and not others:
        raise ConfigError(
            f"cohort.profiles: {missing[0]!r} has none; name it, or give clients = 'others'"
        )
    found |= dict.fromkeys(missing, *others)
    return dict(sorted(found.items()))
