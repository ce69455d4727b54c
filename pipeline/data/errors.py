"""What is wrong with data, said to people: every fault found, the first of them written out."""

from collections.abc import Sequence

MAX_SHOWN = 20


class DataError(ValueError):
    """Data that cannot be used; `faults` has one sentence for each thing to mend."""

    def __init__(self, message: str, faults: Sequence[str] = ()) -> None:
        shown = [f"  - {fault}" for fault in faults[:MAX_SHOWN]]
        if len(faults) > MAX_SHOWN:
            shown.append(f"  - and {len(faults) - MAX_SHOWN} more")
        super().__init__("\n".join([message, *shown]))
        self.faults = list(faults)

    def __reduce__(self) -> tuple[type["DataError"], tuple[str]]:
        """Crosses process borders with its text as it is."""
        return DataError, (str(self),)
