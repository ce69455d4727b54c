"""What a job prints at its end, whoever prints it."""

import logging
import sys
import traceback

import pytest

from pipeline.console.command_line import leave_with

ADDRESS = "http://me:hunter22@host"


def test_what_a_job_prints_has_no_secrets_whoever_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> int:
        print("at", ADDRESS)
        sys.stdout.writelines([f"{ADDRESS}\n"])
        logging.getLogger("urllib3").addHandler(handler := logging.StreamHandler())
        logging.getLogger("urllib3").warning("retrying %s", ADDRESS)
        logging.getLogger("urllib3").removeHandler(handler)
        try:
            raise RuntimeError(f"{ADDRESS} refused")
        except RuntimeError as error:
            traceback.print_exception(error)
        return 3

    with pytest.raises(SystemExit, match="3"):
        leave_with(job)
    printed, told = capsys.readouterr()
    assert printed == "at http://***@host\nhttp://***@host\n"
    assert "retrying http://***@host\n" in told
    assert "RuntimeError: http://***@host refused\n" in told
    assert "hunter22" not in printed + told


def test_an_error_that_ends_the_process_has_no_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> int:
        raise RuntimeError(f"{ADDRESS} refused")

    with pytest.raises(RuntimeError) as raised:
        leave_with(job)
    sys.excepthook(raised.type, raised.value, raised.tb)  # as the interpreter does
    told = capsys.readouterr().err
    assert told.endswith("RuntimeError: http://***@host refused\n")
    assert "hunter22" not in told


def test_the_streams_of_a_job_are_else_what_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout

    def job() -> int:
        assert sys.stdout.isatty() == before.isatty()
        assert sys.stdout.encoding == before.encoding
        sys.stdout.flush()
        return 0

    with pytest.raises(SystemExit, match="0"):
        leave_with(job)
