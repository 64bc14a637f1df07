"""Whether a detector's suppression goes inside the file, and with which settings."""

from __future__ import annotations

from mobilevitv2.errors import ConfigurationError
from mobilevitv2.export.formats import FORMATS, ExportFormat
from mobilevitv2.export.request import Suppression


def suppression_inside(given: Suppression | None, fmt: ExportFormat, *, task: str, postprocessing: bool) -> Suppression | None:
    """The settings that the file gets; None where no suppression is inside.

    Raises:
        ConfigurationError: settings were given for a file that has no suppression inside.
    """
    possible = task == "detect" and postprocessing and fmt.suppression
    if given is None or possible:
        return (given or Suppression()) if possible else None
    able = " or ".join(name for name, each in FORMATS.items() if each.suppression)
    if task != "detect":
        reason = f"a model of task {task!r} finds no boxes; leave suppression out"
    elif not fmt.suppression:
        reason = (
            f"format {fmt.name} gives boxes before suppression; leave suppression out and do it behind the file, or take {able}"
        )
    else:
        reason = "raw outputs are asked for; leave suppression out, or postprocessing=False (--raw-outputs)"
    raise ConfigurationError(f"suppression={given} would have no effect: {reason}.")
