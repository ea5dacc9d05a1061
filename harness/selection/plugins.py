"""Selector plug-ins: from a name to its class.

One file is one selector. This module is also a package whose `__path__` is the selectors folder
(the checkout's, or the one shipped in the wheel) and the folders in `COTSIEVE_SELECTORS`, so that
`selectors/length.py` is importable as `harness.selection.plugins.length` here and in any spawned
process. The folder itself is never put on `sys.path` and has no `__init__.py`: as a top-level
package it would hide the standard library's `selectors`.

Listing names imports nothing.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import inspect
import json
import os
import sys
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from harness.selection.selector import Selector

GROUP = "cotsieve.selectors"
VARIABLE = "COTSIEVE_SELECTORS"
SHIPPED = Path(__file__).parents[1] / "_selectors"
CHECKOUT = Path(__file__).parents[2] / "selectors"


def folders() -> tuple[Path, ...]:
    """Folders that are searched; ValueError where `COTSIEVE_SELECTORS` names something else."""
    shipped = SHIPPED if SHIPPED.is_dir() else CHECKOUT
    named = [
        Path(text).resolve() for text in os.environ.get(VARIABLE, "").split(os.pathsep) if text
    ]
    for folder in named:
        if not folder.is_dir():
            raise ValueError(f"{VARIABLE} names {str(folder)!r}; expected existing folders")
    return tuple(dict.fromkeys([shipped, *named]))


@dataclass(frozen=True)
class Plugin:
    """Where a selector comes from: a file of a selectors folder, or another package."""

    name: str
    file: Path | None = None
    entry: EntryPoint | None = None

    @property
    def place(self) -> str:
        """Where it is, for error messages."""
        if self.entry is None:
            return str(self.file)
        package = self.entry.dist.name if self.entry.dist else "an installed package"
        return f"{package} ({self.entry.value})"


def names() -> tuple[str, ...]:
    """Names of all selectors, sorted; ValueError where two places use the same name."""
    return tuple(sorted(_plugins()))


def find(name: str) -> type[Selector]:
    """The class of a selector; ValueError for an unknown name or a file that breaks a rule."""
    plugin = _plugin(name)
    if plugin.file is None:
        return _from_entry(plugin)
    return _from_file(plugin.file)


def source(name: str) -> Path | None:
    """The file that defines a selector; None for one that has no file."""
    plugin = _plugin(name)
    if plugin.file is not None:
        return plugin.file
    file = inspect.getsourcefile(find(name))
    return Path(file) if file else None


def code_hash(name: str) -> str:
    """SHA-256 of the defining file, with every line end taken as a newline."""
    file = source(name)
    if file is None:
        raise ValueError(f"selector {name!r} ({_plugin(name).place}) has no source file to hash")
    lines = file.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return hashlib.sha256(lines).hexdigest()


def build(name: str, params: Mapping[str, Any]) -> Selector:
    """A selector with the given hyper-parameters, checked against the types of its fields.

    ValueError names selector, key and value where a key is unknown, missing or of another type.
    """
    kind = find(name)
    if not dataclasses.is_dataclass(kind):
        raise ValueError(f"selector {name!r} ({_plugin(name).place}) is no dataclass")
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for key in params:
        if key not in fields:
            have = ", ".join(fields) or "none: it has no parameters"
            raise ValueError(
                f"selector {name!r}: unknown parameter {key!r}{_close(key, fields)}; "
                f"expected one of: {have}"
            )
    for key, field in fields.items():
        missing = field.default is field.default_factory is dataclasses.MISSING
        if missing and key not in params:
            raise ValueError(f"selector {name!r}: parameter {key!r} is missing; it has no default")
    hints = typing.get_type_hints(kind, include_extras=True)
    values = {key: _checked(name, key, value, hints[key]) for key, value in params.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"selector {name!r}: {error}") from error


def _plugin(name: str) -> Plugin:
    plugins = _plugins()
    if name not in plugins:
        raise ValueError(
            f"unknown selector {name!r}{_close(name, plugins)}; "
            f"expected one of: {', '.join(sorted(plugins))}"
        )
    return plugins[name]


def _plugins() -> dict[str, Plugin]:
    by_name: dict[str, Plugin] = {}
    for plugin in [*_files(), *_entries()]:
        if plugin.name in by_name:
            raise ValueError(
                f"selector name {plugin.name!r} is used by {by_name[plugin.name].place} "
                f"and by {plugin.place}; expected one of them to be renamed"
            )
        by_name[plugin.name] = plugin
    return by_name


def _files() -> Iterator[Plugin]:
    searched = folders()
    __path__[:] = [str(folder) for folder in searched]
    for folder in searched:
        for file in sorted(folder.glob("*.py")):
            stem = file.stem
            if stem.startswith("_"):
                continue
            if not stem.isidentifier() or stem in RESERVED:
                raise ValueError(
                    f"{file}: {stem!r} cannot be imported as harness.selection.plugins.{stem}; "
                    f"expected another file name, such as {stem.replace('-', '_')}_.py"
                )
            yield Plugin(stem.removesuffix("_"), file=file)


def _entries() -> Iterator[Plugin]:
    # An editable install can be listed twice, by its metadata and by its source folder.
    unique = {(entry.name, entry.value): entry for entry in entry_points(group=GROUP)}
    for entry in unique.values():
        yield Plugin(entry.name, entry=entry)


def _from_file(file: Path) -> type[Selector]:
    module_name = f"{__name__}.{file.stem}"
    importlib.invalidate_caches()
    loaded = sys.modules.get(module_name)
    if loaded is not None and loaded.__file__ != str(file):
        del sys.modules[module_name]  # another folder had a file of this name before
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(
            f"{file}: importing this selector raised {type(error).__name__}: {error}"
        ) from error
    classes = [
        value
        for key, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Selector)
        and value.__module__ == module_name
        and not key.startswith("_")
    ]
    if len(classes) != 1:
        listed = ", ".join(cls.__name__ for cls in classes) or "none"
        raise ValueError(
            f"{file}: has {len(classes)} public Selector classes ({listed}); expected exactly one"
        )
    if inspect.isabstract(classes[0]):
        lacking = ", ".join(sorted(classes[0].__abstractmethods__))
        raise ValueError(f"{file}: {classes[0].__name__} lacks {lacking}; expected its definition")
    return classes[0]


def _from_entry(plugin: Plugin) -> type[Selector]:
    assert plugin.entry is not None
    try:
        kind = plugin.entry.load()
    except Exception as error:
        raise ValueError(
            f"selector {plugin.name!r} of {plugin.place}: importing it raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Selector)) or inspect.isabstract(kind):
        raise ValueError(
            f"selector {plugin.name!r} of {plugin.place} is {kind!r}; "
            "expected a complete subclass of harness.Selector"
        )
    return kind


def _checked(name: str, key: str, value: Any, hint: Any) -> Any:
    """`value` as the field's type; what TOML cannot write (tuples) is taken from a list."""
    from pydantic import ValidationError

    try:
        return _adapter(hint).validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError) as error:
        raise ValueError(
            f"selector {name!r}: parameter {key!r} is {value!r}; expected {_described(hint)}"
        ) from error


@cache
def _adapter(hint: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(hint)


def _described(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(repr(value) for value in typing.get_args(hint))
    parts = typing.get_args(hint)
    if type(None) in parts:
        return (
            " or ".join(_described(part) for part in parts if part is not type(None)) + " or none"
        )
    return hint.__name__ if isinstance(hint, type) and not parts else str(hint)


def _close(word: str, names: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


__path__ = [str(folder) for folder in folders()]

RESERVED = frozenset(globals())
"""Stems that would overwrite a name of this module when they are imported as its submodules."""
