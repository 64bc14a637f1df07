"""Every error the package raises on purpose.

    MobileViTV2Error
    ├── ConfigurationError   a setting that gives no valid model, recipe or request (also a ValueError)
    ├── WeightsError         a weights file that cannot be used (also a ValueError)
    │   ├── UnknownWeightsFormat   nothing this package reads
    │   ├── WrongTaskError         a good file, of another task
    │   └── WeightsMismatch        missing, extra or misshapen tensors
    ├── ImageError           one picture that cannot be read or used (also a ValueError)
    ├── DataError            a data set that cannot be trained or evaluated on (also a ValueError)
    ├── DownloadError        a file that cannot be fetched (also an OSError)
    └── MissingDependency    an optional package that is not installed (also an ImportError)

Each message says what was wrong, with the value, and what to do about it.
"""

from __future__ import annotations


class MobileViTV2Error(Exception):
    """Base of all errors raised on purpose by this package."""


class ConfigurationError(MobileViTV2Error, ValueError):
    """A setting, or a combination of settings, that gives no valid model, recipe or request."""


class WeightsError(MobileViTV2Error, ValueError):
    """A weights file that cannot be used."""


class UnknownWeightsFormat(WeightsError):
    """A file that holds no MobileViTV2 weights in any format this package reads."""


class WrongTaskError(WeightsError):
    """Weights of another task than the one asked for."""


class WeightsMismatch(WeightsError):
    """Missing, extra or misshapen tensors."""


class ImageError(MobileViTV2Error, ValueError):
    """One picture that cannot be read or used; the others are not affected."""


class DataError(MobileViTV2Error, ValueError):
    """A data set that cannot be trained or evaluated on."""


class DownloadError(MobileViTV2Error, OSError):
    """A file that cannot be fetched."""


class MissingDependency(MobileViTV2Error, ImportError):
    """An optional package that is not installed; the message names the extra that brings it."""
