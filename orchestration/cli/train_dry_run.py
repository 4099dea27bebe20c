"""`nulls train --dry-run`: print the resolved configuration as YAML, and estimate what the run will cost.

stdout has the configuration as YAML and the estimate as its comments, so that all of it is a file for `--config`. With
`--json` it is one document: model, snapshot, workers, config, estimate.

Cost: two seconds, most of them imports; nothing is written. The figures come from `training/estimate/costs.py` and
`training/estimate/token_count.py`. Run: ``nulls train --model wiki --preset paper-1b --gpu h200 --dry-run``.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.output import size
from orchestration.reservation import reservation, reservation_lines
from orchestration.settings import DEFAULT_REGISTRY, Settings
from registry.errors import UsageError

if TYPE_CHECKING:
    from orchestration.train_request import TrainRequest
    from registry.snapshot import Snapshot
    from training.config import TrainConfig
    from training.estimate.costs import Memory
    from training.estimate.token_count import TokenCount

_DEFAULT_GPU = "h100"
# Sources that share a sink. Of 3 to 334, isolation was best at 10 and worse from 42 on; the paper's run has 83,000.
CROWDED = 40


def estimate_run(request: TrainRequest, settings: Settings, config: TrainConfig) -> dict[str, Any]:
    """Return what `nulls train` would do: model, snapshot (None before there is a registry), workers, config, estimate.

    Raises:
        UsageError: no such GPU, an impossible speed, a reserved source without text, or too few sources to hold some
            out.
        NotFoundError: no such snapshot.
    """
    snapshot = _snapshot(settings)
    found = estimate(config, _tokens(request, config, snapshot), request)
    return {
        "model": request.model,
        "snapshot": snapshot.id if snapshot else None,
        "workers": request.workers.most,
        "config": config.to_dict(),
        "estimate": found | {"sharing": _sharing(config, snapshot), "reserved": reservation(config, snapshot)},
    }


def _sharing(config: TrainConfig, snapshot: Snapshot | None) -> dict[str, float] | None:
    """Count the sources that have text in the snapshot, held-out ones included, and how many of them share a sink."""
    if snapshot is None:
        return None
    from training.estimate.costs import sources_per_sink

    num_sources = sum(n > 0 for n in snapshot.table("sources")["num_documents"].to_pylist())
    return {"num_sources": num_sources, "sources_per_sink": sources_per_sink(config.model, num_sources)}


def _snapshot(settings: Settings) -> Snapshot | None:
    """Open the snapshot; None where no registry was named and the default one does not exist yet."""
    unnamed = settings.registry is None and settings.snapshot is None and "NULLS_REGISTRY" not in os.environ
    if unnamed and not Path(DEFAULT_REGISTRY).exists():
        return None
    return settings.open_snapshot()


def _tokens(request: TrainRequest, config: TrainConfig, snapshot: Snapshot | None) -> TokenCount | None:
    from training.estimate.token_count import TokenCount, count_tokens

    if request.tokens is not None:
        if request.tokens < 1:
            raise UsageError(f"--tokens {request.tokens}: expected at least 1")
        return TokenCount.stated(config, request.tokens)
    return count_tokens(config, snapshot, request.runs) if snapshot else None


def estimate(config: TrainConfig, tokens: TokenCount | None, request: TrainRequest) -> dict[str, Any]:
    """Estimate a run's parameters, memory, FLOPs, disk and time, for JSON; bytes, FLOPs and hours.

    Args:
        config: the resolved configuration.
        tokens: the tokens of an epoch; None if not known.
        request: its `workers`, `gpu` (None: an H100, or CPUs where a speed is stated), `mfu` (share of the GPU's peak,
            on active FLOPs) and `tokens_per_second` (all workers together; replaces `mfu`).

    Raises:
        UsageError: no such GPU, or an impossible speed.
    """
    from training.estimate import costs

    if request.gpu is not None and request.gpu not in costs.GPUS:
        raise UsageError(f"--gpu {request.gpu}: expected one of {', '.join(sorted(costs.GPUS))}")
    # A stated speed without a GPU is that of CPUs.
    name = request.gpu or (None if request.tokens_per_second else _DEFAULT_GPU)
    gpu = costs.GPUS[name] if name else None
    workers = request.workers.most
    vocab_size = tokens.vocab_size if tokens else config.vocab_size
    model, attended = config.model, tokens.attended if tokens else config.context_length / 2
    share = costs.sink_share(config)
    active = model.flops_per_token(vocab_size, config.context_length, attended=attended, sink_share=share)
    dense = model.dense_flops_per_token(vocab_size, config.context_length, attended=attended)
    found: dict[str, Any] = {
        "vocab_size": vocab_size,
        "parameters": costs.count_parameters(model, vocab_size).to_dict(),
        "memory": _memory(config, tokens, vocab_size, workers, name),
        "flops": {
            "per_token": active,
            "per_token_dense_equivalent": dense,
            "keys_per_token": attended,
            "sink_share": share,
        },
        "disk": {
            "checkpoint_bytes": costs.checkpoint_bytes(model, vocab_size),
            "weights_bytes": costs.weights_bytes(model, vocab_size),
        },
        "speed": {"gpu": name, "mfu": request.mfu if request.tokens_per_second is None else None}
        | {"tokens_per_second": request.tokens_per_second},
        "tokens": None,
    }
    per_hour = 1 / costs.hours(
        1, active, num_workers=workers, gpu=gpu, mfu=request.mfu, tokens_per_second=request.tokens_per_second
    )
    found["speed"]["tokens_per_second"] = per_hour / 3600
    if tokens is not None:
        total = tokens.per_epoch * config.epochs
        steps = tokens.steps_per_epoch * config.epochs
        found["tokens"] = dataclasses.asdict(tokens) | {"total": total}
        found["steps"] = {"per_epoch": tokens.steps_per_epoch, "total": steps}
        found["flops"] |= {"total": total * active, "total_dense_equivalent": total * dense}
        found["speed"]["hours"] = total / per_hour
    # The checkpoints that are kept, the one being written, the exported weights, and the token cache.
    cache = tokens.per_epoch * (2 if vocab_size <= 2**16 else 4) if tokens else 0
    disk = found["disk"]
    disk["most_bytes"] = (config.keep_checkpoints + 1) * disk["checkpoint_bytes"] + disk["weights_bytes"] + cache
    return found


def _memory(
    config: TrainConfig, tokens: TokenCount | None, vocab_size: int, workers: int, gpu: str | None
) -> dict[str, Any]:
    from training.estimate import costs

    def parts(parallel: costs.Parallel) -> Memory:
        return costs.memory_per_worker(
            config,
            vocab_size=vocab_size,
            num_workers=workers,
            parallel=parallel,
            on_gpu=gpu is not None,
            document_tokens=tokens.document_tokens if tokens else None,
        )

    gpu_bytes = costs.GPUS[gpu].memory_bytes if gpu else None
    chosen = costs.choose_parallel(config, workers, gpu_bytes, vocab_size=vocab_size)
    memory = {"ddp": parts("ddp"), "fsdp": parts("fsdp")}
    total = memory[chosen].total(checkpointing=config.activation_checkpointing)
    return {
        "parallel": chosen,
        "device_bytes": gpu_bytes,
        "total": total,
        "fits": None if gpu_bytes is None else total < 0.9 * gpu_bytes,  # a tenth is left for what is not counted
        **{name: value.to_dict() for name, value in memory.items()},
    }


def dry_run_lines(data: dict[str, Any]) -> list[str]:
    """Format a dry run as YAML for `--config`, with the estimate as comments."""
    import yaml

    workers = f"{data['workers']} worker{'s' if data['workers'] > 1 else ''}"
    where = f"snapshot {data['snapshot'][:16]}" if data["snapshot"] else f"no snapshot yet ({DEFAULT_REGISTRY})"
    text = [f"# nulls train --model {data['model']} --config FILE  # with this as FILE; {where}, {workers}"]
    text += str(yaml.safe_dump(data["config"], sort_keys=False)).splitlines()
    return text + [f"# {line}".rstrip() for line in estimate_lines(data["estimate"], data["config"], data["workers"])]


def estimate_lines(found: dict[str, Any], config: dict[str, Any], workers: int) -> list[str]:
    """Format an estimate for a terminal."""
    parameters, flops, disk = found["parameters"], found["flops"], found["disk"]
    return [
        f"parameters  {_count(parameters['total'])}: backbone {_count(parameters['backbone'])} (embeddings "
        f"{_count(parameters['embeddings'])}), pool {_count(parameters['pool'])}; active for a token "
        f"{_count(parameters['active'])}",
        *_memory_lines(found["memory"], config, found["speed"]["gpu"], workers),
        *_sharing_lines(found.get("sharing"), config),
        *reservation_lines(found.get("reserved")),
        *_token_lines(found, config),
        f"FLOPs       {flops['per_token']:.3g} a token (dense-equivalent {flops['per_token_dense_equivalent']:.3g}, "
        f"{flops['per_token_dense_equivalent'] / flops['per_token']:.1f} times as many)"
        + (f", {flops['total']:.3g} in all" if "total" in flops else ""),
        f"            a token sees {flops['keys_per_token']:.0f} keys on average, and goes through its sinks in "
        f"{flops['sink_share']:.0%} of its visits",
        f"disk        {size(disk['checkpoint_bytes'])} a checkpoint, {size(disk['weights_bytes'])} exported weights, "
        f"{size(disk['most_bytes'])} at most",
        _time_line(found["speed"], workers),
    ]


def _memory_lines(memory: dict[str, Any], config: dict[str, Any], gpu: str | None, workers: int) -> list[str]:
    chosen = memory["parallel"]
    parts, other = memory[chosen], "fsdp" if chosen == "ddp" else "ddp"
    plain, again = parts["plain"], parts["checkpointed"]
    fixed = [(name, parts[name]) for name in ("weights", "gradients", "moments", "gathered", "cast") if parts[name]]
    of = f"of {size(memory['device_bytes'])} on each {gpu}" if gpu else "in each worker, on CPUs"
    text = [
        f"memory      {size(memory['total'])} {of} ({chosen}, micro_batch {config['micro_batch']}): "
        + ", ".join(f"{name} {size(num_bytes)}" for name, num_bytes in fixed),
        f"            and activations {size(plain['layers'])}, attention {size(plain['attention'])}, logits "
        f"{size(plain['logits'])}: {size(parts['total'])}",
        f"            with activation_checkpointing {size(again['layers'])}, attention {size(again['attention'])}, "
        f"the larger of logits {size(again['logits'])} and one layer {size(again['recomputed'])}: "
        f"{size(parts['total_checkpointed'])}",
    ]
    if workers > 1:
        text.append(
            f"            {other} with {workers} would take {size(memory[other]['total'])}, with "
            f"activation_checkpointing {size(memory[other]['total_checkpointed'])}"
        )
    if memory["fits"] is False:
        text.append(
            "            does not fit with a tenth to spare: lower micro_batch, set activation_checkpointing: true, or "
            "parallel: fsdp with more workers"
        )
    return text


def _sharing_lines(sharing: dict[str, float] | None, config: dict[str, Any]) -> list[str]:
    if sharing is None:
        return []
    model, share = config["model"], sharing["sources_per_sink"]
    taken = len(model.get("reserved_sources", ())) * model["num_sinks"]
    text = [
        f"sinks       {share:,.1f} of {sharing['num_sources']:,} sources share each: {model['num_sinks']:,} of "
        f"{model['num_pool'] - taken:,} a source"
    ]
    if share > CROWDED:
        text.append(
            f"            in small models more than {CROWDED} isolated worse (benchmarks/RESULTS.md): a larger "
            "model.num_pool costs memory, and hardly any time"
        )
    return text


def _token_lines(found: dict[str, Any], config: dict[str, Any]) -> list[str]:
    tokens = found["tokens"]
    if tokens is None:
        return ["tokens      not known without a snapshot: name one with --registry, or state them with --tokens N"]
    about = "" if tokens["is_exact"] else "about "
    return [
        f"tokens      {about}{tokens['per_epoch']:,} an epoch, {tokens['total']:,} in all; {tokens['basis']}",
        f"steps       {about}{found['steps']['per_epoch']:,} an epoch of {config['rows_per_step']} rows of "
        f"{config['context_length']}, {found['steps']['total']:,} in all",
    ]


def _time_line(speed: dict[str, Any], workers: int) -> str:
    rate = f"{speed['tokens_per_second']:,.0f} tokens/s"
    by = "as stated" if speed["mfu"] is None else f"{workers} {speed['gpu']} at MFU {speed['mfu']:.0%} on active FLOPs"
    if "hours" not in speed:
        return f"speed       {rate}: {by}"
    hours = speed["hours"]
    time = f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 3600:,.0f} seconds"
    return f"time        {time} at {rate}: {by}"


def _count(number: float) -> str:
    for unit, factor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{number / factor:.4g}{unit}"
    return f"{number:.0f}"
