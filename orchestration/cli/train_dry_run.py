"""`nulls train --dry-run`: the resolved configuration, as YAML that can be fed back, and what the run will take.

On stdout the configuration stands as YAML and the estimate as its comments, so that the whole of it is a file for
`--config`. With `--json` it is one document: model, snapshot, workers, config, estimate.

Cost: two seconds, most of them imports; nothing is written. The figures are `training/estimate/costs.py`'s and
`training/estimate/token_count.py`'s. Run: ``nulls train --model wiki --preset paper-1b --workers 8 --gpu h200 --dry-run``.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.output import size
from orchestration.settings import DEFAULT_REGISTRY, Settings
from registry.errors import UsageError

if TYPE_CHECKING:
    from registry.snapshot import Snapshot
    from training.config import TrainConfig
    from training.estimate.costs import Memory
    from training.estimate.token_count import TokenCount

_DEFAULT_GPU = "h100"
# Sources that share a sink. Of 3 to 334, isolation was best at 10 and worse from 42 on; the paper's run has 83,000.
CROWDED = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """What time is reckoned by.

    Attributes:
        gpu: `--gpu`, a name of `training.estimate.costs.GPUS`; None: an H100, or CPUs where a speed is stated.
        mfu: `--mfu`, share of the GPU's peak, on active FLOPs.
        tokens_per_second: `--tokens-per-second`, of all workers together; counts instead of `mfu`.
        tokens: `--tokens`, of an epoch, instead of a snapshot's.
    """

    gpu: str | None = None
    mfu: float = 0.4
    tokens_per_second: float | None = None
    tokens: int | None = None


def dry_run(
    config: TrainConfig, settings: Settings, *, model_name: str, workers: int, runs: Path, speed: Speed
) -> dict[str, Any]:
    """What `nulls train` would do: model, snapshot (None where there is no registry yet), workers, config, estimate.

    Raises:
        UsageError: no such GPU, a speed that is none, or too few sources to hold some out.
        NotFoundError: no such snapshot.
    """
    snapshot = _snapshot(settings)
    found = estimate(config, _tokens(config, snapshot, runs, speed), workers=workers, speed=speed)
    return {
        "model": model_name,
        "snapshot": snapshot.id if snapshot else None,
        "workers": workers,
        "config": config.to_dict(),
        "estimate": found | {"sharing": _sharing(config, snapshot)},
    }


def _sharing(config: TrainConfig, snapshot: Snapshot | None) -> dict[str, float] | None:
    """How many sources the snapshot has text of, held-out ones among them, and how many share a sink."""
    if snapshot is None:
        return None
    from training.estimate.costs import sources_per_sink

    num_sources = sum(n > 0 for n in snapshot.table("sources")["num_documents"].to_pylist())
    return {"num_sources": num_sources, "sources_per_sink": sources_per_sink(config.model, num_sources)}


def _snapshot(settings: Settings) -> Snapshot | None:
    """The snapshot; None where nobody named a registry and there is none: one plans before one ingests."""
    unnamed = settings.registry is None and settings.snapshot is None and "NULLS_REGISTRY" not in os.environ
    if unnamed and not Path(DEFAULT_REGISTRY).exists():
        return None
    return settings.open_snapshot()


def _tokens(config: TrainConfig, snapshot: Snapshot | None, runs: Path, speed: Speed) -> TokenCount | None:
    from training.estimate.token_count import TokenCount, count_tokens

    if speed.tokens is not None:
        if speed.tokens < 1:
            raise UsageError(f"--tokens {speed.tokens}: expected at least 1")
        return TokenCount.stated(config, speed.tokens)
    return count_tokens(config, snapshot, runs) if snapshot else None


def estimate(config: TrainConfig, tokens: TokenCount | None, *, workers: int, speed: Speed) -> dict[str, Any]:
    """Everything that is known of a run before it runs, for JSON; bytes, FLOPs and hours.

    Raises:
        UsageError: no such GPU, or a speed that is none.
    """
    from training.estimate import costs as reckon

    if speed.gpu is not None and speed.gpu not in reckon.GPUS:
        raise UsageError(f"--gpu {speed.gpu}: expected one of {', '.join(sorted(reckon.GPUS))}")
    # Who states the speed of CPUs names no GPU.
    name = speed.gpu or (None if speed.tokens_per_second else _DEFAULT_GPU)
    gpu = reckon.GPUS[name] if name else None
    vocab_size = tokens.vocab_size if tokens else config.vocab_size
    model, attended = config.model, tokens.attended if tokens else config.context_length / 2
    share = reckon.sink_share(config)
    active = model.flops_per_token(vocab_size, config.context_length, attended=attended, sink_share=share)
    dense = model.dense_flops_per_token(vocab_size, config.context_length, attended=attended)
    found: dict[str, Any] = {
        "vocab_size": vocab_size,
        "parameters": reckon.count_parameters(model, vocab_size).to_dict(),
        "memory": _memory(config, tokens, vocab_size, workers, name),
        "flops": {
            "per_token": active,
            "per_token_dense_equivalent": dense,
            "keys_per_token": attended,
            "sink_share": share,
        },
        "disk": {
            "checkpoint_bytes": reckon.checkpoint_bytes(model, vocab_size),
            "weights_bytes": reckon.weights_bytes(model, vocab_size),
        },
        "speed": {"gpu": name, "mfu": speed.mfu if speed.tokens_per_second is None else None}
        | {"tokens_per_second": speed.tokens_per_second},
        "tokens": None,
    }
    per_hour = 1 / reckon.hours(
        1, active, num_workers=workers, gpu=gpu, mfu=speed.mfu, tokens_per_second=speed.tokens_per_second
    )
    found["speed"]["tokens_per_second"] = per_hour / 3600
    if tokens is not None:
        total = tokens.per_epoch * config.epochs
        steps = tokens.steps_per_epoch * config.epochs
        found["tokens"] = dataclasses.asdict(tokens) | {"total": total}
        found["steps"] = {"per_epoch": tokens.steps_per_epoch, "total": steps}
        found["flops"] |= {"total": total * active, "total_dense_equivalent": total * dense}
        found["speed"]["hours"] = total / per_hour
    # The newest ones, the one being written, the exported weights, and the token cache.
    cache = tokens.per_epoch * (2 if vocab_size <= 2**16 else 4) if tokens else 0
    disk = found["disk"]
    disk["most_bytes"] = (config.keep_checkpoints + 1) * disk["checkpoint_bytes"] + disk["weights_bytes"] + cache
    return found


def _memory(
    config: TrainConfig, tokens: TokenCount | None, vocab_size: int, workers: int, gpu: str | None
) -> dict[str, Any]:
    from training.estimate import costs as reckon

    def parts(parallel: reckon.Parallel) -> Memory:
        return reckon.memory_per_worker(
            config,
            vocab_size=vocab_size,
            num_workers=workers,
            parallel=parallel,
            on_gpu=gpu is not None,
            document_tokens=tokens.document_tokens if tokens else None,
        )

    gpu_bytes = reckon.GPUS[gpu].memory_bytes if gpu else None
    chosen = reckon.choose_parallel(config, workers, gpu_bytes, vocab_size=vocab_size)
    memory = {"ddp": parts("ddp"), "fsdp": parts("fsdp")}
    total = memory[chosen].total(checkpointing=config.activation_checkpointing)
    return {
        "parallel": chosen,
        "device_bytes": gpu_bytes,
        "total": total,
        "fits": None if gpu_bytes is None else total < 0.9 * gpu_bytes,  # a tenth is for what is not counted
        **{name: value.to_dict() for name, value in memory.items()},
    }


def lines(data: dict[str, Any]) -> list[str]:
    """A dry run as YAML for `--config`, with the estimate as comments."""
    import yaml

    workers = f"{data['workers']} worker{'s' if data['workers'] > 1 else ''}"
    where = f"snapshot {data['snapshot'][:16]}" if data["snapshot"] else f"no snapshot yet ({DEFAULT_REGISTRY})"
    text = [f"# nulls train --model {data['model']} --config FILE  # with this as FILE; {where}, {workers}"]
    text += str(yaml.safe_dump(data["config"], sort_keys=False)).splitlines()
    return text + [f"# {line}".rstrip() for line in estimate_lines(data["estimate"], data["config"], data["workers"])]


def estimate_lines(found: dict[str, Any], config: dict[str, Any], workers: int) -> list[str]:
    """An estimate for a person."""
    parameters, flops, disk = found["parameters"], found["flops"], found["disk"]
    return [
        f"parameters  {_count(parameters['total'])}: backbone {_count(parameters['backbone'])} (embeddings "
        f"{_count(parameters['embeddings'])}), pool {_count(parameters['pool'])}; active for a token "
        f"{_count(parameters['active'])}",
        *_memory_lines(found["memory"], config, found["speed"]["gpu"], workers),
        *_sharing_lines(found.get("sharing"), config),
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
    text = [
        f"sinks       {share:,.1f} of {sharing['num_sources']:,} sources share each: {model['num_sinks']:,} of "
        f"{model['num_pool']:,} a source"
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
