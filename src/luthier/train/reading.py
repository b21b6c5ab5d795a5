"""How long the rows of the updates take to be read."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from luthier.run_folder import RunFolder


class Timed(Sequence[Any]):
    """The same rows; `seconds` is what reading them took so far."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = rows
        self.seconds = 0.0

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        began = time.perf_counter()
        row = self._rows[place]
        self.seconds += time.perf_counter() - began
        return row

    def during(self, fit: Callable[[], int], run: RunFolder, updates: int) -> int:
        """What `fit` gives, the updates that are done; where these are all, the seconds of it are kept among the run's metrics."""
        done = fit()
        if done == updates:  # a run that goes on has the lines of one that was never stopped
            run.add_reading(done, self.seconds)
        return done
