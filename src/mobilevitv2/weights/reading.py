"""From a file to a state dict: safetensors and torch files, plain or nested; anything else is refused with the reason.

Nothing in a file is ever executed: torch files are read with `weights_only=True`.
"""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import pickletools
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevitv2.errors import UnknownWeightsFormat, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

# Where training frameworks keep the weights inside a checkpoint. Averaged weights first: the published scores are theirs.
NESTS = ("state_dict_ema", "ema_model_state_dict", "model_ema", "model_state_dict", "state_dict", "model")
# What wrappers put in front of every name: data parallel, torch.compile, Lightning.
WRAPPERS = ("module.", "_orig_mod.", "model.")
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = ".safetensors, .pt, .pth, .bin or .ckpt"

# First bytes of files that people mistake for weights.
IMPOSTORS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself; fetch it with 'git lfs pull'"),
    (b"\xfd7zXZ\x00", "xz-compressed; unpack it first ('unxz')"),
    (b"\x1f\x8b", "gzip-compressed; unpack it first ('gunzip' or 'tar xzf')"),
    (b"\x89HDF\r\n", "an HDF5 file (Keras); this package reads PyTorch weights only"),
    (b"\x93NUMPY", "a NumPy array; this package reads PyTorch weights only"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"%PDF", "a PDF document"),
)
ZIP, PICKLE = b"PK\x03\x04", b"\x80"


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU, names without the wrappers' prefixes.

    Args:
        path: a file; or a folder in Hugging Face format, whose model.safetensors or pytorch_model.bin is read. Checkpoints that
            keep the state dict under `model_state_dict`, `state_dict`, `model` and the like are understood; averaged (EMA) weights
            are preferred to raw ones where a checkpoint has both.

    Raises:
        UnknownWeightsFormat: no weights at all, or a pickle that wants to run code.
        WeightsError: damaged, empty or not to be found.
    """
    file = _weights_file(Path(path))
    start = _first_bytes(file)
    _refuse_impostors(file, start)
    content = _load_safetensors(file) if _is_safetensors(start) else _load_torch(file, start)
    return _unwrap(_find_state_dict(content, file))


def looks_like_html(start: bytes) -> bool:
    """Whether a file starts as a web page does, such as the error page of a server that should have sent something else."""
    head = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    return head.startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))


def _weights_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise WeightsError(f"{path} is a folder without {' or '.join(FOLDER_FILES)} (it holds {held}). Name the weights file itself.")


def _first_bytes(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            start = stream.read(512)
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error.strerror}. Check the path and its permissions.") from error
    if not start:
        raise WeightsError(f"{file} is empty (0 bytes); the download or copy did not finish. Get the file again.")
    return start


def _refuse_impostors(file: Path, start: bytes) -> None:
    if looks_like_html(start):
        raise UnknownWeightsFormat(
            f"{file} is a web page, not weights: a server or proxy answered with HTML. Download the file again and look at it."
        )
    for magic, what in IMPOSTORS:
        if start.startswith(magic):
            raise UnknownWeightsFormat(f"{file} is {what}.")


# ---- safetensors -----------------------------------------------------------------------------------------------------------------


def _is_safetensors(start: bytes) -> bool:
    """Eight bytes of header length, then a JSON object."""
    return start[8:9] == b"{"


def _load_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file, device="cpu")
    except (SafetensorError, ValueError) as error:
        raise WeightsError(
            f"{file} is a damaged or truncated safetensors file of {file.stat().st_size:,} bytes ({error}). Get the file again."
        ) from error


# ---- torch files -----------------------------------------------------------------------------------------------------------------


def _load_torch(file: Path, start: bytes) -> Any:
    import torch

    if not start.startswith((ZIP, PICKLE)):
        raise UnknownWeightsFormat(
            f"{file} is no weights file: it starts with {start[:16]!r}. This package reads {SUFFIXES} files of PyTorch."
        )
    try:
        # Harmless, and in every training checkpoint of timm: the command line's options.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # what torch would warn of is an error below, with the file's name
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(file, str(error)) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        if "TorchScript" in str(error):
            raise UnknownWeightsFormat(
                f"{file} is a TorchScript program, not weights. Save the state dict instead: torch.save(model.state_dict(), ...)."
            ) from error
        raise WeightsError(
            f"{file} is a damaged or truncated PyTorch file of {file.stat().st_size:,} bytes ({_first_line(error)}). "
            "Get the file again."
        ) from error


def _refusal(file: Path, message: str) -> WeightsError:
    """A pickle that torch would not read: one that wants to run code, or one that ends too early."""
    wanted = re.findall(r"GLOBAL ([\w.]+)|class ([\w.]+)|function ([\w.]+)|Trying to (?:call|instantiate) ([\w.]+)", message)
    found = {name for match in wanted for name in match} | set(_globals_of_plain_pickle(file))
    names = sorted(
        name for name in found if "." in name and not name.startswith(("torch.serialization", "torch._utils", "collections."))
    )
    if not names:
        return UnknownWeightsFormat(
            f"{file} is a damaged pickle, or one that is not a state dict ({message.splitlines()[0][:200]}). Get the file again, "
            "from a source that offers safetensors if there is one."
        )
    return UnknownWeightsFormat(
        f"{file} was refused and nothing in it was run: it is a pickle that asks for {', '.join(names)} while loading, so it can "
        "execute code. Weights alone need no such thing. If you trust its source, load it with torch.load(..., "
        "weights_only=False), save the model's state dict with safetensors.torch.save_file and use that file; otherwise delete it."
    )


def _globals_of_plain_pickle(file: Path) -> Iterator[str]:
    """What a pickle outside a zip archive would import; its instructions are listed, not run."""
    strings: list[str] = []
    content = file.read_bytes()
    try:
        for opcode, argument, _ in pickletools.genops(content) if content.startswith(PICKLE) else ():
            if opcode.name == "GLOBAL":
                yield str(argument).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL":
                yield ".".join(strings[-2:])
            elif isinstance(argument, str):
                strings.append(argument)
    except ValueError:  # the end of a damaged pickle
        return


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


# ---- from the content to the state dict ------------------------------------------------------------------------------------------


def _is_state_dict(content: object) -> bool:
    import torch

    return isinstance(content, Mapping) and bool(content) and all(isinstance(value, torch.Tensor) for value in content.values())


def _find_state_dict(content: object, file: Path) -> dict[str, Tensor]:
    if _is_state_dict(content):
        return {str(name): tensor for name, tensor in content.items()}  # type: ignore[attr-defined]
    if isinstance(content, Mapping):
        for nest in NESTS:
            if isinstance(content.get(nest), Mapping):
                logger.info("%s: taking the weights under %r", file, nest)
                return _find_state_dict(content[nest], file)
    raise UnknownWeightsFormat(f"{file} holds {_describe(content)}, not a state dict (names and tensors). Save model.state_dict().")


def _describe(content: object) -> str:
    if isinstance(content, Mapping):
        keys = ", ".join(repr(key) for key in list(content)[:6])
        return f"a dictionary with the keys {keys}{' and more' if len(content) > 6 else ''}" if content else "an empty dictionary"
    return f"a {type(content).__name__}"


def _unwrap(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes that wrappers gave to all of them; their counters aside (timm's averaging keeps one)."""
    while True:
        prefix = next((wrapper for wrapper in WRAPPERS if all(name.startswith(wrapper) for name in state)), None)
        if prefix is None:
            return state
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
