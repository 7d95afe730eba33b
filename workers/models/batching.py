"""What all models in this process have in common: batches of like length, vectors of length 1."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Number = TypeVar("Number", np.float32, np.float64)


def batches_of(
    sizes: Sequence[int], budget: Callable[[], int], *, row_limit: int | None = None
) -> Iterator[list[int]]:
    """Indices by falling size, each batch within the budget when padded to its largest.

    What is larger than the budget is a batch by itself. The budget is asked for each time, since
    it may shrink while the batches are run.
    """
    batch: list[int] = []
    for n in sorted(range(len(sizes)), key=lambda n: sizes[n], reverse=True):
        if batch and (len(batch) == row_limit or sizes[batch[0]] * (len(batch) + 1) > budget()):
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch


def unit(vectors: NDArray[Number]) -> NDArray[Number]:
    """Rows of length 1; a row of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[Number] = vectors / lengths.clip(min=1e-12)
    return scaled
