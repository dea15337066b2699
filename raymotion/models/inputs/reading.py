"""Interfaces for reading pictures during training.

Imports neither torch nor ray, to keep the start of decoding processes fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

    from raymotion.data.images.decode import ImageError

READ, ABSENT, UNREADABLE = 0, 1, 2
PIXELS = "pixels"


@dataclass(frozen=True)
class Pictures:
    """Pictures of n rows.

    Attributes:
        arrays: arrays (n, ...) by name; zeros where nothing was read.
        status: (n,) READ, ABSENT (the sample has no picture) or UNREADABLE.
        reasons: row -> reason why its picture could not be read, or the damage in a picture that was READ.
    """

    arrays: dict[str, np.ndarray]
    status: np.ndarray
    reasons: dict[int, str] = field(default_factory=dict)

    @property
    def pixels(self) -> np.ndarray:
        """(n, S, S, 3) uint8, if each row has a single picture."""
        return self.arrays[PIXELS]

    @property
    def readable(self) -> np.ndarray:
        """Bool (n,): rows whose picture was read."""
        return np.asarray(self.status == READ)


class Reader(Protocol):
    """Reads pictures by address. Instances are small, as they are sent to the decoding processes."""

    @property
    def address_type(self) -> pa.DataType:
        """Arrow type of the addresses."""

    @property
    def row_bytes(self) -> int:
        """Size in bytes of the result for one row."""

    def read_all(self, addresses: Sequence[Any], rows: Sequence[int], epoch: int, training: bool) -> Pictures:
        """Reads the pictures of some rows; the view of each is drawn from the seed, the epoch and the row.

        Raises:
            AccessDenied, RunFailed: a permission is missing, or a store does not answer.
        """


def why_unreadable(uri: str | None, error: ImageError) -> str:
    """Returns the reason for the record. (An unavailable store is not an `ImageError`: it ends the run.)"""
    return f"{uri}: {error.reason}: {error}"
