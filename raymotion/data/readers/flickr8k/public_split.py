"""The split of the public project that trained on Flickr8k: by picture, 70/15/15, shuffled by NumPy with seed 42.

Of it are known: the seed, NumPy's legacy generator, the shares (rounded down, the rest for the test), and the sizes of
the three parts, 5,663, 1,213 and 1,215 of 8,091 pictures. Not known is the order of the pictures before the shuffle.
They are taken here in the order in which the file first names them, which is what `DataFrame["image"].unique()` gives.
The published lists of pictures were not there to compare with: sizes agree, the membership may differ.
"""

from __future__ import annotations

from collections.abc import Sequence

PICTURES, SEED = 8091, 42
SHARES = (0.7, 0.15)


def public_split(names: Sequence[str]) -> dict[str, str]:
    """Returns train, val or test for each of the distinct `names`, whose order counts."""
    import numpy as np

    order = np.random.RandomState(SEED).permutation(len(names))
    train, val = (int(share * len(names)) for share in SHARES)
    return {
        names[place]: "train" if rank < train else "val" if rank < train + val else "test"
        for rank, place in enumerate(order)
    }
