#!/usr/bin/env python3
"""Write each role's table of variables into its README.md, from meta/argument_specs.yml.

The ranges come from the rules of the role preflight. With --check nothing is written; roles whose
README is out of date are named. Either way it fails if a role's defaults/main.yml and its
specification differ, or if a number has no range.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped] # ansible-core brings it

BEGIN, END = "<!-- BEGIN_ARGUMENTS -->\n", "<!-- END_ARGUMENTS -->"
ROLES = Path(__file__).resolve().parents[1] / "roles"
RULES = yaml.safe_load((ROLES / "preflight/vars/main/rules.yml").read_text())["__preflight_rules"]
HEADING = "\n| variable | type | default | |\n|---|---|---|---|\n"


def row(name: str, option: dict[str, Any]) -> str:
    """Return a variable's line of the table."""
    value = option.get("default")
    plain = value if isinstance(value, str) and value else json.dumps(value)
    default = "required" if option.get("required") else f"`{plain}`"
    description = option["description"]
    text = description if isinstance(description, str) else " ".join(description)
    if "choices" in option:
        text += f" One of {', '.join(f'`{choice}`' for choice in option['choices'])}."
    if "least" in (rule := RULES.get(name, {})):
        text += f" From {rule['least']} to {rule['most']}."
    cells = [f"`{name}`", option["type"], default, re.sub(r"C\((.*?)\)", r"`\1`", text)]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def faults(role: Path, check: bool) -> list[str]:
    """Bring a role's README up to date, or only check it; return what is wrong."""
    specification = yaml.safe_load((role / "meta/argument_specs.yml").read_text())
    options = specification["argument_specs"]["main"].get("options", {})
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text()) or {}
    specified = {n: each.get("default") for n, each in options.items() if not each.get("required")}
    if differing := sorted(
        name
        for name in specified.keys() | defaults.keys()
        if specified.get(name, ...) != defaults.get(name, ...)
    ):
        return [f"defaults and argument_specs differ in {', '.join(differing)}"]
    numbers = [n for n, each in options.items() if "int" in (each["type"], each.get("elements"))]
    if unlimited := [name for name in numbers if "least" not in RULES.get(name, {})]:
        names = ", ".join(unlimited)
        example = "such as { least: 1, most: 100 }"
        return [f"roles/preflight/vars/main/rules.yml has no range for {names}, {example}"]
    readme = role / "README.md"
    old = readme.read_text() if readme.exists() else ""
    if BEGIN not in old or END not in old:
        return [f"README.md lacks the lines {BEGIN.strip()} and {END}"]
    table = HEADING + "".join(row(name, option) for name, option in options.items())
    new = f"{old.partition(BEGIN)[0]}{BEGIN}{table}\n{END}{old.partition(END)[2]}"
    if not check:
        readme.write_text(new)
    return ["README.md is out of date: run `make docs`"] if check and new != old else []


roles = sorted(ROLES.glob("[!_]*"))  # a role with an underscore is an internal one
sys.exit("\n".join(f"{r.name}: {f}" for r in roles for f in faults(r, "--check" in sys.argv)) or 0)
