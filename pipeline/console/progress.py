"""What a person sees of a job while it runs: one line at a time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any


def counted(number: int, noun: str) -> str:
    """1 task, 2 tasks."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def epochs_text(number: float) -> str:
    """1 epoch, 0.5 epochs."""
    return f"{number:.3g} epoch{'' if number == 1 else 's'}"


class Printer:
    """One line at a time, with the time of day, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, line: str) -> None:
        """Print a line at once."""
        with self._lock:
            print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)


class Progress:
    """One line for each evaluation, a tenth of the epochs apart: the latest of both runs and the time left."""

    def __init__(self, task: str, kinds: list[str], epochs: int, say: Callable[[str], None]) -> None:
        self.task, self.kinds, self.epochs, self.say = task, kinds, epochs, say
        self.latest: list[dict[str, Any] | None] = [None] * len(kinds)
        self.scores: list[dict[str, float]] = [{} for _ in kinds]
        self.told = 0
        self.first: tuple[int, float] | None = None

    def __call__(self, run: int, rows: list[dict[str, Any]]) -> None:
        """Told of new rows of a run; rows that came before are passed over. One run may be ahead of the other."""
        self.latest[run] = rows[-1]
        for new in rows:
            found = {name: value for name, value in new.items() if name.startswith(("val/", "test/"))}
            self.scores[run] = found or self.scores[run]
        epochs = [0 if row is None else int(row["epoch"]) for row in self.latest]
        epoch = min(epochs)
        if not epoch:
            return
        if self.first is None:
            self.first = (epoch, time.monotonic())
        tenth = max(1, self.epochs // 10)
        if (epoch // tenth == self.told // tenth and epoch != self.epochs) or epoch <= self.told:
            return
        self.told = epoch
        parts = []
        for kind, row, own in zip(self.kinds, self.latest, self.scores, strict=True):
            assert row is not None
            scores = "".join(f" {name} {value:.1%}" for name, value in own.items())
            parts.append(f"{kind} loss {row['train/loss']:.3f}{scores}")
        row = self.latest[0]
        assert row is not None
        since, at = self.first
        left = ""
        if epoch > since and epoch < self.epochs:
            minutes, seconds = divmod(round((time.monotonic() - at) / (epoch - since) * (self.epochs - epoch)), 60)
            left = f"  {minutes}m{seconds:02d}s left"
        rate = f"{row['images_per_second']:.0f} images/s"
        if "num_workers" in row:  # it changes
            rate += f" by {counted(int(row['num_workers']), 'worker')}"
        self.say(f"{self.task} {epoch}/{self.epochs}  {'  '.join(parts)}  {rate}{left}")


def sample_bar(title: str) -> Callable[[int, int], None]:
    """A bar with rate and time left, told (samples done, samples in all); where nobody watches, a line now and then."""
    from tqdm import tqdm

    bar: tqdm | None = None

    def tell(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(desc=title, total=total, unit=" images", mininterval=0.2 if sys.stderr.isatty() else 30)
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return tell
