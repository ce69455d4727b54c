"""Train and forward steps of HST beside other ways to tune the same ViT: images a second, memory, work.

    python -m pipeline.benchmarks.throughput --backbone vit_base_patch16_224 \\
        --methods hst,hst-plain,full,linear,lora --batch-size 8 --device cpu --output FILE.json

All methods take turns in one process, so that what else the machine does falls on all alike; a row's numbers are
medians over the rounds, and `of` its ratios to the first method's, round by round. On a CPU seconds are the process's
own, which others on the machine do not take from. On CUDA the steps of all methods alike are recorded as graphs;
with `--eager` none is.

Columns: parameters that are trained; images a second of a train step and of a prediction; what a step keeps for its
backward pass, for each image; the operations of its products and convolutions (2 a multiplication), and at what part
of a plain matrix product's speed they are done (utilisation); on CUDA the most memory in a step, and the kernels of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from hst.gpu.recorded import Recorder
from pipeline.benchmarks.methods import METHODS, Method, Setting
from pipeline.benchmarks.steps import Steps, recorder_of, uncounted
from pipeline.benchmarks.vit_command import (
    PRECISIONS,
    batch_size_faults,
    run_benchmark,
    seconds_of,
    setting_of,
    vit_parser,
)
from pipeline.console.text_table import aligned
from pipeline.training.memory import saved_bytes


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)


_FORMULAS = {
    **flop_registry,
    # torch counts attention on GPUs alone.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class _Flops(TorchDispatchMode):
    """Counts the operations of products and convolutions with torch's formulas. (torch's own mode also names the
    modules, but does not follow a part that is run again in the backward pass.)"""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := _FORMULAS.get(func._overloadpacket)) is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


class Subject:
    """A method with its optimiser and a batch of random pixels."""

    def __init__(
        self, name: str, setting: Setting, batch_size: int, precision: str, *, recorder: Recorder | None = None
    ) -> None:
        self.name, self.setting, self.batch_size = name, setting, batch_size
        self.method: Method = METHODS[name](setting)
        trained = [p for p in self.method.model.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in trained)
        self._steps = Steps(trained, recorder or recorder_of(setting.device, eager=True))
        draws = torch.Generator().manual_seed(0)
        shape = (batch_size, 3, setting.image_size, setting.image_size)
        self._images = torch.randn(shape, generator=draws).to(setting.device)
        self._labels = torch.randint(setting.num_classes, (batch_size,), generator=draws).to(setting.device)
        self._low = precision == "bfloat16"

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.setting.device.type, torch.bfloat16, enabled=self._low):
            return self.method.loss(images, labels)

    def step(self) -> None:
        self._steps.step(self.loss, [self._images, self._labels])

    def forward(self) -> None:
        self._steps.predict(self._prediction, self._images)

    def _prediction(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.setting.device.type, torch.bfloat16, enabled=self._low):
            return self.method.predict(images)

    def facts(self) -> dict[str, Any]:
        """The numbers that are not times. Those that grow with the batch are given for one image."""
        count, device = self.batch_size, self.setting.device
        flops = _flops_per_image(self)
        found: dict[str, Any] = {
            "parameters": self.parameters,
            "saved_bytes_per_image": (
                saved_bytes(lambda: self.loss(self._images, self._labels), own=self.method.weights)
                + self.method.copies()
            )
            // count,
            "step_flops_per_image": flops,
            "peak_memory_bytes": None,
            "kernels_per_step": None,
        }
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.step()
            torch.cuda.synchronize(device)
            found["peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
            found["kernels_per_step"] = _kernels(self.step)
        return found


def _flops_per_image(subject: Subject) -> int:
    """The operations of a train step, counted on a CPU, because the products in a GPU's kernels are not seen."""
    if subject.setting.device.type != "cpu":
        on_cpu = dataclasses.replace(subject.setting, device=torch.device("cpu"))
        subject = Subject(subject.name, on_cpu, 2, "float32")
    with _Flops() as counter:
        subject.step()
    return counter.total // subject.batch_size


def _kernels(step: Callable[[], None]) -> int:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    return sum(event.count for event in profiler.key_averages() if not event.key.startswith("Mem"))


def peak_flops(device: torch.device, precision: str, *, size: int, rounds: int = 5) -> float:
    """Operations a second of a plain matrix product, the best of several rounds: an upper bound for the ViT."""
    a, b = (torch.randn(size, size, device=device, dtype=PRECISIONS[precision]) for _ in range(2))
    best = min(seconds_of(lambda: torch.mm(a, b), device) for _ in range(rounds))
    return 2 * size**3 / best


def measure(
    names: Sequence[str], setting: Setting, *, batch_size: int, precision: str, rounds: int, eager: bool = False
) -> list[dict[str, Any]]:
    """One row for each method, in the order of the names."""
    # Here each method is alone in memory.
    facts = [Subject(name, setting, batch_size, precision).facts() for name in names]
    recorder = recorder_of(setting.device, eager=eager)
    subjects = [Subject(name, setting, batch_size, precision, recorder=recorder) for name in names]
    steps: list[list[float]] = [[] for _ in subjects]
    forwards: list[list[float]] = [[] for _ in subjects]
    before = uncounted(setting.device)
    for number in range(before + rounds):
        for i, subject in enumerate(subjects):
            for seconds, work in ((steps[i], subject.step), (forwards[i], subject.forward)):
                spent = seconds_of(work, setting.device)
                if number >= before:
                    seconds.append(spent)
    size = 8192 if setting.device.type == "cuda" else 1536
    peak = peak_flops(setting.device, precision, size=size)
    rows = []
    for i, subject in enumerate(subjects):
        rate = batch_size / statistics.median(steps[i])
        rows.append(
            {
                "method": subject.name,
                "forward_images_per_second": round(batch_size / statistics.median(forwards[i]), 3),
                "step_images_per_second": round(rate, 3),
                f"forward_of_{names[0]}": _ratio(forwards[0], forwards[i]),
                f"step_of_{names[0]}": _ratio(steps[0], steps[i]),
                "flops_utilisation": round(rate * facts[i]["step_flops_per_image"] / peak, 3),
                **facts[i],
            }
        )
    return rows


def _ratio(first: Sequence[float], own: Sequence[float]) -> float:
    """The median, over rounds, of the ratio of a method's rate to the first method's."""
    return round(statistics.median(a / b for a, b in zip(first, own, strict=True)), 3)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a text table."""
    first = rows[0]["method"]
    header = ["method", "parameters", "step img/s", f"of {first}", "forward img/s", f"of {first}", "saved MiB/img"]
    header += ["GFLOP/step/img", "utilisation", "peak GB", "kernels"]
    cells = [
        [
            row["method"],
            f"{row['parameters']:,}",
            f"{row['step_images_per_second']:.2f}",
            f"{row[f'step_of_{first}']:.2f}",
            f"{row['forward_images_per_second']:.2f}",
            f"{row[f'forward_of_{first}']:.2f}",
            f"{row['saved_bytes_per_image'] / 2**20:.1f}",
            f"{row['step_flops_per_image'] / 1e9:.1f}",
            f"{row['flops_utilisation']:.0%}",
            "-" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 1e9:.2f}",
            "-" if row["kernels_per_step"] is None else str(row["kernels_per_step"]),
        ]
        for row in rows
    ]
    return "\n".join(aligned(header, cells, left=1))


def _faults(options: argparse.Namespace) -> list[str]:
    names = options.methods.split(",")
    faults = [f"--methods {name}: expected {', '.join(METHODS)}" for name in names if name not in METHODS]
    return faults + batch_size_faults(options)


def _measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    return measure(
        options.methods.split(","),
        setting_of(options),
        batch_size=options.batch_size,
        precision=options.precision,
        rounds=options.rounds,
        eager=options.eager,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """0: measured; 2: the command line has faults."""
    parser = vit_parser(__doc__)
    known = ", ".join(METHODS)
    parser.add_argument(
        "--methods",
        default="hst,hst-plain,full,linear" + (",lora" if importlib.util.find_spec("peft") else ""),
        help=f"of {known} (default: %(default)s; lora needs the peft package)",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="images a step (default: %(default)s)")
    parser.add_argument("--eager", action="store_true", help="on CUDA too, launch every kernel by itself")
    return run_benchmark(
        parser,
        arguments,
        faults_of=_faults,
        measure=_measured,
        table=table,
        packages_of=lambda options: ["peft"] if "lora" in options.methods.split(",") else [],
    )


if __name__ == "__main__":
    sys.exit(main())
