"""Where a model computes."""

from __future__ import annotations

import torch

from mobilevitv2.errors import ConfigurationError


def choose_device(device: str | torch.device | None) -> torch.device:
    """The named device, or the best one there is.

    Raises:
        ConfigurationError: a device that there is not, with those that there are.
    """
    if device is None:
        return torch.device(_devices()[0])
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen).cpu()  # asks for the device itself
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigurationError(
            f"device={str(device)!r} cannot be used ({reason}); there are: {', '.join(_devices())}."
        ) from error
    return chosen


def _devices() -> list[str]:
    """The devices of this machine, fastest first."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
