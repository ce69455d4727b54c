"""The lines that a job prints while it runs."""

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
    """Prints one line at a time, with the time of day, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, line: str) -> None:
        """Print a line at once."""
        with self._lock:
            print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)


class Progress:
    """Prints a line for each tenth of the epochs: the latest numbers of every run and the time left.

    Args:
        task: what a line begins with.
        runs: their names.
        epochs: the number of epochs of each run.
        say: prints a line.
        text_of: a metric's name and value -> the value for people.
    """

    def __init__(
        self,
        task: str,
        runs: list[str],
        epochs: int,
        say: Callable[[str], None],
        *,
        text_of: Callable[[str, float], str],
    ) -> None:
        self.task, self.runs, self.epochs, self.say, self.text_of = task, runs, epochs, say, text_of
        self.latest: list[dict[str, Any] | None] = [None] * len(runs)
        self.scores: list[dict[str, float]] = [{} for _ in runs]
        self.told = 0
        self.first: tuple[int, float] | None = None

    def __call__(self, run: int, rows: list[dict[str, Any]]) -> None:
        """Takes new rows of a run; rows that came before print nothing. One run may be ahead of the others."""
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
        self.say(f"{self.task} {epoch}/{self.epochs}  {'  '.join(self._parts())}  {self._speed(epoch)}")

    def _parts(self) -> list[str]:
        """Each run's loss and latest scores."""
        parts = []
        for name, row, own in zip(self.runs, self.latest, self.scores, strict=True):
            assert row is not None
            scores = "".join(f" {metric} {self.text_of(metric, value)}" for metric, value in own.items())
            parts.append(f"{name} loss {row['train/loss']:.3f}{scores}")
        return parts

    def _speed(self, epoch: int) -> str:
        """The first run's speed, and the time left."""
        row = self.latest[0]
        assert self.first is not None
        assert row is not None
        since, at = self.first
        left = ""
        if epoch > since and epoch < self.epochs:
            minutes, seconds = divmod(round((time.monotonic() - at) / (epoch - since) * (self.epochs - epoch)), 60)
            left = f"  {minutes}m{seconds:02d}s left"
        rate = f"{row['images_per_second']:.0f} images/s"
        if "num_workers" in row:  # their number may change
            rate += f" by {counted(int(row['num_workers']), 'worker')}"
        return f"{rate}{left}"


def sample_bar(title: str) -> Callable[[int, int], None]:
    """A function of (samples done, samples in all) that shows a bar, with a line now and then where nobody watches."""
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
