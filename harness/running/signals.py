"""What a selector's context offers, built from the store the first time that it is asked for.

Costly signals (losses and states, graded decodes, influence) are artefacts of their own, shared by
every selector that asks for the same; what each cost is noted, so that a row's price is the price
of everything its selection needs, whoever happened to pay first.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.data.pool import Pool, tokens_of
from harness.data.queries import Answers, Queries
from harness.experiment.progress import Progress
from harness.experiment.stage import EXTERNAL, Stage
from harness.experiment.store import Artefact, Store
from harness.influence.costs import FORWARD
from harness.selection.context import Context, Influence
from harness.selection.selector import Selector

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel

    from harness.influence import Checkpoint, Curvature, CurvatureOptions

PER_QUERY = "queries.safetensors"
"""infl(v, d) of the queries behind the ranks."""
COMPLETIONS = ("whose", "completion", "decodes")
"""Options of influence that say what f_v is made of."""


def weights_in(folder: Path) -> int | None:
    """Parameters in a folder's safetensors files, read from their headers; None without any."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        total += sum(math.prod(tensor["shape"]) for tensor in tensors)
    return total or None


def parameters_of(model: Stage, store: Store) -> int | None:
    """Parameters of a model stage; None where its files are not on this machine."""
    if model.kind in EXTERNAL and "path" not in model.where:
        return None
    return weights_in(model_folder(model, store))


def model_folder(stage: Stage, store: Store) -> Path:
    """The folder of a model stage; a hub model is fetched into the hub's own cache."""
    if stage.kind not in EXTERNAL:
        return store.folder(stage.kind, stage.key)
    if "path" in stage.where:
        return Path(stage.where["path"])
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(stage.inputs["name"], revision=stage.inputs["revision"]))


def load_model(folder: Path, device: str) -> PreTrainedModel:
    """A model for gradients and features: float32, eager attention, eval mode."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="float32", attn_implementation="eager"
    )
    return model.to(device).eval()


def positions_of(folder: Path) -> int:
    """Longest sequence that a model's positions allow."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = settings.get("text_config", settings)
    return int(settings.get("max_position_embeddings", 2**20))


def load_queries(parents: Mapping[str, Stage], store: Store, rule: str = "majority") -> Queries:
    """The query set with its answers before and after fine-tuning."""
    before, after, queryset = (
        store.folder(parents[role].kind, parents[role].key)
        for role in ("before", "after", "queryset")
    )
    return Queries(Pool.load(queryset), Answers.load(before), Answers.load(after), rule)


@dataclass
class Signals:
    """Providers of a context for one selector stage."""

    stage: Stage
    store: Store
    pool: Pool
    device: str
    progress: Progress
    provenance: Callable[[], Mapping[str, Any]]
    shared: dict[str, float] = field(default_factory=dict)
    waited: float = 0.0
    operations: float = 0.0
    """Estimated floating-point operations per model parameter."""
    given: Context | None = None
    loaded: PreTrainedModel | None = None
    asked: dict[str, Artefact] = field(default_factory=dict)
    """What was asked for and paid for already, by key."""

    def context(self, selector: Selector, rng: np.random.Generator | None) -> Context:
        """The context that `selector` is given."""
        needs = selector.requirements()
        providers: dict[str, Callable[[], Any]] = {
            "model": self.base,
            "reference": self.reference,
            "tokenizer": self.tokenizer,
            "features": self.features,
            "decodes": lambda: self.decodes,
            "queryset": self.queryset,
            "queries": self.queries,
            "influence": lambda: Influence(self.influence, self.influence_per_query),
            "curvature": lambda: self.curvature,
            "trajectory": self.trajectory,
        }
        for need in needs:
            if need.startswith("row:"):
                providers[need] = partial(self._chosen, need)
        self.given = Context(
            providers, needs=needs, rng=rng, device=self.device, progress=self.progress
        )
        return self.given

    @property
    def costs(self) -> dict[str, Any]:
        """Seconds and operations of what was used, whoever made it, and the time waited for it."""
        operations = self.operations + (self.given.operations if self.given else 0.0)
        return {"shared": self.shared, "waited": self.waited, "operations": operations}

    def base(self) -> PreTrainedModel:
        """The base model."""
        return load_model(model_folder(self.stage.parents["model"], self.store), self.device)

    def reference(self) -> PreTrainedModel:
        """The model fine-tuned on the whole pool, loaded once."""
        if self.loaded is None:
            folder = model_folder(self.stage.parents["reference"], self.store)
            self.loaded = load_model(folder, self.device)
        return self.loaded

    def tokenizer(self) -> Any:
        """The tokenizer of the pool."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            model_folder(self.stage.parents["tokenizer"], self.store)
        )

    def queryset(self) -> Pool:
        """The query problems with reference responses."""
        stage = self.stage.parents["queryset"]
        return Pool.load(self.store.folder(stage.kind, stage.key))

    def trajectory(self) -> tuple[Checkpoint, ...]:
        """The checkpoints of a warm-up run."""
        from harness.training.trajectory import load_trajectory

        stage = self.stage.parents["trajectory"]
        base = partial(load_model, model_folder(stage.parents["model"], self.store), self.device)
        return load_trajectory(self.store.folder(stage.kind, stage.key), base)

    def queries(self) -> Queries:
        """The answered query set."""
        rule = self.stage.inputs.get("rule", "majority")
        return load_queries(self.stage.parents, self.store, rule)

    def _chosen(self, need: str) -> tuple[str, ...]:
        from harness.selection.subset import read_subset

        other = self.stage.parents[need]
        return read_subset(self.store.folder(other.kind, other.key))

    def features(self) -> Any:
        """Losses and states of the base model, kept in the store per pool."""
        from harness.selection.features import Features

        return Features(
            self.base(), cache=self._feature, device=self.device, progress=self.progress
        )

    def _feature(
        self, name: str, pool: Pool, build: Callable[[], dict[str, npt.NDArray[Any]]]
    ) -> dict[str, npt.NDArray[Any]]:
        from safetensors.numpy import load_file, save_file

        def write(folder: Path) -> dict[str, Any]:
            arrays = {key: np.ascontiguousarray(value) for key, value in build().items()}
            save_file(arrays, folder / "features.safetensors")
            return {}

        inputs = {"name": name, "data": pool.fingerprint}
        parents = {"model": self.stage.parents["model"]}
        made = self._shared(Stage("features", f"features {name}", inputs, parents), write)
        self.operations += FORWARD * tokens_of(pool)
        arrays: dict[str, npt.NDArray[Any]] = load_file(made.folder / "features.safetensors")
        return arrays

    def decodes(self, k: int, temperature: float) -> npt.NDArray[np.bool_]:
        """Sampled answers of the base model to the pool's questions, graded, shape [n, k]."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from harness.data.grading import Grader
        from harness.evaluation.engine import Engine
        from harness.evaluation.settings import Decoding, Settings

        model, pool = self.stage.parents["model"], self.pool
        answers = pool.column("answer")
        missing = [name for name, a in zip(pool.ids, answers, strict=True) if a is None]
        if missing:
            raise ValueError(
                f"{len(missing)} pool examples have no answer that can be graded, the first "
                f"{missing[0]!r}; expected one for each (column `answer`, or '#### ANSWER' or "
                "\\boxed{ANSWER} in the response)"
            )

        def write(folder: Path) -> dict[str, Any]:
            prompts = [pool.prompt_ids(i).tolist() for i in range(len(pool))]
            folder_in = model_folder(model, self.store)
            # As long as the pool's longest response, as far as the model's positions reach.
            prompt = max(map(len, prompts))
            length = min(prompt + int(pool.response_lengths.max()), positions_of(folder_in))
            decoding = Decoding(max_tokens=length - prompt, decodes=k, temperature=temperature)
            engine_name = self.stage.inputs["engine"]["name"]
            settings = Settings(engine_name, length, device=self.device)
            with Engine(folder_in, settings) as engine:
                completions = engine.generate(prompts, decoding)
            grader = Grader(self.stage.parents["pool"].inputs.get("kind", "plain"))
            try:
                correct = [
                    [grader.grade(c.text, answer).correct for c in row]
                    for row, answer in zip(completions, answers, strict=True)
                ]
            finally:
                grader.close()
            table = pa.table({"id": pool.ids, "correct": correct})
            pq.write_table(table, folder / "decodes.parquet")
            tokens = sum(len(c.ids) for row in completions for c in row)
            return {"tokens": tokens, "solve_rate": float(np.mean(correct))}

        inputs = {"k": k, "temperature": temperature, "engine": dict(self.stage.inputs["engine"])}
        parents = {"model": model, "pool": self.stage.parents["pool"]}
        made = self._shared(Stage("decodes", "graded decodes of the pool", inputs, parents), write)
        asked = sum(len(pool.prompt_ids(i)) for i in range(len(pool)))
        self.operations += FORWARD * (asked + made.info["tokens"])
        rows = pq.read_table(made.folder / "decodes.parquet").column("correct").to_pylist()
        return np.asarray(rows, dtype=bool)

    def curvature(self, **options: Any) -> Curvature:
        """Curvature of the pool's loss at the reference checkpoint; one fit serves everybody."""
        from harness.influence import Curvature, CurvatureOptions

        return Curvature.load(self._fitted(self._curvature(CurvatureOptions(**options))).folder)

    def _curvature(self, options: CurvatureOptions) -> Stage:
        """The stage of a fit: at the reference checkpoint, on the pool."""
        parents = {role: self.stage.parents[role] for role in ("pool", "reference")}
        return Stage("curvature", f"curvature {options.kind}", asdict(options), parents)

    def _fitted(self, stage: Stage) -> Artefact:
        from harness.influence import CurvatureOptions, fit
        from harness.influence.costs import fit_operations

        def write(folder: Path) -> dict[str, Any]:
            options = CurvatureOptions(**stage.inputs)
            model = self.reference()
            made = fit(model, self.pool, options, progress=self.progress)
            made.save(folder)
            return {"operations": fit_operations(model, self.pool, options), **made.report()}

        return self._counted(stage, write)

    def influence(self, **options: Any) -> pd.DataFrame:
        """Influence of every pool example on C and I, in pool order."""
        import pandas as pd

        made = self._influence(options)
        frame = pd.read_parquet(made.folder / "influence.parquet")
        frame.attrs = {name: made.info[name] for name in ("n_C", "n_I") if name in made.info}
        return frame

    def influence_per_query(self, **options: Any) -> dict[str, npt.NDArray[np.float32]]:
        """infl(v, d) of the queries behind the ranks, by side, each [n, q]."""
        from safetensors.numpy import load_file

        made = self._influence(options)
        columns: dict[str, npt.NDArray[np.float32]] = load_file(made.folder / PER_QUERY)
        return columns

    def _influence(self, options: Mapping[str, Any]) -> Artefact:
        from harness.influence import CurvatureOptions

        asked = dict(options)
        own = {f.name for f in fields(CurvatureOptions)} & asked.keys()
        curvature = CurvatureOptions(**{name: asked.pop(name) for name in own})
        stage = self._curvature(curvature)
        roles = ("pool", "queryset", "before", "after", "reference")
        parents = {**{role: self.stage.parents[role] for role in roles}, "curvature": stage}
        rule = {"rule": self.stage.inputs["rule"]} if "rule" in self.stage.inputs else {}
        whole = Stage("influence", "influence scores", {**asked, **rule}, parents)
        fitted = self._fitted(stage)  # apart, so that its time is not counted twice

        def write(folder: Path) -> dict[str, Any]:
            return self._write_influence(folder, fitted.folder, asked)

        return self._counted(whole, write)

    def _write_influence(
        self, folder: Path, fitted: Path, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        from safetensors.numpy import save_file

        from harness.influence import Curvature, influence_scores
        from harness.influence.completions import flipped
        from harness.influence.costs import scores_operations

        queries, more = self.queries(), dict(options)
        chosen = {name: more.pop(name) for name in COMPLETIONS if name in more}
        found = {side: flipped(queries, side, **chosen) for side in ("C", "I")}
        # An empty side has no columns; the selector that wants it says what is missing.
        sides = {side: made for side, made in found.items() if len(made)}
        if not sides:
            raise ValueError(
                f"fine-tuning on the whole pool changed none of {len(queries.pool)} queries from "
                "wrong to right or back (C and I are empty); expected at least one: ask more "
                "queries, or train longer"
            )
        columns: dict[str, npt.NDArray[np.float32]] = {}
        curvature = Curvature.load(fitted)
        frame = influence_scores(
            self.reference(),
            self.pool,
            sides.get("C"),
            sides.get("I"),
            curvature=curvature,
            columns=columns,
            progress=self.progress,
            **more,
        )
        facts = {**frame.attrs, **chosen}
        facts["operations"] = scores_operations(
            self.pool, list(sides.values()), curvature.options, facts
        )
        frame.attrs = {}  # parquet would keep them, times included: equal scores, unequal bytes
        frame.to_parquet(folder / "influence.parquet", index=False)
        save_file(
            {side: np.ascontiguousarray(values) for side, values in columns.items()},
            folder / PER_QUERY,
        )
        return facts

    def _counted(self, stage: Stage, write: Callable[[Path], Mapping[str, Any]]) -> Artefact:
        """A shared artefact that knows its operations, paid for once however often it is used."""
        if stage.key not in self.asked:
            self.asked[stage.key] = self._shared(stage, write)
            self.operations += self.asked[stage.key].info["operations"]
        return self.asked[stage.key]

    def _shared(self, stage: Stage, write: Callable[[Path], Mapping[str, Any]]) -> Artefact:
        start = time.perf_counter()
        made = self.store.make(stage.kind, stage.key, stage.recipe, write, self.provenance)
        self.waited += time.perf_counter() - start
        self.shared[stage.kind] = self.shared.get(stage.kind, 0.0) + made.seconds
        return made
