"""Where a stage is built: its folder, its parents' artefacts, progress, perhaps an engine.

`build` finds the builder that a recipe names and calls it as `builder(recipe, workspace)`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.pool import Pool
from harness.evaluation.settings import Limits, Settings
from harness.experiment.progress import Progress, no_progress
from harness.experiment.stage import Stage
from harness.experiment.store import Artefact, Store
from harness.running.recipes import EngineChoice, HubModelRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.evaluation.backends import ProgressCallback
    from harness.evaluation.engine import Engine, EnginePool


def model_folder(stage: Stage, store: Store) -> Path:
    """The folder of a model stage; a hub model is fetched into the hub's own cache."""
    if isinstance(stage.recipe, HubModelRecipe):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(stage.recipe.name, revision=stage.recipe.revision))
    if stage.recipe.external:
        assert stage.path is not None
        return stage.path
    return store.folder(stage)


def parameters_of(model: Stage, store: Store) -> int | None:
    """Parameters of a model, from the headers of its safetensors; None where it is not here yet."""
    if isinstance(model.recipe, HubModelRecipe):
        return None
    total = 0
    for path in sorted(model_folder(model, store).glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        total += sum(math.prod(tensor["shape"]) for tensor in tensors)
    return total or None


def load_model(folder: Path, device: str) -> PreTrainedModel:
    """A model for gradients and features: float32, eager attention, eval mode."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="float32", attn_implementation="eager"
    )
    return model.to(device).eval()


def max_positions(folder: Path) -> int:
    """Longest sequence that a model's positions allow."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    return int(config.get("max_position_embeddings", 2**20))


def device() -> str:
    """Where models run."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def seed_for(*parts: Any) -> np.random.SeedSequence:
    """A seed sequence that depends on all `parts` and on nothing else."""
    text = json.dumps(parts)
    return np.random.SeedSequence(int(hashlib.sha256(text.encode()).hexdigest()[:32], 16))


@dataclass(frozen=True)
class EngineAccess:
    """How a job gets an engine.

    `limits`: what this run overrides of the engine's settings; `attempt`: how often the job was
    begun before, each time with fewer concurrent sequences in case it ran out of memory.
    """

    pool: EnginePool
    limits: Limits = field(default_factory=Limits)
    attempt: int = 0
    verbose: bool = False
    on_progress: ProgressCallback | None = None


@dataclass(frozen=True)
class Workspace:
    """Everything that a builder may use besides its recipe; it writes into `folder`."""

    stage: Stage
    store: Store
    folder: Path
    progress: Progress = no_progress
    engines: EngineAccess | None = None

    def parent(self, role: str) -> Path:
        """The folder of a parent's artefact, or of an external model."""
        return model_folder(self.stage.parents[role], self.store)

    def artefact(self, role: str) -> Artefact:
        """A parent's artefact."""
        return self.store.load(self.stage.parents[role])

    def pool(self, role: str = "pool") -> Pool:
        """A parent that is a pool or a query set."""
        return Pool.load(self.artefact(role).folder)

    def model(self, role: str = "model") -> PreTrainedModel:
        """A parent that is a model, for gradients and features."""
        return load_model(self.parent(role), device())

    def tokenizer(self, role: str = "tokenizer") -> PreTrainedTokenizerBase:
        """A parent's tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.parent(role))

    def engine(self, choice: EngineChoice, length: int, threads: int = 1) -> Engine:
        """The engine on the parent "model", for sequences of up to `length` tokens."""
        assert self.engines is not None
        model, folder = self.stage.parents["model"], self.parent("model")
        limits = self.engines.limits
        settings = Settings(
            name=choice.name,
            max_length=min(length, max_positions(folder)),
            threads=threads,
            device=device(),
            sequences=limits.sequences or 0,
            memory=limits.memory,
            batch_invariant=bool(choice.batch_invariant),
        )
        for _ in range(self.engines.attempt):
            settings = settings.fewer()
        base = model.parents.get("model")
        return self.engines.pool.engine(
            folder,
            settings,
            base=None if base is None else model_folder(base, self.store),
            verbose=self.engines.verbose,
            on_progress=self.engines.on_progress,
        )


def build(
    stage: Stage,
    store: Store,
    provenance: Callable[[], Mapping[str, Any]] = dict,
    progress: Progress = no_progress,
    engines: EngineAccess | None = None,
) -> Artefact:
    """The artefact of `stage`, built by its recipe's builder where the store lacks it."""
    module, _, function = stage.recipe.builder.partition(":")
    builder = getattr(importlib.import_module(module), function)

    def write(folder: Path) -> Mapping[str, Any]:
        workspace = Workspace(stage, store, folder, progress, engines)
        facts: Mapping[str, Any] = builder(stage.recipe, workspace)
        return facts

    return store.make(stage, write, provenance)
