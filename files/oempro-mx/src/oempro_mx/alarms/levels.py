"""From looks that may differ by chance to a level that is worth being told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from oempro_mx.model import Finding, State

LEVELS = {State.OK: 0, State.COULD_NOT_LOOK: 1, State.WARN: 1, State.FAIL: 2}
WELL, FAILING = 0, LEVELS[State.FAIL]
LOOKS = 3  # that are remembered of each name


def worst(findings: Iterable[Finding]) -> dict[str, Finding]:
    """Return the worst finding of each name."""
    found: dict[str, Finding] = {}
    for finding in findings:
        if finding.name not in found or LEVELS[finding.state] > LEVELS[found[finding.name].state]:
            found[finding.name] = finding
    return found


def extended(
    history: Mapping[str, list[int]], findings: Mapping[str, Finding]
) -> dict[str, list[int]]:
    """Add a look to the last ones of each name. Names that were well at all of them are left out.

    A name that is not found is well: some stand for failures only.
    """
    looks = {
        name: [
            *history.get(name, []),
            LEVELS[findings[name].state] if name in findings else WELL,
        ][-LOOKS:]
        for name in {*history, *findings}
    }
    return {name: levels for name, levels in looks.items() if any(levels)}


def settled(told: int, looks: list[int]) -> int:
    """Return the level to be told, when `told` is what was told last.

    It rises to what two of the last three looks have at least, and falls to the worst of all three:
    what comes and goes is told once.
    """
    ranked = sorted([*[WELL] * (LOOKS - len(looks)), *looks], reverse=True)
    rises, falls = ranked[1], ranked[0]
    return max(rises, min(told, falls))
