"""The switch to plain mode."""

from __future__ import annotations

import pytest

from hst import plain


@pytest.mark.parametrize(("value", "is_on"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_the_environment_decides(value: str | None, is_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(plain.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(plain.VARIABLE, value)
    assert plain.is_on() == is_on
    assert plain.environment() == ({} if value is None else {"HST_PLAIN": value})


def test_a_part_of_a_program_goes_them_and_what_is_around_it_does_not() -> None:
    def fails() -> None:
        with plain.only(), plain.only():
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert not plain.is_on()
    with plain.only():
        with plain.only():
            pass
        assert plain.is_on()
