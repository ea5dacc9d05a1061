"""Names, files, clashes, broken files, entry points and strict parameters of plug-ins."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from harness.selection import plugins

ROOT = Path(__file__).parents[2]
TEMPLATE = '''
"""A selector."""
from dataclasses import dataclass
from typing import Literal
import numpy as np
from harness import ScoreSelector

@dataclass(frozen=True)
class Sample(ScoreSelector):
    """Scores by position."""
    order: Literal["up", "down"] = "up"
    k: int = 3
    share: float = 0.5
    column: str | None = None
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        if self.k < 0:
            raise ValueError(f"k is {self.k}; expected at least 0")

    def score(self, pool, context):
        return np.arange(len(pool), dtype=float)
'''

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file into a folder named by COTSIEVE_SELECTORS."""
    monkeypatch.setenv("COTSIEVE_SELECTORS", str(tmp_path))

    def write(name: str, text: str = TEMPLATE) -> Path:
        file = tmp_path / name
        file.write_text(text)
        return file

    yield write
    for module in [m for m in sys.modules if m.startswith("harness.selection.plugins.")]:
        if str(sys.modules[module].__file__).startswith(str(tmp_path)):
            del sys.modules[module]


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretends that installed packages declare these entry points."""

    def declare(*declared: EntryPoint) -> None:
        monkeypatch.setattr(plugins, "entry_points", lambda group: declared)

    return declare


def test_the_six_are_found_and_listing_imports_nothing() -> None:
    code = (
        "import sys; from harness.selection import plugins; found = plugins.names();"
        "own = 'harness.selection.plugins.';"
        "assert not [m for m in sys.modules if m.startswith(own)], 'imported';"
        "assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules), 'heavy';"
        "print(*found)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("COTSIEVE_SELECTORS", None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    six = {"random", "length", "difficulty", "perplexity", "embedding", "influence"}
    assert six <= set(done.stdout.split())


def test_stem_is_the_name_and_a_trailing_underscore_is_dropped(write: Write) -> None:
    file = write("sample_.py")
    assert "sample" in plugins.names()
    assert plugins.find("sample").__name__ == "Sample"
    assert plugins.find("sample").__module__ == "harness.selection.plugins.sample_"
    assert plugins.source("sample") == file


def test_private_files_are_no_selectors(write: Write) -> None:
    write("_shared.py")
    assert "_shared" not in plugins.names()


def test_clash_of_two_files_names_both(write: Write) -> None:
    file = write("length.py")
    with pytest.raises(ValueError, match="'length'") as caught:
        plugins.names()
    assert str(file) in str(caught.value)
    assert str(Path("selectors") / "length.py") in str(caught.value)


def test_clash_with_an_entry_point(write: Write, entries: Callable[..., None]) -> None:
    write("sample.py")
    entries(EntryPoint("sample", "other.module:Sample", plugins.GROUP))
    with pytest.raises(ValueError, match=r"sample.py and by .*other\.module:Sample"):
        plugins.names()


@pytest.mark.parametrize("name", ["build.py", "my-method.py"])
def test_names_that_cannot_be_imported_safely(write: Write, name: str) -> None:
    write(name)
    with pytest.raises(ValueError, match="expected another file name"):
        plugins.names()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", r"0 public Selector classes \(none\)"),
        (TEMPLATE + "\nclass Other(Sample): pass\n", r"2 public Selector classes \(Sample, Other"),
        (
            "from harness.selection.selector import Selector\nclass A(Selector): pass\n",
            "A lacks select",
        ),
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_broken_file_says_where(write: Write, text: str, message: str) -> None:
    file = write("broken.py", text)
    with pytest.raises(ValueError, match=message) as caught:
        plugins.find("broken")
    assert str(file) in str(caught.value)


def test_private_helper_classes_are_allowed(write: Write) -> None:
    write("sample.py", TEMPLATE + "\nclass _Other(Sample): pass\nclass Note: pass\n")
    assert plugins.find("sample").__name__ == "Sample"


def test_unknown_name_suggests() -> None:
    with pytest.raises(ValueError, match=r"'lenght' \(did you mean 'length'\?\); expected one of"):
        plugins.find("lenght")


def test_missing_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COTSIEVE_SELECTORS", str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="gone"):
        plugins.names()


def test_entry_points(entries: Callable[..., None]) -> None:
    good = EntryPoint("elsewhere", "harness.selection.plugins.length:Length", plugins.GROUP)
    gone = EntryPoint("gone", "no_such_package:Gone", plugins.GROUP)
    wrong = EntryPoint("wrong", "pathlib:Path", plugins.GROUP)
    entries(good, good, gone, wrong)
    assert {"elsewhere", "gone", "wrong"} <= set(plugins.names())
    assert plugins.find("elsewhere") is plugins.find("length")
    assert plugins.source("elsewhere") == ROOT / "selectors" / "length.py"
    assert plugins.code_hash("elsewhere") == plugins.code_hash("length")
    with pytest.raises(ValueError, match=r"no_such_package:Gone.*ModuleNotFoundError"):
        plugins.find("gone")
    with pytest.raises(ValueError, match=r"expected a complete subclass of harness\.Selector"):
        plugins.find("wrong")


def test_code_hash_ignores_line_ends_only(write: Write) -> None:
    file = write("sample.py", "a\nb\n")
    assert plugins.code_hash("sample") == hashlib.sha256(b"a\nb\n").hexdigest()
    file.write_bytes(b"a\r\nb\r\n")
    assert plugins.code_hash("sample") == hashlib.sha256(b"a\nb\n").hexdigest()
    file.write_bytes(b"a\nb \n")
    assert plugins.code_hash("sample") != hashlib.sha256(b"a\nb\n").hexdigest()


def test_build_takes_good_parameters(write: Write) -> None:
    write("sample.py")
    params = {"order": "down", "k": 4, "share": 1, "column": "answer", "bounds": [0.1, 0.9]}
    built = plugins.build("sample", params)
    assert vars(built) == {**params, "bounds": (0.1, 0.9)}
    assert isinstance(vars(built)["share"], float)
    assert plugins.build("sample", {}) == plugins.find("sample")()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"ordr": "up"}, r"'sample': unknown parameter 'ordr' \(did you mean 'order'\?\)"),
        ({"order": "left"}, "'order' is 'left'; expected one of 'up', 'down'"),
        ({"k": "3"}, "'k' is '3'; expected int"),
        ({"k": 3.0}, r"'k' is 3\.0; expected int"),
        ({"k": True}, "'k' is True; expected int"),
        ({"share": "0.5"}, r"'share' is '0\.5'; expected float"),
        ({"share": False}, "'share' is False; expected float"),
        ({"column": 3}, "'column' is 3; expected str or none"),
        ({"bounds": [1.0]}, r"'bounds' is \[1\.0\]; expected tuple"),
        ({"k": object()}, "expected int"),
        ({"k": -1}, "selector 'sample': k is -1; expected at least 0"),
        ({"stochastic": True}, "unknown parameter 'stochastic'"),
    ],
)
def test_build_refuses(write: Write, params: dict[str, object], message: str) -> None:
    write("sample.py")
    with pytest.raises(ValueError, match=message):
        plugins.build("sample", params)


def test_a_required_parameter(write: Write) -> None:
    write(
        "sample.py",
        TEMPLATE.replace("k: int = 3", "").replace("    order", "    k: int\n    order"),
    )
    with pytest.raises(ValueError, match="'k' is missing"):
        plugins.build("sample", {})
    assert plugins.build("sample", {"k": 1}).k == 1  # type: ignore[attr-defined]


def test_instances_travel_to_a_spawned_process(write: Write) -> None:
    write("sample.py")
    selector = plugins.build("sample", {"k": 7})
    code = (
        "import pickle, sys; s = pickle.load(sys.stdin.buffer); print(type(s).__module__, repr(s))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(selector),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().strip() == f"harness.selection.plugins.sample {selector!r}"
