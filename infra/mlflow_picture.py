"""Make docs/mlflow-fanout.png: MLflow's own list of the tasks of the last fan-out, as a browser shows it.

    . "$(python -m infra.stack env)"                  the stack that `make demo` leaves running
    python -m infra.mlflow_picture                    needs chromium

First the numbers are compared with the table in README.md. Where they differ, nothing is drawn and the exit status is
1: the table is then to be replaced by the one that the fan-out has printed, or the fan-out to be run again.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("val/top1", "test/top1", "parameters")
"""Metrics that the picture shows."""
WIDTH, HEIGHT = 1280, 500  # pixels
VIEW = "picture"
"""Name of the list's settings. MLflow keeps them as a tag of the experiment while the picture is made."""
WAIT_S = 60.0

Numbers = dict[str, tuple[str, str, str]]
"""Task -> val and test in per cent, and parameters, as the table prints them."""


def table_numbers(text: str) -> Numbers:
    """The numbers in the table of a fan-out in a text, such as the README or a run's description."""
    row = re.compile(r"^(\S+) +\S+ +(\d+\.\d) +(\d+\.\d) +\S+ +([\d,]+) +\d", re.MULTILINE)
    return {task: (val, test, parameters) for task, val, test, parameters in row.findall(text)}


def run_numbers(run: dict[str, Any]) -> tuple[str, str, str]:
    """The same numbers of one task, from its run as MLflow's REST interface gives it."""
    metrics = {metric["key"]: float(metric["value"]) for metric in run["data"]["metrics"]}
    return f"{metrics['val/top1']:.1%}"[:-1], f"{metrics['test/top1']:.1%}"[:-1], f"{metrics['parameters']:,.0f}"


def differences(shown: Numbers, found: Numbers) -> list[str]:
    """The tasks whose numbers differ between the README and MLflow, one line for each."""
    return [
        f"{task}: README.md has {shown.get(task)}, MLflow {found.get(task)}"
        for task in sorted({*shown, *found})
        if shown.get(task) != found.get(task)
    ]


class Mlflow:
    """A server's REST interface."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    def post(self, name: str, **body: Any) -> dict[str, Any]:
        """The answer to a call."""
        request = urllib.request.Request(
            f"{self.uri}/api/2.0/mlflow/{name}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def experiment_id(self, name: str) -> str:
        """The id of the experiment with this name."""
        with urllib.request.urlopen(
            f"{self.uri}/api/2.0/mlflow/experiments/get-by-name?experiment_name={name}", timeout=WAIT_S
        ) as answer:
            return str(json.load(answer)["experiment"]["experiment_id"])

    def last_fanout(self, experiment: str) -> tuple[str, list[dict[str, Any]]]:
        """The id of the latest fan-out's run that has finished, and the runs of its tasks."""
        runs = self.post(
            "runs/search",
            experiment_ids=[experiment],
            filter="attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
            max_results=1000,
        ).get("runs", [])
        for run in runs:
            identity = run["info"]["run_id"]
            own = [one for one in runs if _tags(one).get("mlflow.parentRunId") == identity]
            if own and "mlflow.parentRunId" not in _tags(run):
                return identity, own
        raise SystemExit(f"error: {self.uri} has no finished fan-out; `make demo` makes one")


def _tags(run: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}


class Browser:
    """A headless Chromium. The program talks to it over two pipes, so that no port is opened."""

    def __init__(self, program: str, profile: str) -> None:
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        flags = ["--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--hide-scrollbars"]
        flags += ["--no-sandbox"] if os.geteuid() == 0 else []

        # Chromium reads from descriptor 3 and writes to 4.
        shell = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, program, *flags, "about:blank"],
            pass_fds=(to_read, to_write),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._number, self._buffer, self._session = 0, b"", ""
        page = next(one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol."""
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        message = json.dumps({"id": self._number, "method": method, "params": params, **session})
        os.write(self._to, message.encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                more = os.read(self._from, 1 << 20)
                if not more:
                    raise SystemExit("error: the browser ended before the picture was made")
                self._buffer += more
            line, _, self._buffer = self._buffer.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise SystemExit(f"error: the browser refuses {method}: {answer['error']['message']}")
                found: dict[str, Any] = answer["result"]
                return found

    def value_of(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait_for(self, expression: str, what: str) -> None:
        """Waits until an expression is true."""
        until = time.monotonic() + WAIT_S
        while not self.value_of(expression):
            if time.monotonic() > until:
                raise SystemExit(f"error: MLflow's page did not show {what} within {WAIT_S:.0f} s")
            time.sleep(0.2)

    def close(self) -> None:
        """Ends the browser."""
        self._process.terminate()
        self._process.wait()


def view(fanout: str) -> str:
    """The list's settings: the tasks of one fan-out alone, with a few metrics as columns."""
    columns = [f"metrics.`{name}`" for name in COLUMNS]
    return json.dumps(
        {
            "searchFilter": f"tags.mlflow.parentRunId = '{fanout}'",
            "orderByKey": "metrics.`test/top1`",  # by date the list would be a tree
            "orderByAsc": False,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": columns,
            "columnOrder": [],
            "columnWidths": {},
            "runsExpanded": {},
            "runsPinned": [],
            "runsHidden": [],
            "runListHidden": False,
            "viewMaximized": True,
        }
    )


def draw(mlflow: Mlflow, experiment: str, fanout: str, tasks: list[str], program: str, output: Path) -> None:
    """Makes the picture. The tag with the list's settings is removed afterwards."""
    tag = f"mlflow.sharedViewState.{VIEW}"
    mlflow.post("experiments/set-experiment-tag", experiment_id=experiment, key=tag, value=view(fanout))
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(program, profile)
        try:
            address = f"{mlflow.uri}/#/experiments/{experiment}/runs?viewStateShareKey={VIEW}"
            browser.call(
                "Emulation.setDeviceMetricsOverride", width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False
            )
            browser.call("Page.navigate", url=address)
            every = " && ".join(f"document.body.innerText.includes({json.dumps(task)})" for task in tasks)
            browser.wait_for(f"!!document.body && {every}", "the tasks")
            browser.value_of(_CLOSE)
            time.sleep(2.0)  # the page arranges itself anew
            picture = browser.call("Page.captureScreenshot", format="png")["data"]
        finally:
            browser.close()
            mlflow.post("experiments/delete-experiment-tag", experiment_id=experiment, key=tag)
    output.write_bytes(base64.b64decode(picture))


_CLOSE = """
for (const id of ['mlflow.experiment_page.shared_view.dismiss', 'mlflow.assistant.chat_panel.close'])
  document.querySelector(`[data-component-id="${id}"]`)?.click();
"""
"""Closes what MLflow may have opened beside the list."""


def main() -> int:
    """Compares the README's numbers with MLflow's, and makes the picture if they agree."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m infra.mlflow_picture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI", ""), help="http://HOST:PORT")
    parser.add_argument("--experiment", default="hst", help="the experiment's name (default: hst)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "mlflow-fanout.png")
    args = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not args.tracking_uri.startswith("http") or "@" in args.tracking_uri:
        parser.error(
            "--tracking-uri or MLFLOW_TRACKING_URI: expected the http:// address of an MLflow server, without a login"
        )
    if program is None:
        parser.error("no chromium on the PATH; install it (Debian: apt-get install chromium)")
    mlflow = Mlflow(args.tracking_uri)
    experiment = mlflow.experiment_id(args.experiment)
    fanout, runs = mlflow.last_fanout(experiment)
    found = {run["info"]["run_name"]: run_numbers(run) for run in runs}
    if faults := differences(table_numbers((ROOT / "README.md").read_text(encoding="utf-8")), found):
        print("nothing was drawn; the numbers differ:", *faults, sep="\n  - ", file=sys.stderr)
        return 1
    draw(mlflow, experiment, fanout, sorted(found), program, args.output)
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
