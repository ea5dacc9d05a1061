"""Experiments: what is accepted, and that every refusal names file, key, value and expectation."""

import pytest

from harness.experiment import config

GOOD = """
name = "x"
[pool]
dataset = "testbed:chain"
size = 100
[train]
learning_rate = 5e-4
budget = "steps"
steps = 7
[query]
dataset = "testbed:queries"
[evaluate]
tasks = ["chain_core", "chain_far"]
[grid]
fractions = [0.5]
seeds = [0, 1]
[[selector]]
name = "influence"
rows = [{ strategy = "correct" }, { strategy = "combined", name = "both" }]
[[selector]]
name = "length"
"""


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "x.toml"
        path.write_text(text)
        return config.load(path)

    return load


def test_rows_by_hand(load):
    names = [row.row for row in load(GOOD).rows()]
    assert names == [
        "random",
        "influence/correct",
        "influence/both",
        "length",
        "base",
        "full",
        "oracle",
        "anti-oracle",
    ]


def test_name_is_not_a_parameter(load):
    both = load(GOOD).rows()[2]
    assert both.params == {"strategy": "combined"}


def test_discovered_selectors_join_only_where_asked(load):
    assert "mine" not in [r.row for r in load(GOOD).rows(("mine", "length"))]
    found = load(GOOD.replace('name = "x"', 'name = "x"\ndiscover = true'))
    names = [r.row for r in found.rows(("mine", "length"))]
    assert names.count("mine") == 1
    assert names.count("length") == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("size = 100", "sise = 100", r"pool\.sise = 100: unknown key; expected 'size'\?"),
        ("steps = 7", "stebs = 7", r"train\.stebs = 7: unknown key"),
        ("5e-4", '"fast"', r"train\.learning_rate = 'fast': expected a valid number"),
        ("steps = 7", "steps = 7.5", r"train\.steps = 7\.5: expected a valid integer"),
        ("[0.5]", "[0.0]", r"grid\.fractions\[0\] = 0\.0: expected greater than 0"),
        ("[0.5]", "[0.5, 1.01]", r"grid\.fractions\[1\] = 1\.01: expected less than or equal to 1"),
        ("[0, 1]", "[1, 1]", r"grid\.seeds: \[1, 1\] holds a value twice"),
        ("[0, 1]", "[]", r"grid\.seeds"),
        (
            '"testbed:queries"',
            '"testbed:chain_far"',
            r"query\.dataset = 'testbed:chain_far' is also the evaluation task 'chain_far'",
        ),
        ('"testbed:chain"', '"pool.jsonl"', r"pool\.dataset = 'pool\.jsonl': no such file"),
        ('"testbed:chain"', '"GAIR/LIMO"', r"revision = None for hub data set 'GAIR/LIMO'"),
        ('"testbed:chain"', '"testbed:chian"', r"'testbed:chian'; expected 'testbed:chain'"),
        ("steps = 7", "", r"budget = 'steps' with steps = None"),
        (
            'name = "length"',
            'name = "influence"\nrows = [{ strategy = "correct" }]',
            "twice|more than once",
        ),
        ("[grid]", "[grid]\nfractions = 1\n[x]", r"grid"),
        ("[query]", "[query]\ndecodes = 4", r"decodes = 4 with temperature = 0; .* above 0"),
        ("[query]", "[query]\ndecodes = 0", r"query\.decodes = 0: expected greater than or equal"),
        ("[query]", '[query]\nrule = "most"', r"query\.rule = 'most': expected 'majority', 'any'"),
        (
            "[query]",
            '[query]\noverlap = "drop"',
            r"query: overlap = 'drop' for 'testbed:queries'; expected none",
        ),
        ("[pool]", '[pool]\noverlap = "keep"', r"pool: overlap = 'keep' for 'testbed:chain'"),
        ("[pool]", '[pool]\noverlap = "ignore"', r"pool\.overlap = 'ignore': expected 'refuse'"),
    ],
)
def test_refusals(load, old, new, said):
    with pytest.raises(ValueError, match=said) as refused:
        load(GOOD.replace(old, new, 1))
    assert "x.toml" in str(refused.value)


def test_query_benchmark_is_recognised_under_another_spelling(load, tmp_path):
    (tmp_path / "MATH-500.jsonl").write_text("{}\n")
    text = GOOD.replace('"testbed:queries"', '"MATH-500.jsonl"')
    text = text.replace('"chain_far"', '"math_500"')
    text += '\n[[task]]\nname = "math_500"\ndata = "MATH-500.jsonl"\n'
    with pytest.raises(ValueError, match="is also the evaluation task 'math_500'"):
        load(text)


def test_an_unknown_experiment_lists_the_known_ones(tmp_path):
    (tmp_path / "quick.toml").write_text("")
    with pytest.raises(ValueError, match="'quik' does not exist; expected one of: quick"):
        config.find("quik", tmp_path)


def test_broken_toml_is_named(load):
    with pytest.raises(ValueError, match=r"x\.toml: not valid TOML"):
        load("name = ")


def test_decoding_of_queries_is_dumped_only_where_it_is_not_one_greedy_answer(load):
    assert "decodes" not in load(GOOD).model_dump()["query"]
    several = "[query]\ndecodes = 3\ntemperature = 0.6"
    query = load(GOOD.replace("[query]", several)).query
    dumped = query.model_dump(mode="json", exclude_none=True)
    assert (dumped["decodes"], dumped["temperature"], dumped["rule"]) == (3, 0.6, "majority")
    assert type(query).model_validate(dumped) == query


def test_what_becomes_of_overlaps_is_dumped_only_where_it_is_said(load, tmp_path):
    (tmp_path / "pool.jsonl").write_text("{}\n")
    own = GOOD.replace("testbed:chain", "pool.jsonl")
    silent, kept = load(own), load(own.replace("[pool]", '[pool]\noverlap = "keep"'))
    assert (silent.pool.overlap, kept.pool.overlap) == (None, "keep")
    assert "overlap" not in silent.model_dump(exclude_none=True)["pool"]
    assert kept.model_dump(exclude_none=True)["pool"]["overlap"] == "keep"


@pytest.mark.parametrize("name", ["quick", "smoke", "testbed"])
def test_shipped_experiments_load(name):
    from pathlib import Path

    folder = Path(__file__).parents[2] / "experiments"
    assert config.load(folder / f"{name}.toml").name == name
