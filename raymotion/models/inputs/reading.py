"""What a streamed input is read by while a model trains, and what comes of it.

Needs neither torch nor ray: the processes that decode need not wait for them.
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
    """Pictures of some rows.

    Attributes:
        arrays: what was made of them, by name: each (n, ...); zeros where there is nothing.
        status: (n,) READ, ABSENT (the sample has no picture) or UNREADABLE.
        reasons: row -> why its picture could not be read; or, of one that was READ, what is damaged in it.
    """

    arrays: dict[str, np.ndarray]
    status: np.ndarray
    reasons: dict[int, str] = field(default_factory=dict)

    @property
    def pixels(self) -> np.ndarray:
        """(n, S, S, 3) uint8, where each row is one picture."""
        return self.arrays[PIXELS]

    @property
    def readable(self) -> np.ndarray:
        """Bool (n,): the rows whose picture was read."""
        return np.asarray(self.status == READ)


class Reader(Protocol):
    """Turns addresses into pictures. Small: it travels to the processes that decode."""

    @property
    def address_type(self) -> pa.DataType:
        """Of the addresses that it reads, in Arrow."""

    @property
    def row_bytes(self) -> int:
        """Of what it makes of one row."""

    def read_all(self, addresses: Sequence[Any], rows: Sequence[int], epoch: int, training: bool) -> Pictures:
        """The pictures of some rows; the view of each is drawn from the seed, the epoch and the row.

        Raises:
            AccessDenied, RunFailed: a permission is missing; a store does not answer. Neither is a picture's fault.
        """


def why_unreadable(uri: str | None, error: ImageError) -> str:
    """The reason for the record. (A store that is down is no `ImageError`: it ends the run, and masks no picture.)"""
    return f"{uri}: {error.reason}: {error}"
