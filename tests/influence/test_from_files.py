import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from harness import influence
from harness.cli.app import app, main
from harness.data.pool import IGNORED
from harness.influence import CurvatureOptions, from_files
from harness.influence.from_files import Request
from harness.selection import toy
from harness.selection.toy import EOS, tokenizer

OPTIONS = CurvatureOptions(batch_size=8, layers="mlp")
FLAGS = ["--batch-size", "8", "--layers", "mlp", "--template", "{prompt}"]
ROWS = [
    {"question": "1+1=?", "solution": "2", "name": "a"},
    {"question": "2+2=?", "solution": "it is 4", "name": "b"},
]
COLUMNS = {"prompt": "question", "response": "solution", "id": "name"}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def files(tmp_path):
    toy.models()[0].save_pretrained(tmp_path / "model")
    # Apart from the model: beside its configuration AutoTokenizer would take Qwen2's own class.
    toy.tokenizer().save_pretrained(tmp_path / "tokenizer")
    for name, pool in (("pool", toy.make_pool()), ("queries", toy.make_queries().pool)):
        rows = zip(pool.ids, pool.columns["prompt"], pool.columns["response"], strict=True)
        text = [json.dumps({"id": i, "prompt": p, "response": r}) for i, p, r in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(text))
    return tmp_path


def request(files, out="out.parquet", **more):
    return Request(
        **{
            "model": str(files / "model"),
            "pool": files / "pool.jsonl",
            "queries": files / "queries.jsonl",
            "out": files / out,
            "options": OPTIONS,
            "id": "id",
            "template": "{prompt}",
            "tokenizer": str(files / "tokenizer"),
            **more,
        }
    )


def run(wanted):
    notes = []
    return from_files.run(wanted, lambda iterable, *_: iterable, notes.append), notes


def test_the_file_holds_what_the_functions_give(files):
    summary, _ = run(request(files))
    table = pd.read_parquet(files / "out.parquet")
    assert list(table.columns) == ["id", "score"]
    model, pool, queries = toy.models()[0], toy.make_pool(), toy.make_queries().pool
    wanted = influence.scores(model, influence.fit(model, pool, OPTIONS), pool, queries)
    assert table["id"].tolist() == list(pool.ids)
    np.testing.assert_allclose(table["score"], wanted["score"], rtol=1e-6)
    assert table.attrs["method"] == summary["method"] == "ghost"
    best = wanted["score"].sort_values(ascending=False)
    assert list(summary["top"]) == best.index[:5].tolist()
    assert list(summary["bottom"]) == best.index[-5:].tolist()
    assert not (files / "out.parquet.partial").exists()


def test_per_query_columns_and_suffixes(files):
    run(request(files, "out.csv", per_query=True))
    run(request(files, "out.jsonl", per_query=True, aggregate="sum"))
    mean = pd.read_csv(files / "out.csv", index_col="id")
    total = pd.read_json(files / "out.jsonl", lines=True).set_index("id")
    names = list(toy.make_queries().pool.ids)
    assert list(mean.columns) == list(total.columns) == ["score", *names]
    np.testing.assert_allclose(mean["score"], mean[names].mean(axis=1))
    np.testing.assert_allclose(total["score"], 8 * mean["score"], rtol=1e-6)


def test_a_killed_run_continues(files, monkeypatch):
    run(request(files, "whole.parquet"))
    monkeypatch.setattr(from_files, "_write", None)  # dies when the scores are finished
    with pytest.raises(TypeError):
        run(request(files))
    monkeypatch.undo()
    monkeypatch.setattr("harness.influence.curvature.fit.fit", None)
    summary, notes = run(request(files))
    assert summary["shards"] == {"total": 1, "found": 1}
    assert summary["seconds"]["fit"] is None
    assert any("found in" in note for note in notes)
    assert (files / "out.parquet").read_bytes() == (files / "whole.parquet").read_bytes()


def test_another_curvature_is_fitted_anew(files, monkeypatch):
    monkeypatch.setattr(from_files, "_write", None)
    with pytest.raises(TypeError):
        run(request(files))
    monkeypatch.undo()
    _, notes = run(request(files, options=CurvatureOptions("identity", batch_size=8)))
    assert any("scores that differ in curvature, options; starting anew" in n for n in notes)
    assert pd.read_parquet(files / "out.parquet").attrs["options"]["kind"] == "identity"


def test_a_curvature_is_kept_and_used(files):
    run(request(files, "first.parquet", save_curvature=files / "c"))
    summary, _ = run(request(files, "second.parquet", options=None, use_curvature=files / "c"))
    assert summary["seconds"]["fit"] is None
    assert (files / "first.parquet").read_bytes() == (files / "second.parquet").read_bytes()


def test_an_adapter(files):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(files / "model")
    config = peft.LoraConfig(r=2, target_modules=["up_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(base, config).save_pretrained(files / "adapter")
    adapter, tokenizer = from_files.load(request(files, model=str(files / "adapter")), "cpu")
    assert type(adapter).__name__ == "PeftModelForCausalLM"
    assert tokenizer.eos_token == "<eos>"


def test_the_command(files):
    places = [str(files / name) for name in ("model", "pool.jsonl", "queries.jsonl")]
    common = ["influence", *places, "--out", str(files / "out.csv"), "--id", "id", *FLAGS]
    common += ["--tokenizer", str(files / "tokenizer")]
    shown = CliRunner().invoke(app, common)
    assert shown.exit_code == 0, shown.output
    for said in ("48 examples, 8 queries", "method ghost: products of", "top: training more"):
        assert said in shown.output
    shown = CliRunner().invoke(app, [*common, "--json", "--curvature", "identity"])
    assert json.loads(shown.stdout)["options"]["kind"] == "identity"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--out": "scores.txt"}, "--out 'scores.txt'; expected a name ending in .parquet"),
        ({"--curvature": "magic"}, "option kind is 'magic'; expected one of identity"),
        ({"--method": "magic"}, "method is 'magic'; expected one of 'auto'"),
        ({"--aggregate": "max"}, "--aggregate 'max'; expected mean or sum"),
        ({"--response": "nothing"}, "no column 'nothing' (response = 'nothing'); expected one of"),
        ({"--max-tokens": "3"}, "prompt longer than 3 tokens: 48 (row 1, 2"),
        ({"--use-curvature": "gone"}, "--use-curvature with options of a fit; expected none"),
        ({"MODEL": "gone"}, "model 'gone' is no folder here; expected one, or a hub name with"),
        ({"MODEL": "."}, "neither config.json nor adapter_config.json; expected a folder"),
        ({"POOL": "gone.jsonl"}, "gone.jsonl: no such file; expected a .jsonl or .parquet file"),
    ],
)
def test_bad_input_has_exit_code_2(files, change, message, monkeypatch, capsys):
    monkeypatch.chdir(files)
    places = {"MODEL": "model", "POOL": "pool.jsonl", "QUERIES": "queries.jsonl"}
    flags = {"--out": "out.csv", "--id": "id", "--layers": "mlp", "--template": "{prompt}"}
    flags["--tokenizer"] = "tokenizer"
    places |= {name: value for name, value in change.items() if name in places}
    flags |= {name: value for name, value in change.items() if name not in places}
    arguments = [*places.values(), *(part for pair in flags.items() for part in pair)]
    monkeypatch.setattr("sys.argv", ["cotsieve", "influence", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (files / "out.csv").exists()


@pytest.mark.parametrize(
    ("device", "more", "plain"),
    [
        ("cuda", {"precision": "bfloat16"}, False),
        ("cuda", {"precision": "bfloat16", "method": "forward"}, True),
        ("cuda", {"precision": "float32"}, True),
        ("cpu", {"precision": "bfloat16"}, True),
        ("cpu", {"precision": "float32"}, False),
        ("cpu", {"precision": "float32", "method": "forward"}, True),
    ],
)
def test_the_plain_attention_kernel_only_where_it_is_needed(files, device, more, plain):
    actual = from_files._attention(request(files, **more), device)
    assert actual == ({"attn_implementation": "eager"} if plain else {})


def test_rows_by_hand():
    pool = influence.examples(ROWS, tokenizer(), template="{prompt} ", **COLUMNS)
    assert pool.ids == ("a", "b")
    assert len(pool.input_ids[0]) == 8  # "1+1=? " and "2" and the end of text
    assert pool.labels[0].tolist() == [IGNORED] * 6 + pool.input_ids[0][6:].tolist()
    assert pool.input_ids[0][-1] == EOS


def test_files_give_what_rows_give(tmp_path):
    import pandas as pd

    wanted = influence.examples(ROWS, tokenizer(), template="{prompt}", **COLUMNS)
    lines, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pd.DataFrame(ROWS).to_parquet(table)
    for path in (lines, str(table)):
        actual = influence.examples(path, tokenizer(), template="{prompt}", **COLUMNS)
        assert actual.fingerprint == wanted.fingerprint


def test_bad_rows_are_named(tmp_path):
    broken = [*ROWS, {"question": "3+3=?", "solution": " ", "name": "c"}, "text", ROWS[0]]
    with pytest.raises(ValueError, match="rows: 4 of 5 rows cannot be used") as caught:
        influence.examples(broken, tokenizer(), template="{prompt}", **COLUMNS)
    for said in (
        "empty or missing 'solution': 1 (row 3)",
        "not a mapping: 1 (row 4)",
        "duplicate id: 2 (row 1, 5)",
    ):
        assert said in str(caught.value)
    with pytest.raises(ValueError, match="no column 'answer' .*expected one of: question, sol"):
        influence.examples(ROWS, tokenizer(), prompt="question", response="answer")
    with pytest.raises(ValueError, match="no rows; expected at least one"):
        influence.examples([], tokenizer())
    with pytest.raises(ValueError, match=r"rows\.txt: expected a file ending in \.jsonl or"):
        influence.examples("rows.txt", tokenizer())
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl: no such file; expected"):
        influence.examples(tmp_path / "gone.jsonl", tokenizer())
    with pytest.raises(ValueError, match="max_tokens is 1; expected at least 2"):
        influence.examples(ROWS, tokenizer(), max_tokens=1)
