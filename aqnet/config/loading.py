"""Config files and nested dicts to checked configs, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aqnet.config.checks import problems
from aqnet.config.keys import Config
from aqnet.config.reading import build, dump, overridden, parse, to_dict
from aqnet.errors import AqnetError


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file and apply `key=value` overrides.

    Raises:
        AqnetError: the file is missing or not YAML, a key is unknown, has the wrong type, or keys
            contradict each other.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AqnetError(f"{path}: cannot read the config file: {error}") from None
    tree = parse(text, str(path))
    if not isinstance(tree, dict):
        raise AqnetError(f"{path}: expected a mapping of keys, found {type(tree).__name__}")
    return from_dict(overridden(tree, overrides), str(path))


def from_dict(tree: dict[str, Any], origin: str) -> Config:
    """Build and check a config from nested dicts; `origin` names it in errors."""
    try:
        config: Config = build(Config, tree)
    except AqnetError as error:
        raise AqnetError(f"{origin}: {error}") from None
    for problem in problems(config):
        raise AqnetError(f"{origin}: {problem}")
    return config


def to_yaml(config: Config) -> str:
    """The resolved config as text that `load` reads back to an equal config."""
    return dump(to_dict(config))
