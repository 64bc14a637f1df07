"""What a run keeps on the disk to go on from, and the best of its averaged weights so far."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from mobilevitv2.errors import ConfigurationError
from mobilevitv2.train.recipe import Recipe, load_recipe
from mobilevitv2.weights.writing import write_whole

AVERAGE_FILE = "average.safetensors"
BEST_FILE = "best.safetensors"
FIXED = (
    "task",
    "batch_size",
    "seed",
    "validation_fraction",
    "width",
    "optimizer",
    "decay_all",
    "image_size",
    "quantise_for",
    "activation",
)
"""Settings that a run cannot change half-way: its steps, order of pictures, held-out part or network would be others."""


@dataclass(frozen=True)
class Best:
    """The evaluation that chose the weights."""

    score: float
    """Top-1, mIoU or AP, in percent."""
    loss: float
    """0 where the task has none to compare."""
    step: int

    def beaten_by(self, other: Best) -> bool:
        """Whether another evaluation is at least as good: with few pictures many are equal, and then the lower loss decides."""
        return (other.score, -other.loss) >= (self.score, -self.loss)


def save_state(model: nn.Module, path: Path, *, about: dict[str, str]) -> None:
    """A model's whole state in one file that is complete or not there.

    Raises:
        OSError: as the system gave it.
    """
    # Clones, because tensors of a foreign module may share memory or lie channels last, which safetensors does not write.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    write_whole(path, save(tensors, metadata=about))


def save_best(model: nn.Module, checkpoints: Path, best: Best) -> None:
    """Keep the best weights so far, with the evaluation that chose them."""
    about = {"score": repr(best.score), "loss": repr(best.loss), "step": str(best.step)}
    save_state(model, checkpoints / BEST_FILE, about=about)


def best_so_far(checkpoints: Path) -> Best | None:
    """The evaluation that chose the best weights of a run, if there was one."""
    if not (checkpoints / BEST_FILE).is_file():
        return None
    with safe_open(checkpoints / BEST_FILE, framework="pt") as file:
        about = file.metadata()
    return Best(float(about["score"]), float(about["loss"]), int(about["step"]))


def load_best(model: nn.Module, checkpoints: Path) -> None:
    """Put the best weights so far into a model."""
    model.load_state_dict(load_file(checkpoints / BEST_FILE))


def latest_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint of a run, if there is one."""
    found = [path.parent for path in (output / "checkpoints").glob(f"checkpoint-*/{AVERAGE_FILE}")]
    return max(found, key=lambda path: step_of(path), default=None)


def step_of(checkpoint: Path) -> int:
    """The optimiser step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def check_same_run(recipe: Recipe, folder: Path) -> None:
    """Refuse to go on from a run whose fixed settings are others.

    Raises:
        ConfigurationError: it names the setting, and both values.
    """
    saved = folder / "recipe.yaml"
    if not saved.is_file():
        return
    before = load_recipe(saved)
    for name in FIXED:
        was, now = getattr(before, name), getattr(recipe, name)
        if was != now:
            raise ConfigurationError(
                f"{folder} was begun with {name}={was}, which cannot become {now} half-way; resume with the same settings "
                f"(--recipe {saved}), or name another output folder."
            )
