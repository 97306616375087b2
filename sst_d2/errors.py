"""The errors that a user can mend. Command-line tools print them without a traceback."""

from __future__ import annotations


class SSTError(ValueError):
    """A mistake in what the user gave: a file, a value, a combination. The message names object, value and remedy."""


class LabelDomainError(SSTError):
    """A label domain file or name is not usable."""


class DatasetCardError(SSTError):
    """A dataset card, or a file that it names, is not usable."""


class SSTDataError(SSTError):
    """An image or a label map is damaged, or does not fit its label domain."""


class SSTConfigError(SSTError):
    """A configuration asks for something that does not exist or does not fit together."""


class SSTCheckpointError(SSTError):
    """A checkpoint file is absent, damaged, or belongs to another network."""


class SSTNumericError(SSTError, FloatingPointError):
    """A loss became infinite or NaN."""


class SSTProcessError(SSTError):
    """A process of the run has ended before its time."""
