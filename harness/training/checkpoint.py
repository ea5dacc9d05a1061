"""A fine-tuned model on disk: an ordinary folder of the Hugging Face layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ADAPTER = "adapter"
"""Folder, inside a checkpoint that was fine-tuned with LoRA, of the adapter by itself."""
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.index.json", "*.pt", "*.pth", "*.gguf")
NOT_TOKENIZER = ("config.json", "generation_config.json", "train_log.json")


def save(model: Any, base: Path, out: Path, method: str, precision: str) -> None:
    """Weights, config and the base model's tokenizer files; with `lora` merged, and the adapter."""
    import torch

    if method == "lora":
        _save_adapter(model, out / ADAPTER)
        model = model.float().merge_and_unload()  # merged in float32, rounded once below
    if precision == "bfloat16":
        model = model.to(torch.bfloat16)
    model.config.use_cache = True  # the Trainer switched it off
    model.save_pretrained(out)
    for source in sorted(_tokenizer_files(base)):
        shutil.copyfile(source, out / source.name)


def _save_adapter(model: Any, out: Path) -> None:
    """What an engine on the base model serves, many of them one after the other."""
    model.save_pretrained(out)
    path = out / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = None  # a path of this machine
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (out / "README.md").unlink(missing_ok=True)  # peft's empty form of a model card


def _tokenizer_files(base: Path) -> Iterable[Path]:
    for path in base.iterdir():
        weight = any(path.match(pattern) for pattern in WEIGHT_FILES)
        if path.is_file() and not weight and path.name not in NOT_TOKENIZER:
            yield path
