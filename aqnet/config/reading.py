"""Text to nested dicts by the YAML 1.2 core schema, nested dicts to dataclasses by their type
hints, and both back. It knows no key: those stand in `aqnet.config.keys`."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import yaml

from aqnet.errors import AqnetError, one_line

_MAX_DEPTH = 30
_TAGGED = (yaml.ScalarEvent, yaml.CollectionStartEvent)
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_MAX_DIGITS = 18  # so that every whole number fits in 64 bits


def parse(text: str, origin: str) -> Any:
    """What a YAML text holds.

    Raises:
        AqnetError: it is not YAML, a key stands twice, or it has what no config needs: a tag, an
            alias (nine of them can stand for gigabytes), 30 levels, or a number without end;
            `origin` names it.
    """
    try:
        _check_plain(text)
        return yaml.load(text, Loader=_CoreLoader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: characters that no YAML has
        raise AqnetError(f"{origin}: not valid YAML: {one_line(error)}") from None


def dump(tree: dict[str, Any]) -> str:
    """YAML text that `parse` reads back to equal nested dicts and lists."""
    return yaml.dump(tree, Dumper=_CoreDumper, sort_keys=False, allow_unicode=True)


def overridden(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of nested dicts with `key=value` overrides applied.

    Raises:
        AqnetError: an override has another form, or its key leads through a value.
    """
    changed = copy.deepcopy(tree)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise AqnetError(f"{override!r}: expected key=value, such as train.max_steps=100")
        *parents, last = key.split(".")
        section = changed
        for parent in parents:
            if section.get(parent) is None:
                section[parent] = {}
            section = section[parent]
            if not isinstance(section, dict):
                raise AqnetError(f"{override!r}: {parent!r} holds a value, not a section")
        section[last] = parse(text, override)
    return changed


def build(kind: Any, value: Any, key: str = "") -> Any:
    """`value` as `kind`, a dataclass or a type hint of one of its fields.

    Raises:
        AqnetError: names the key that is unknown, missing or of another type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build_section(kind, value, key)
    if origin in (typing.Union, types.UnionType):  # `X | None`
        return None if value is None else build(arguments[0], value, key)
    if origin is Literal:
        if value not in arguments:
            raise AqnetError(f"{key} is {value!r}; expected {_one_of(arguments, value)}")
        return value
    if origin is tuple:
        return _build_tuple(arguments, value, key)
    if origin is dict:
        if not isinstance(value, dict):
            raise AqnetError(f"{key} is {value!r}; expected a mapping")
        return {name: build(arguments[1], item, f"{key}.{name}") for name, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise AqnetError(f"{key} is {value!r}; expected {_TYPE_NAMES[kind]}")
    return value


def readable(kind: Any, tree: dict[str, Any], prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """The part of nested dicts that `build` accepts as the dataclass `kind`, and what is wrong with
    each of the keys left out."""
    hints = typing.get_type_hints(kind)
    kept: dict[str, Any] = {}
    wrong: list[str] = []
    for name, value in tree.items():
        key = prefix + name
        if name not in hints:
            wrong.append(f"{key} is no key of this version")
        elif dataclasses.is_dataclass(hints[name]) and isinstance(value, dict):
            kept[name], more = readable(hints[name], value, f"{key}.")
            wrong += more
        else:
            try:
                build(hints[name], value, key)
                kept[name] = value
            except AqnetError as error:
                wrong.append(str(error))
    return kept, wrong


def to_dict(config: Any) -> dict[str, Any]:
    """Nested dicts and lists, the inverse of `from_dict`; JSON and YAML can hold it."""
    result: dict[str, Any] = plain(dataclasses.asdict(config))
    return result


def plain(value: Any) -> Any:
    """Tuples as lists, to any depth, so that JSON and YAML can hold the result."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one of dotted keys; empty dicts stay values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _check_plain(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_CoreLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        problem = None
        if depth > _MAX_DEPTH:
            problem = f"more than {_MAX_DEPTH} levels"
        elif isinstance(event, yaml.AliasEvent):
            problem = f"the alias *{event.anchor}; write out what it stands for"
        elif isinstance(event, yaml.ScalarEvent) and _UNPRINTABLE.search(event.value):
            problem = f"characters that no name has in {event.value!r}"
        elif isinstance(event, _TAGGED) and event.tag is not None:
            problem = f"the tag {event.tag}; a plain value is enough"
        if problem is not None:
            raise yaml.YAMLError(f"{problem}{event.start_mark}")


class _CoreLoader(yaml.SafeLoader):
    pass


class _CoreDumper(yaml.SafeDumper):
    pass


# PyYAML's own resolvers are those of YAML 1.1, for which `no` is false and `1e-4` is text
_CoreLoader.yaml_implicit_resolvers = {}
_CoreDumper.yaml_implicit_resolvers = {}
_SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
for _tag, _pattern in _SCALARS.items():
    for _class in (_CoreLoader, _CoreDumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), None
        )


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = node.value
    if len(text) > _MAX_DIGITS:
        raise yaml.constructor.ConstructorError(
            None, None, f"a number of {len(text)} digits", node.start_mark
        )
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[str, Any]:
    keys = [str(loader.construct_object(key, deep=True)) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice", node.start_mark
            )
    values = [loader.construct_object(value, deep=True) for _, value in node.value]
    return dict(zip(keys, values, strict=True))


_CoreLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_CoreLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)

_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _build_section(kind: Any, value: Any, key: str) -> Any:
    if not isinstance(value, dict):
        raise AqnetError(f"{key or 'the config'} is {value!r}; expected a section of keys")
    hints = typing.get_type_hints(kind)
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in hints:
            raise AqnetError(f"unknown key '{prefix}{name}'; {_nearest(name, hints, prefix)}")
    for item in dataclasses.fields(kind):
        required = item.default is item.default_factory is dataclasses.MISSING
        if required and item.name not in value:
            raise AqnetError(f"the key '{prefix}{item.name}' is missing")
    return kind(**{name: build(hints[name], item, prefix + name) for name, item in value.items()})


def _build_tuple(arguments: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    if isinstance(value, str) and arguments == (int, int):  # "128x256"
        value = [int(part) if part.isdecimal() else part for part in value.split("x")]
    if not isinstance(value, list | tuple):
        raise AqnetError(f"{key} is {value!r}; expected a list")
    if arguments[-1] is not Ellipsis and len(value) != len(arguments):
        raise AqnetError(f"{key} is {value!r}; expected {len(arguments)} values")
    if key.startswith("data.split."):  # a year is written as a number
        value = [str(item) if type(item) is int else item for item in value]
    return tuple(build(arguments[0], item, f"{key}[{at}]") for at, item in enumerate(value))


def _nearest(name: str, known: Iterable[str], prefix: str) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    if close:
        return f"did you mean '{prefix}{close[0]}'?"
    return f"known here: {', '.join(prefix + key for key in known)}"


def _one_of(values: tuple[Any, ...], found: Any) -> str:
    close = difflib.get_close_matches(str(found), [str(value) for value in values], n=1)
    listed = " or ".join(str(value) for value in values)
    return listed + (f" (did you mean {close[0]}?)" if close else "")
