"""What the prepared environment (tests/conftest.py prepares it as jobs do) makes of what workers import."""

import os
import pickle
from pathlib import Path

import pytest
from webdataset.autodecode import Decoder, DecodingError
from webdataset.gopen import gopen


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def test_webdataset_runs_no_command_and_unpickles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own openers and decoders are used nowhere; were they, then so."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="cannot open pipe URLs"):
        gopen("pipe:touch executed")
    for member in ("pyd", "pickle", "pth"):
        with pytest.raises(DecodingError):
            Decoder([])({"__key__": "a", member: pickle.dumps(_Runs())})
    assert not (tmp_path / "executed").exists()
