"""Config files and nested dicts to checked configs, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aqnet.config.checks import problems
from aqnet.config.continuation import as_trained
from aqnet.config.keys import Config
from aqnet.config.reading import build, dump, overridden, parse, readable, to_dict
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


def from_checkpoint(
    tree: dict[str, Any], origin: str, overrides: Sequence[str] = ()
) -> tuple[Config, list[str]]:
    """The config of a checkpoint, which may be of another version of aqnet, and a line on each of
    its keys or values that this version would refuse: keys and values that it cannot read are left
    out, values it can are kept.

    Raises:
        AqnetError: an override is wrong, or what cannot be read says what the model is.
    """
    kept, wrong = readable(Config, as_trained(tree))
    try:
        for problem in wrong:
            if problem.startswith(("data.", "model.")) and "is no key" not in problem:
                raise AqnetError(problem)
        accepted = list(problems(build(Config, kept)))
        config: Config = build(Config, overridden(kept, overrides))
        for problem in problems(config):
            if problem not in accepted:
                raise AqnetError(problem)
    except AqnetError as error:
        raise AqnetError(f"{origin}: {error}") from None
    lines = [f"{origin}: {problem}; it is left out" for problem in wrong]
    lines += [f"{origin}: {problem}; it is kept, as the model was trained" for problem in accepted]
    return config, lines


def to_yaml(config: Config) -> str:
    """The resolved config as text that `load` reads back to an equal config."""
    return dump(to_dict(config))
