"""Effects of the prepared environment on what workers import. tests/conftest.py prepares it as jobs do."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from webdataset.autodecode import Decoder, DecodingError
from webdataset.gopen import gopen


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def test_webdataset_runs_no_command_and_unpickles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """We use none of its openers and decoders; this makes sure that they would be safe."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="cannot open pipe URLs"):
        gopen("pipe:touch executed")
    for member in ("pyd", "pickle", "pth"):
        with pytest.raises(DecodingError):
            Decoder([])({"__key__": "a", member: pickle.dumps(_Runs())})
    assert not (tmp_path / "executed").exists()


def test_the_token_is_gone_where_the_process_leaves_at_once(tmp_path: Path) -> None:
    script = (
        "import os; from pipeline.cluster.ray_environment import prepare_ray_environment, remove_token;"
        "prepare_ray_environment(); "
        "assert os.path.exists(os.environ['RAY_AUTH_TOKEN_PATH']); remove_token(); os._exit(130)"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"TMPDIR": str(tmp_path)}
    left = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (left.returncode, left.stderr) == (130, "")
    assert list(tmp_path.iterdir()) == []
