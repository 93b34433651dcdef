"""Write the reference of every config key in docs/config.md: python docs/make_config.py

The keys, their types, defaults and meaning come from aqnet/config/keys.py, the known variables from
aqnet/data/sources/units.py.
"""

import dataclasses
import inspect
import re
import typing
from pathlib import Path
from types import UnionType
from typing import Any

from aqnet.config import Config, Source
from aqnet.data.sources import units

PAGE = Path(__file__).parent / "config.md"
LINE = "<!-- from here on made by docs/make_config.py -->\n"
_TYPES = {int: "number", float: "number", str: "text", bool: "true, false", type(None): "none"}


def meanings(section: type) -> dict[str, str]:
    """What the docstring of a section says of its keys."""
    _, _, text = inspect.cleandoc(section.__doc__ or "").partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.M)
    return {name: " ".join(words.split()) for name, words in found}


def type_text(hint: Any) -> str:
    """What may stand for a key, in words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in parts)
    if origin in (UnionType, typing.Union):
        return " or ".join(type_text(part) for part in parts if part is not type(None))
    if origin is tuple:
        if parts[-1] is Ellipsis:
            return f"list of {type_text(parts[0])}"
        return "RxC" if parts == (int, int) else "two numbers"
    if origin is dict:
        return f"{type_text(parts[1])} by name"
    return "sections" if dataclasses.is_dataclass(hint) else _TYPES[hint]


def default_text(field: dataclasses.Field[Any]) -> str:
    """Its default, in the words of YAML."""
    if field.default_factory is not dataclasses.MISSING:
        return "none"
    if field.default is dataclasses.MISSING:
        return "**needed**"
    if field.default is None or field.default == ():
        return "none"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"{value:g}" if isinstance(value, float) else str(value)


def rows(section: type, prefix: str) -> list[str]:
    """The lines of a table of a section's keys, those of its sections after it."""
    hints, words = typing.get_type_hints(section), meanings(section)
    names = [field.name for field in dataclasses.fields(section)]
    if list(words) != names:
        raise ValueError(f"{section.__name__}: Attributes: {list(words)}, keys: {names}")
    lines, inner = [], []
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(hints[field.name]):
            inner += rows(typing.cast(type, hints[field.name]), f"{prefix}{field.name}.")
            continue
        cells = f"`{prefix}{field.name}`", type_text(hints[field.name]), default_text(field)
        lines.append(f"| {' | '.join((*cells, words[field.name]))} |")
    return lines + inner


def reference() -> str:
    """Everything below LINE."""
    head = "| key | value | default | what it does |\n|---|---|---|---|\n"
    keys = rows(Config, "")
    at = next(row for row, line in enumerate(keys) if line.startswith("| `data.units`"))
    keys[at:at] = rows(Source, "data.sources[].")
    known = [f"| `{name}` | {unit} |" for name, unit in units.CANONICAL.items()]
    return "\n".join(
        [
            "\n## Known variables\n\n| name | unit |\n|---|---|",
            *known,
            "\nA weather forecast's `rh` may come from `dewpoint` and `temp`. Any other name may",
            "stand in `data.variables` if a file holds it: it keeps its values and its unit.",
            f"\n## Every key\n\n{head}" + "\n".join(keys),
            "",
        ]
    )


def main() -> None:
    """Write the page anew."""
    own = PAGE.read_text(encoding="utf-8").partition(LINE)[0]
    PAGE.write_text(own + LINE + reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
