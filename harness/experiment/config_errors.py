"""What a refused settings file is told: pydantic's findings as lines that a reader can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, root: type[BaseModel]) -> Iterator[str]:
    """One line per problem of a file read into `root`: key, value and what was expected."""
    problems = error.errors(include_url=False)
    for problem in problems:
        loc, value, kind = problem["loc"], problem["input"], problem["type"]
        deeper = any(o["loc"][: len(loc)] == loc and len(o["loc"]) > len(loc) for o in problems)
        if deeper:  # the entry inside is the cause; "too short" is only its echo
            continue
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
        where = where.lstrip(".")
        shown = "a table" if isinstance(value, dict) else repr(value)
        if kind == "extra_forbidden":
            yield f"{where} = {shown}: unknown key; expected {_expected_keys(loc, root)}"
        elif kind == "missing":
            yield f"{where}: missing; expected a value"
        elif kind == "value_error":
            cause = str(problem["ctx"]["error"])
            yield f"{where}: {cause}" if where else cause
        else:
            message = problem["msg"].removeprefix("Input should ").removeprefix("be ")
            yield f"{where} = {shown}: expected {message[:1].lower()}{message[1:]}"


def _expected_keys(loc: tuple[int | str, ...], root: type[BaseModel]) -> str:
    """The keys of the table that holds the unknown one, the closest first."""
    model: Any = root
    for part in loc[:-1]:
        if isinstance(part, str):
            kinds = get_args(model.model_fields[part].annotation)
            kinds = kinds or (model.model_fields[part].annotation,)
            model = next(k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
    names = list(model.model_fields)
    close = difflib.get_close_matches(str(loc[-1]), names, n=1)
    hint = f"{close[0]!r}? Known keys: " if close else "one of: "
    return hint + ", ".join(names)
