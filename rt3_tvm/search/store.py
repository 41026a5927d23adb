"""What a search keeps between its phases: tensors as safetensors with figures as JSON beside them, one file a phase."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.files import written_whole

Tensors = dict[str, torch.Tensor]
Facts = dict[str, Any]


@dataclass(frozen=True)
class Store:
    """A folder of states by name. A file is whole or not there: it is written under another name and renamed."""

    folder: Path

    def path(self, name: str) -> Path:
        """Return the file of a state."""
        return self.folder / f"{name}.safetensors"

    def save(self, name: str, tensors: Tensors, facts: Facts) -> None:
        """Write a state over the one of that name."""
        path = self.path(name)
        whole = {k: v.detach().clone().contiguous() for k, v in tensors.items()}  # safetensors refuses shared memory
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob(f".{path.name}.*"):  # of a search that was killed: this one holds the folder
                stale.unlink()
            with written_whole(path) as temporary:
                save_file(whole, temporary, {"facts": json.dumps(facts)})
        except (OSError, SafetensorError) as error:
            raise JobError(f"cannot write '{path}': {error}") from error

    def read(self, name: str) -> tuple[Tensors, Facts] | None:
        """Return a state, or None where there is none."""
        path = self.path(name)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}
                return tensors, json.loads(file.metadata()["facts"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise Rt3Error(f"'{path}' is damaged ({error}): begin anew with `restart`") from error

    def keep(self, names: Sequence[str]) -> None:
        """Remove every state but those of these phases, ended or not."""
        for path in self.folder.glob("*.safetensors"):
            if path.name.split(".")[0] not in names:
                path.unlink()

    def remove(self, name: str) -> None:
        """Remove a state."""
        self.path(name).unlink(missing_ok=True)


def take(tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def put(tensors: Tensors, prefix: str) -> Tensors:
    """Return tensors under a prefix."""
    return {prefix + k: v for k, v in tensors.items()}
