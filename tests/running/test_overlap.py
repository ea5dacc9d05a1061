"""Overlaps of an experiment's own files: found, and then refused, dropped or kept."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.cli.quotes import write_texts
from harness.data import contamination
from harness.data.pool import Pool
from harness.experiment import config, records
from harness.experiment.stage import with_ancestors
from harness.experiment.store import Store
from harness.reporting import quotes as texts
from harness.reporting.results import load
from harness.reporting.sentences import overlap_notes
from harness.running import forecast, overlap, plan, schedule
from harness.running import run as running
from harness.running.workspace import build
from tests import pretend as pretending

TOML = """
name = "own"
[pool]
dataset = "pool.jsonl"
prompt = "question"
id = "name"
{pool}
[model]
base = "testbed:tiny"
[train]
learning_rate = 1e-3
budget = "steps"
steps = 2
[query]
dataset = "queries.jsonl"
{query}
[evaluate]
tasks = {tasks}
max_tokens = 8
engine = "hf"
[[task]]
name = "exam"
data = "exam.jsonl"
prompt = "q"
[[task]]
name = "more"
data = "more.jsonl"
[grid]
fractions = [0.5]
seeds = [0]
[[selector]]
name = "length"
{end}
"""
DATA = {"tokenizer", "pool", "queryset", "items", "overlap"}
MODEL = {"base", "checkpoint", "answers", "samples"}
FOUND = [  # pool rows by set and rule, then the query; nothing else in the files overlaps
    ("pool", "p05", "exam", "row-000001", contamination.SAME),
    ("pool", "p07", "exam", "row-000003", contamination.SHARED),
    ("pool", "p02", "query", "row-000002", contamination.SAME),
    ("query", "row-000004", "exam", "row-000004", contamination.SAME),
]


def words(first, count):
    return " ".join(f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(first, first + count))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def pretend(job, report):
    """A worker's target: data sets are real, models are not."""
    store = Store(Path(job.store))
    for stage in job.stages:
        pretending.build(stage, store, job)
    return {}


class World:
    """A folder with the files of an experiment and the command's working folder."""

    def __init__(self, folder):
        self.folder = folder
        self.file = folder / "own.toml"
        self.store = Store(folder / "store")
        self.results = folder / "results/own"
        pool = [f"what is {i} + {5 * i}?" for i in range(9)] + [words(0, 30)]
        exam = [f"what is {i} - {7 * i}?" for i in range(5)]
        exam[2] = words(100, 30)
        queries = [f"what is {i} * {3 * i}?" for i in range(4)]
        pool[5] = "What is  0-0"
        pool[7] = words(100, 20) + " and something else"
        pool[2] = "What is $1 * 3$?"
        queries[3] = "what is 3 - 21"
        self.write_pool(pool)
        write(folder / "exam.jsonl", [{"q": text, "answer": "1"} for text in exam])
        write(folder / "more.jsonl", [{"prompt": "what else?", "answer": "1"}])
        write(
            folder / "queries.jsonl", [{"prompt": text, "response": "#### 1"} for text in queries]
        )

    def write_pool(self, texts):
        rows = [
            {"name": f"p{i:02d}", "question": text, "response": "#### 1"}
            for i, text in enumerate(texts)
        ]
        write(self.folder / "pool.jsonl", rows)

    def say(self, pool="", query="", tasks='["exam"]', end=""):
        lines = [f'overlap = "{value}"' if value else "" for value in (pool, query)]
        text = TOML.format(pool=lines[0], query=lines[1], tasks=tasks, end=end)
        self.file.write_text(text)

    def plan(self, *said, **more):
        self.say(*said, **more)
        return plan.make(config.load(self.file), self.file)

    def make(self, *stages):
        """Make data stages with what they stand on, in this process."""
        for stage in with_ancestors(stages).values():
            assert stage.kind in DATA
            build(stage, self.store)

    def compared(self, made):
        self.make(*(check.stage for check in made.checks))
        found = [
            f for check in overlap.of_arm(made.checks, "main") for f in check.findings(self.store)
        ]
        return [(f.side, f.id, f.other, f.item, f.rule) for f in found]

    def pool(self, made, arm="main"):
        stage = made.pools[arm]
        self.make(stage)
        return Pool.load(self.store.folder(stage))

    def call(self, *arguments):
        return CliRunner().invoke(app.app, [*map(str, arguments), "--store", str(self.store.root)])

    def kinds(self):
        return {path.name for path in self.store.root.iterdir()} - {"locks", "failed"}


@pytest.fixture
def world(tmp_path, monkeypatch, in_process):
    monkeypatch.setattr(schedule, "run_job", pretend)
    monkeypatch.setattr(schedule, "available_cores", lambda: 1)
    monkeypatch.setattr(running, "Workers", in_process)
    monkeypatch.chdir(tmp_path)
    return World(tmp_path)


def stages_of(made):
    ends = [stage for cell in made.cells for stage in cell.samples.values()]
    return {stage.label: stage.key for stage in with_ancestors(ends).values()}


def test_what_is_planted_is_found_and_nothing_else(world):
    assert world.compared(world.plan()) == FOUND


def test_each_comparison_knows_its_rows_and_what_they_are_compared_with(world):
    queries, pool = world.plan(query="keep").checks
    assert (queries.side, queries.arm, queries.action) == ("query", None, "keep")
    assert (pool.side, pool.arm, pool.action) == ("pool", "main", "refuse")
    assert set(queries.stage.parents) == {"queryset", "items:exam"}
    assert set(pool.stage.parents) == {"pool", "queryset", "items:exam"}
    assert pool.sets == "exam, the query set"


def test_keys_change_only_where_rows_are_dropped(world):
    silent, kept, dropped = (world.plan(*said) for said in ((), ("keep", "keep"), ("drop",)))
    assert stages_of(silent) == stages_of(kept)
    assert [c.stage.key for c in silent.checks] == [c.stage.key for c in kept.checks]
    assert running.protocol_of(silent) != running.protocol_of(kept)
    before, after = stages_of(silent), stages_of(dropped)
    same = {label for label in before.keys() & after.keys() if before[label] == after[label]}
    assert same == {"tokenizer", "base model", "items of exam", "exam of base", "pool"}
    assert after.keys() - before.keys() == {
        "query set", "overlap of the pool", "pool without overlaps",
    }  # fmt: skip
    selection = dropped.cell("length@0.5#0")
    assert {selection.subset.parents["pool"].key, selection.checkpoint.parents["pool"].key} == {
        dropped.pools["main"].key
    }


def test_a_pool_without_overlaps_hangs_on_what_it_was_compared_with(world, monkeypatch):
    two = {"tasks": '["exam", "more"]'}
    assert world.plan("keep").pools["main"].key == world.plan("keep", **two).pools["main"].key
    dropped = world.plan("drop").pools["main"].key
    assert world.plan("drop", **two).pools["main"].key != dropped
    assert world.plan("drop", "drop").pools["main"].key != dropped
    monkeypatch.setattr(overlap, "SHARE", 0.5)
    assert world.plan("drop").pools["main"].key != dropped


def test_the_testbed_is_not_compared(world):
    own = [f"{c.title}: {c.sets}" for c in world.plan(tasks='["exam", "chain_far"]').checks]
    assert own == ["queries: exam", "pool rows: exam, the query set"]
    world.say()
    text = world.file.read_text().replace('"queries.jsonl"', '"testbed:queries"')
    world.file.write_text(text.replace('["exam"]', '["chain_far"]'))
    assert plan.make(config.load(world.file), world.file).checks == ()


def test_a_task_cannot_be_called_pool(world):
    world.say()
    world.file.write_text(world.file.read_text().replace("exam", "pool", 2))
    with pytest.raises(ValueError, match=r"own\.toml: task 'pool' has the name of another data"):
        plan.make(config.load(world.file), world.file)


def test_dropped_rows_are_gone_and_reported(world):
    made = world.plan("drop", "drop")
    left = world.pool(made)
    assert left.ids == ("p00", "p01", "p03", "p04", "p06", "p08", "p09")
    stage = made.pools["main"]
    report = world.store.get(stage).info["report"]
    assert (report["rows"], report["kept"]) == (10, 7)
    assert report["problems"] == {
        "overlaps an evaluation item or a query": {"count": 3, "ids": ["p02", "p05", "p07"]}
    }
    queryset = made.queries["main"]["queryset"]
    info = world.store.get(queryset).info["report"]
    assert info["problems"] == {"overlaps an evaluation item": {"count": 1, "ids": ["row-000004"]}}


def test_queries_go_first_and_take_their_overlaps_with_them(world):
    """A query of two halves: one stands in the exam, the other in the pool."""
    world.write_pool([words(200, 20), "what is 1?"])
    write(world.folder / "exam.jsonl", [{"q": words(300, 20), "answer": "1"}])
    mixed = f"{words(300, 20)} and {words(200, 20)}"
    rows = [{"prompt": text, "response": "#### 1"} for text in (mixed, "what is 2?")]
    write(world.folder / "queries.jsonl", rows)
    assert world.pool(world.plan("drop", "keep")).ids == ("p01",)
    assert world.pool(world.plan("drop", "drop")).ids == ("p00", "p01")


def test_a_pool_of_which_nothing_is_left_is_an_error(world):
    world.write_pool(["what is 0 - 0?"])
    with pytest.raises(ValueError, match="pool: all 1 rows overlap other data sets; .* at least"):
        world.pool(world.plan("drop"))


def test_arms_may_differ_in_what_becomes_of_overlaps(world):
    arm = '[[arm]]\nname = "dirty"\npool = { overlap = "keep" }'
    made = world.plan("drop", "keep", end=arm)
    assert [check.title for check in made.checks] == ["queries", "pool rows", "pool rows of dirty"]
    assert made.checks[1].stage.key == made.checks[2].stage.key  # one comparison, two outcomes
    assert (len(world.pool(made)), len(world.pool(made, "dirty"))) == (7, 10)
    facts = overlap.facts(overlap.of_arm(made.checks, "dirty"), world.store)
    assert facts["pool"] == {"action": "keep", "rows": 3, "pairs": {"exam": 2, "query": 1}}
    refused = world.plan("keep", "keep", end=arm.replace("keep", "refuse"))
    assert overlap.refusal(refused.checks, world.store).startswith("arm dirty: data sets overlap;")


@pytest.mark.parametrize("name", ["pool", "query"])
def test_a_task_with_the_name_of_another_set_is_refused(world, name):
    world.say(tasks=f'["{name}"]')
    world.file.write_text(world.file.read_text().replace('name = "exam"', f'name = "{name}"'))
    with pytest.raises(ValueError, match=f"task '{name}' has the name of another data set"):
        plan.make(config.load(world.file), world.file)


def test_the_plan_says_what_becomes_of_overlaps(world):
    made = world.plan("keep", "drop")
    notes = [n for n in forecast.forecast(made, world.store)["notes"] if n.startswith("Overlap")]
    assert notes == [
        "Overlap: queries are compared with exam before anything is trained; "
        "what stands in both is left out before anything uses it.",
        "Overlap: pool rows are compared with exam, the query set before anything is trained; "
        "what stands in both is kept and reported.",
    ]
    world.make(made.checks[0].stage)
    assert overlap.outlook(made.checks[:1], world.store) == [
        "Overlap: queries are compared with exam before anything is trained; 1 found, dropped."
    ]


def test_a_run_stops_before_training_and_goes_on_once_the_rows_are_kept(world, monkeypatch, capsys):
    world.say()
    command = ["cotsieve", "run", str(world.file), "--store", str(world.store.root), "--no-report"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as left:
        app.main()
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert "error: data sets overlap; expected no question in two of them" in said
    assert "2 pool rows and 2 items of 'exam' overlap: 2 pairs" in said
    assert "1 pool row and 1 query overlap: 1 pair" in said
    assert "query 'row-000004' and item 'row-000004' of 'exam': same question" in said
    assert '[pool] and [query] overlap = "drop" leaves these rows out' in said
    assert world.kinds() == DATA
    assert not world.results.exists()
    stored = {path for path in world.store.root.glob("*/*/meta.json")}

    world.say("keep", "keep")
    done = world.call("run", world.file)
    assert done.exit_code == 0, done.output
    assert stored < set(world.store.root.glob("*/*/meta.json"))
    facts = json.loads((world.results / "facts.json").read_text())["arms"]["main"]["overlap"]
    assert facts["pool"] == {"action": "keep", "rows": 3, "pairs": {"exam": 2, "query": 1}}
    assert facts["query"] == {"action": "keep", "rows": 1, "pairs": {"exam": 1}}
    names = ("side", "id", "other", "item", "rule")
    assert [tuple(entry[name] for name in names) for entry in facts["first"]] == FOUND
    table = pd.read_parquet(world.results / "overlap.parquet")
    assert list(table.columns) == [*names, "share", "text", "item_text"]
    assert [tuple(row) for row in table[list(names)].to_numpy()] == FOUND
    note = (
        "Overlap: 3 pool rows overlap with exam and the query set and were kept, as the experiment "
        "says; 1 query overlaps with exam and was kept, as the experiment says."
    )
    assert overlap_notes(load(world.results)[0]) == [note]
    assert note in (world.folder / "reports/own/main.md").read_text()

    world.say()  # records of a run that kept them are no results of one that refuses
    lines = records.read(world.results)
    refused = world.call("run", world.file)
    assert isinstance(refused.exception, ValueError)
    assert records.read(world.results) == lines


def test_a_run_without_the_rows(world):
    made = world.plan("drop", "drop")
    summary = running.Run(made, world.store, world.results, workers=1).execute(running.View())
    write_texts(made, world.store, world.results)
    assert summary.failed == {}
    newest = records.newest(records.read(world.results))
    chosen = pd.read_parquet(world.results / newest["length@0.5#0"]["selection"])
    assert (len(chosen), chosen["chosen"].sum(), set(chosen["id"]) & {"p02", "p05", "p07"}) == (
        7, 4, set(),
    )  # fmt: skip
    kept = texts.read_examples(world.results, "main")
    assert set(kept) == set(chosen["id"])  # few enough for a page to show all of them
    assert [text.kept for text in kept["p03"]] == ["what is 3 + 15?", "#### 1"]
    assert newest["full@1#0"]["n_examples"] == 7
    assert newest["full@1#0"]["parents"]["pool"] == made.pools["main"].key
    facts = json.loads((world.results / "facts.json").read_text())["arms"]["main"]
    assert facts["n_queries"] == 3
    assert facts["pool"]["kept"] == 7
    assert facts["overlap"]["pool"]["rows"] == 3
    assert len(pd.read_parquet(world.results / "overlap.parquet")) == 4
    assert overlap_notes(load(world.results)[0])[0].startswith(
        "Overlap: 3 pool rows overlap with exam and the query set and were dropped before anything"
    )
    again = running.Run(made, world.store, world.results, workers=1).execute(running.View())
    assert again.jobs == 0

    world.write_pool(["what is 1 + 1?", "what is 1 + 2?"])
    more = world.plan("drop", "drop")
    running.Run(more, world.store, world.results, workers=1, only="row=full").execute(
        running.View()
    )
    left = pd.read_parquet(world.results / "overlap.parquet")
    assert left["side"].tolist() == ["query"]


def test_nothing_is_run_while_a_data_set_cannot_be_read(world):
    world.write_pool(["what is 1 + 1?", ""])
    made = world.plan("keep", "keep")
    summary = running.Run(made, world.store, world.results, workers=1).execute(running.View())
    assert set(summary.failed) == {cell.name for cell in made.cells}
    assert not world.kinds() & MODEL
    entry = records.newest(records.read(world.results))["base@0#0"]
    assert entry["error"]["label"] == "pool"
    assert "empty or missing 'question'" in entry["error"]["message"]


def test_the_command_lists_what_it_finds(world):
    world.say(query="keep")
    listed = world.call("overlap", world.file)
    assert isinstance(listed.exception, SystemExit), (listed.exception, listed.stderr)
    assert listed.exit_code == 1, listed.output
    assert listed.stdout.split("\n")[:6] == [
        "queries and exam (kept):",
        "  1 query and 1 item of 'exam' overlap: 1 pair (1 by same question)",
        "  query 'row-000004' and item 'row-000004' of 'exam': same question",
        "    what is 3 - 21",
        "    what is 3 - 21?",
        "pool rows and exam, the query set (refused):",
    ]
    assert listed.stdout.endswith(
        '\n[pool] overlap = "drop" leaves these rows out; overlap = "keep" keeps them\n'
    )
    assert world.kinds() == DATA
    assert not world.results.exists()

    found = json.loads(world.call("overlap", world.file, "--json").stdout)
    assert (found["experiment"], found["refused"]) == ("own", True)
    assert [(c["side"], c["action"], c["rows"]) for c in found["checks"]] == [
        ("query", "keep", 1),
        ("pool", "refuse", 3),
    ]
    assert found["checks"][1]["findings"][0]["id"] == "p05"

    world.say("drop", "keep")
    dropped = world.call("overlap", world.file)
    assert (dropped.exit_code, "overlap =" in dropped.stdout) == (0, False)


def test_the_command_names_a_data_set_that_cannot_be_read(world):
    world.write_pool([""])
    world.say()
    refused = world.call("overlap", world.file)
    assert isinstance(refused.exception, ValueError)
    assert str(refused.exception).startswith("pool: ValueError: pool.jsonl: 1 of 1 rows cannot be")


def test_the_command_says_that_the_testbed_needs_no_comparison(world):
    world.file.write_text(
        'name = "chain"\n[pool]\ndataset = "testbed:chain"\n[train]\nlearning_rate = 1e-3\n'
        '[evaluate]\ntasks = ["chain_far"]\nengine = "hf"\n[grid]\nfractions = [0.5]\nseeds = [0]\n'
    )
    listed = world.call("overlap", world.file)
    assert (listed.exit_code, listed.stdout.split(":")[0]) == (0, "Nothing to compare")
    assert not world.store.root.exists()


def test_rows_planted_in_gsm8k_and_its_own_three_are_found(world):
    data, base = os.environ.get("COTSIEVE_REAL_DATA"), os.environ.get("COTSIEVE_REAL_TOKENIZER")
    if data is None or base is None:
        pytest.skip("COTSIEVE_REAL_DATA or COTSIEVE_REAL_TOKENIZER is not set")
    lines = (Path(data) / "gsm8k_train.jsonl").read_text(encoding="utf-8").split("\n")
    train = [json.loads(line) for line in lines if line]
    test = (Path(data) / "gsm8k_test.jsonl").read_text(encoding="utf-8").split("\n")
    test = [json.loads(line)["question"] for line in test[:5]]
    train[100]["question"] = test[0]
    train[2000]["question"] = test[2].upper().replace(" ", " \n") + "!!"
    rest = test[4].partition(". ")[2]
    train.append({**train[0], "question": f"Somebody keeps hens, three cups for each. {rest}"})
    write(world.folder / "pool.jsonl", train)
    world.file.write_text(
        f'name = "real"\n[pool]\ndataset = "pool.jsonl"\nprompt = "question"\n'
        f'response = "answer"\n[model]\nbase = "{base}"\n[train]\nlearning_rate = 1e-5\n'
        '[evaluate]\ntasks = ["gsm8k"]\nengine = "hf"\n[grid]\nfractions = [0.5]\nseeds = [0]\n'
    )
    listed = world.call("overlap", world.file, "--task-data", data, "--json")
    assert isinstance(listed.exception, SystemExit), (listed.exception, listed.stderr)
    assert listed.exit_code == 1, listed.output
    (check,) = json.loads(listed.stdout)["checks"]
    assert {(f["id"], f["item"], f["rule"]) for f in check["findings"]} == {
        ("row-000101", "gsm8k-0001", contamination.SAME),
        ("row-002001", "gsm8k-0003", contamination.SAME),
        ("row-007474", "gsm8k-0005", contamination.SHARED),
        # GSM8K's own: a train and a plane at other speeds; stamps of another child.
        ("row-001315", "gsm8k-0603", contamination.SHARED),
        ("row-005163", "gsm8k-0603", contamination.SHARED),
        ("row-000021", "gsm8k-0633", contamination.SHARED),
    }
