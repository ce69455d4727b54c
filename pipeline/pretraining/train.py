"""Pretrains a ViT of the project on drawings and writes it as the file that the package ships.

It uses plain torch with bfloat16 autocast, on the CPU or CUDA. It reads no data: every batch is drawn from (seed,
step), so a stopped run continues from its state file with the batches that it would have seen. After the warm-up the
learning rate is constant and falls only in the last part, so a run can be extended while it is under way.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.pretraining.drawings import draw_batch
from pipeline.pretraining.formulas import NUM_FORMULAS, Formulas, build_formulas
from pipeline.pretraining.plan import Pretraining
from pipeline.pretraining.pretext import Pretext, losses, scores, total
from pipeline.tracking.code_version import source_sha256

SOURCES = (
    *(f"pipeline/pretraining/{name}.py" for name in ("drawings", "formulas", "pretext", "train")),
    "hst/vit/weights.py",
    "hst/randomness.py",
)
"""The sources that the weights depend on, beside the plan."""
STATE_SECONDS = 60.0
LINE_SECONDS = 30.0


@dataclass(kw_only=True)
class _Run:
    """The objects that one call of `pretrain` works with."""

    plan: Pretraining
    model: Pretext
    optimizer: torch.optim.Optimizer
    formulas: Formulas
    device: torch.device
    sources: str


def pretrain(
    plan: Pretraining,
    output: Path,
    *,
    state: Path,
    device: torch.device,
    say: Callable[[str], None],
    minutes: float = math.inf,
) -> bool:
    """Train until the plan is done, then write ``output``. If the file ``state`` exists, continue from it.

    Args:
        output: safetensors file; it appears whole or not at all.
        state: file written every minute and when ``minutes`` are over; removed once ``output`` exists.
        say: called with a line of progress every half minute.
        minutes: time after which this call stops and keeps its state.

    Returns:
        Whether the plan is done.

    Raises:
        ValueError: the state is of another plan (only the number of steps may differ) or of other sources.
        RuntimeError: the gradient is not finite.
    """
    model = Pretext(plan.backbone, plan.seed).to(device).train()
    run = _Run(
        plan=plan,
        model=model,
        optimizer=_optimizer(model, plan),
        formulas=build_formulas(plan.seed),
        device=device,
        sources=source_sha256(SOURCES),
    )
    first = _load_state(run, state)
    if first:
        say(f"going on from {state}: {first} of {plan.steps} steps are done")
    started = saved = told = time.monotonic()
    means: dict[str, torch.Tensor] = {}
    for step in range(first, plan.steps):
        parts, norm = _step(run, step)
        means = {name: means.get(name, part).lerp(part, 0.02) for name, part in parts.items()}
        now, done = time.monotonic(), step + 1
        over = now - started >= 60 * minutes and done < plan.steps
        tell, save = now - told >= LINE_SECONDS or done == plan.steps, now - saved >= STATE_SECONDS or over
        if (tell or save) and not math.isfinite(float(norm)):
            raise RuntimeError(f"step {done}: the gradient's norm is {float(norm)}; try a smaller learning_rate")
        if tell:
            told = now
            say(_line(plan, done, (done - first) / (now - started), means))
        if save:
            saved = now
            _save_state(run, state, done)
        if over:
            return False
    _save_result(run, output, say)
    state.unlink(missing_ok=True)
    return True


def _step(run: _Run, step: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Make one step; return its losses and the gradient's norm, on the device."""
    for group in run.optimizer.param_groups:
        group["lr"] = run.plan.rate(step)
    truth = draw_batch(run.formulas, run.plan.batch_size, run.plan.seed, "step", step, device=run.device)
    with torch.autocast(run.device.type, torch.bfloat16):
        answers = run.model(truth.images)
    parts = losses(answers, truth)
    run.optimizer.zero_grad(set_to_none=True)
    total(parts).backward()
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    return {name: part.detach() for name, part in parts.items()}, norm


def _optimizer(model: Pretext, plan: Pretraining) -> torch.optim.Optimizer:
    named = dict(model.named_parameters())
    matrices = [
        name for name, value in named.items() if value.ndim > 1 and name not in ("vit.cls_token", "vit.pos_embed")
    ]
    groups = [
        {"params": [named[name] for name in matrices], "weight_decay": plan.weight_decay},
        {"params": [value for name, value in named.items() if name not in matrices], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.98))


def _line(plan: Pretraining, done: int, steps_per_second: float, means: dict[str, torch.Tensor]) -> str:
    minutes, seconds = divmod(round((plan.steps - done) / steps_per_second), 60)
    rate = f"{steps_per_second * plan.batch_size:.0f} images/s  {minutes}m{seconds:02d}s left"
    return f"step {done}/{plan.steps}  {rate}  " + "  ".join(f"{name} {float(v):.3f}" for name, v in means.items())


def _save_state(run: _Run, path: Path, step: int) -> None:
    content = {
        "plan": dataclasses.asdict(run.plan),
        "sources": run.sources,
        "step": step,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp")
    torch.save(content, partial)
    os.replace(partial, path)


def _load_state(run: _Run, path: Path) -> int:
    """Restore model and optimizer from the state file; return how many steps are done, 0 without a file."""
    if not path.exists():
        return 0
    saved = torch.load(path, map_location="cpu", weights_only=True)
    plan = dataclasses.asdict(run.plan)
    if {**saved["plan"], "steps": run.plan.steps} != plan or saved["step"] > run.plan.steps:
        raise ValueError(
            f"{path}: this state is of another plan, {saved['plan']}, after {saved['step']} steps; expected {plan}; "
            f"remove the file to start again, or name another one"
        )
    if saved["sources"] != run.sources:
        raise ValueError(
            f"{path}: this state is of other sources, {saved['sources'][:12]}, expected {run.sources[:12]} (of "
            f"{', '.join(SOURCES)}); remove the file to start again, or go back to those sources"
        )
    run.model.load_state_dict(saved["model"], strict=True)
    run.optimizer.load_state_dict(saved["optimizer"])
    return int(saved["step"])


def _save_result(run: _Run, output: Path, say: Callable[[str], None]) -> None:
    """Write the ViT without the heads in half precision; the header says how it was made and how good it is."""
    tensors = {name: value.detach().half().cpu().contiguous() for name, value in run.model.vit.state_dict().items()}
    run.model.vit.load_state_dict({name: value.float() for name, value in tensors.items()})  # measure what ships
    measured = _measure(run)
    say("held-out drawings: " + "  ".join(f"{name} {value:.3f}" for name, value in measured.items()))
    metadata = {
        "made_by": "jobs/pretrain_demo_vit.py",
        "plan": json.dumps(dataclasses.asdict(run.plan)),
        "images": str(run.plan.steps * run.plan.batch_size),
        "formulas": str(NUM_FORMULAS),
        "held_out": json.dumps({name: round(value, 4) for name, value in measured.items()}),
        "sources_sha256": run.sources,
        "torch": str(torch.__version__),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.tmp")
    save_file(tensors, partial, metadata=metadata)
    os.replace(partial, output)


@torch.no_grad()
def _measure(run: _Run) -> dict[str, float]:
    """The mean of `pipeline.pretraining.pretext.scores` over the held-out batches."""
    run.model.eval()
    batches = []
    for number in range(run.plan.held_out_batches):
        truth = draw_batch(run.formulas, run.plan.batch_size, run.plan.seed, "held out", number, device=run.device)
        with torch.autocast(run.device.type, torch.bfloat16):
            answers = run.model(truth.images)
        batches.append(scores(answers, truth))
    return {name: sum(batch[name] for batch in batches) / len(batches) for name in batches[0]}
