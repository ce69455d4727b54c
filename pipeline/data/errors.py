"""The error for unusable data. It keeps all faults; its message shows the first of them."""

from collections.abc import Sequence

from pipeline.console.printable import printable

MAX_SHOWN = 20
_FEW = 3


def few(names: Sequence[str]) -> str:
    """The first names of many, as `printable` texts, and how many more there are."""
    return ", ".join(map(printable, names[:_FEW])) + (f" and {len(names) - _FEW:,} more" if len(names) > _FEW else "")


class DataError(ValueError):
    """Data that cannot be used; `faults` has one sentence for each thing to repair."""

    def __init__(self, message: str, faults: Sequence[str] = ()) -> None:
        shown = [f"  - {fault}" for fault in faults[:MAX_SHOWN]]
        if len(faults) > MAX_SHOWN:
            shown.append(f"  - and {len(faults) - MAX_SHOWN} more")
        super().__init__("\n".join([message, *shown]))
        self.faults = list(faults)

    def __reduce__(self) -> tuple[type["DataError"], tuple[str]]:
        """Keeps the text unchanged when the error is pickled for another process (`faults` is lost)."""
        return DataError, (str(self),)
