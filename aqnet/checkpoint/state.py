"""What state.json must hold, so that whoever reads a checkpoint can rely on its keys and types."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator
from typing import Any, NamedTuple

_MOST_LEVELS = 30  # of nesting: as many as a config's text may have


class _Each(NamedTuple):
    """A list, or a dict of any names, whose values are all of one kind."""

    container: Any  # list or dict
    kind: Any


# a kind is some types, an `_Each`, or a dict: one that has at least these names, each of its kind
_WHOLE, _NUMBER, _LOSS = (int,), (int, float), (int, float, None)
_NAMES, _TEXTS = _Each(list, (str,)), _Each(dict, (str,))
_ALWAYS: dict[str, Any] = {
    "global_step": _WHOLE,
    "config": {"data": (dict,), "model": (dict,)},
    "statistics": _Each(dict, {"mean": _NUMBER, "std": _NUMBER}),
    "data_checksums": _TEXTS,
}
# missing where weights were imported, or in checkpoints of older versions
_WHERE_PRESENT: dict[str, Any] = {
    **dict.fromkeys(("epoch", "items_consumed", "validated_step"), _WHOLE),
    **dict.fromkeys(("validations_since_best", "empty_steps"), _WHOLE),
    **dict.fromkeys(("bad_steps", "bad_steps_in_a_row"), _WHOLE),
    "seconds": _NUMBER,
    **dict.fromkeys(("best_metric", "last_metric", "validation_loss"), _LOSS),
    "grid": (dict,),
    "channels": {"weather": _NAMES, "air": _NAMES},
    "units": _TEXTS,
    "imported": {"initialised": _TEXTS},
}
OF_THE_STORES = ("channels", "units")  # beside the static fields that model.pt holds


def problems(state: dict[str, Any]) -> Iterator[str]:
    """Half a sentence for each value that training would not have written."""
    if _is_deeper(state, _MOST_LEVELS):
        yield f"is nested more than {_MOST_LEVELS} levels deep"
        return
    present = {key: kind for key, kind in _WHERE_PRESENT.items() if key in state}
    yield from _misfits("", state, _ALWAYS | present)


def is_loss(value: Any) -> bool:
    """Whether a validation loss is one that checkpoints can be compared by."""
    return _is_one_of(value, _NUMBER)


def _misfits(name: str, value: Any, kind: Any) -> Iterator[str]:
    """Half a sentence for each part of a value that is missing or not of its kind."""
    if isinstance(kind, _Each) and isinstance(value, kind.container):
        for key, item in value.items() if kind.container is dict else enumerate(value):
            yield from _misfits(f"{name}.{key}", item, kind.kind)
    elif isinstance(kind, dict) and type(value) is dict:
        for key, inner in kind.items():
            path = f"{name}.{key}".removeprefix(".")
            if key in value:
                yield from _misfits(path, value[key], inner)
            else:
                yield f"lacks {path}"
    elif type(kind) is not tuple or not _is_one_of(value, kind):
        yield f"{name} is {reprlib.repr(value)}"


def _is_one_of(value: Any, types: tuple[type | None, ...]) -> bool:
    """Whether a value is of one of some types, and a number one that can be calculated with."""
    if value is None:
        return None in types
    if type(value) is float:
        return float in types and math.isfinite(value)
    if type(value) is int:
        return int in types and (0 if types == _WHOLE else -(2**63)) <= value < 2**63
    return type(value) in types


def _is_deeper(value: Any, levels: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value if type(value) is list else ()
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in inside)
