"""`SkippingDataset`: samples by (position, index), and another one where a file is bad."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import DatasetFromList
from torch.utils.data import Dataset

from sst_d2.errors import SSTDataError


@dataclass(frozen=True)
class Draw:
    """What comes at one position.

    Attributes:
        sample: the mapped dict; None: no good one was found.
        bad: the files that were met before it, with what is wrong with each.
    """

    sample: dict[str, Any] | None
    bad: tuple[tuple[str, SSTDataError], ...] = ()


class SkippingDataset(Dataset):
    """Dataset dicts that go through a mapper, which learns their position.

    In the place of a bad sample comes another one of its own label domain: the next in a random order that depends on
    (seed, position) alone, so that a resumed run, and any number of workers, meets the same images.

    Args:
        samples: the dataset dicts.
        mapper: from a dataset dict, with ``sample_position``, to what the model takes.
        max_bad: the most bad samples to pass over at one position; 0: none, a bad one is handed on by itself.
        seed: origin of the random orders.
    """

    def __init__(
        self,
        samples: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        max_bad: int = 0,
        seed: int = 0,
    ) -> None:
        self._samples = DatasetFromList(list(samples), copy=False)
        self._mapper = mapper
        self._max_bad = max_bad
        self._seed = seed
        names = np.asarray([sample.get("label_domain", "") for sample in samples])
        self._pools = {str(name): np.flatnonzero(names == name) for name in np.unique(names)}

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, key: tuple[int, int]) -> Draw:
        position, index = key
        bad = []
        for candidate in self._candidates(position, index):
            try:
                sample = self._mapper({**self._samples[candidate], "sample_position": position})
            except SSTDataError as error:
                # As a value: raised in a worker process, its sentence would drown in a traceback.
                bad.append((str(self._samples[candidate].get("file_name")), error))
            else:
                return Draw(sample, tuple(bad))
        return Draw(None, tuple(bad))

    def _candidates(self, position: int, index: int) -> Iterator[int]:
        """``index``, and where it is bad, others of its label domain."""
        yield index
        if self._max_bad:
            pool = self._pools[self._samples[index].get("label_domain", "")]
            order = np.random.default_rng([self._seed, position]).permutation(pool[pool != index])
            yield from map(int, order[: self._max_bad])
