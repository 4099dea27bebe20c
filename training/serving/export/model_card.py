"""The model card of an exported folder: lineage, what is revoked, the limits, and how to check each of these.

Keys and titles come from data, and the card is shown as Markdown and HTML: `escaped` makes plain text of them.

Run: ``of_version(version, carried, facts, names)``.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from registry import ids
from registry.lookup import Source
from registry.messages.shown import escaped as visible
from registry.messages.shown import shortened
from training.model.carried import NO_MASK, Carried
from training.serving.version import ModelVersion

MAX_NAMED = 100
_FRONT_MATTER = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- {tag}
---
"""
_VISIBLE = 160


def of_version(version: ModelVersion, carried: Carried, facts: Mapping[str, Any], names: Mapping[int, Source]) -> str:
    """Return the card of a folder with sinks.

    Args:
        version: what was exported.
        carried: what the folder refuses.
        facts: `nulls.json` under `exported`.
        names: the revoked sources that the registry knows.
    """
    parts = [
        _FRONT_MATTER.format(tag="nulls"),
        f"# {escaped(version.uri)}\n",
        "A language model with NULLs: each source of its training text has its own sink neurons, which are switched on "
        "by the source's id and can be revoked. Without a source it is a plain Llama.\n",
        *_lineage(facts),
        *_revoked(carried, names),
        *_limits(),
        *_use(version, carried),
    ]
    return "\n".join(parts)


def of_backbone(version: ModelVersion, facts: Mapping[str, Any]) -> str:
    """Return the card of a plain Llama."""
    parts = [
        _FRONT_MATTER.format(tag="llama"),
        f"# {escaped(version.uri)}, backbone only\n",
        "The backbone of a language model with NULLs, as a plain Llama: the tensors that every source shares. Its "
        "logits are those of that model with all sinks off. It holds no sink neuron of any source, so there is nothing "
        "in it to revoke, and it loads in `LlamaForCausalLM`, and in engines that read this format, without the "
        "`nulls` package.\n",
        *_lineage(facts),
        "## Limits\n",
        "- The backbone was trained together with the sinks, on the text of all sources but the held-out ones. What "
        "many sources share is in it. What it still knows of one source is measured by `nulls audit` (the ablation "
        '"backbone"); unlearning a source does not change it.',
        "- Training began each document with the end-of-text token. Begin a prompt with it as well; the tokenizer does "
        "not add it.\n",
    ]
    return "\n".join(parts)


def escaped(text: str) -> str:
    r"""Return text from data as Markdown that shows it literally, on one line, at most 160 characters of it.

    Control characters, line ends and invisible ones are shown as their code (`registry.messages.shown`). Punctuation
    gets a backslash, so that neither Markdown nor HTML is read.
    """
    shown = visible(shortened(text, _VISIBLE))
    return "".join("\\" + character if character in string.punctuation else character for character in shown)


def _lineage(facts: Mapping[str, Any]) -> list[str]:
    rows = {
        "Model version": escaped(str(facts["model_uri"])),
        "Snapshot of the training text": f"`{facts['snapshot']}`",
        "Weights": f"`{facts['weights_id']}`",
        "Training run": escaped(str(facts["run_id"] or "none recorded")),
        "Exported": escaped(str(facts["at"])),
    }
    return ["## Lineage\n", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), ""]


def _revoked(carried: Carried, names: Mapping[int, Source]) -> list[str]:
    text = ["## Revoked sources\n"]
    if not carried.revoked:
        return [*text, "None when this folder was exported.\n"]
    text.append(f"{len(carried.revoked)} when this folder was exported; all ids are in `config.json`.\n")
    for source_id in carried.revoked[:MAX_NAMED]:
        source = names.get(source_id)
        name = "" if source is None else f" {escaped(source.key)}"
        title = "" if source is None or not source.title else f", {escaped(source.title)}"
        text.append(f"- `{ids.format_id(source_id)}`{name}{title}")
    more = len(carried.revoked) - MAX_NAMED
    return [*text, *([f"- and {more} more"] if more > 0 else []), ""]


def _limits() -> list[str]:
    return [
        "## Limits\n",
        "- Revocation is by reference: the sinks of a revoked source are never switched on, and its neurons are still "
        "in the tensors unless they were erased (`nulls unlearn --erase`) before. Export erases nothing. Whoever "
        "changes the code or the list can switch them on, so hand this folder on accordingly; `nulls export "
        "--backbone` writes a folder without any sinks.",
        "- The list is that of the export. What is unlearned later is refused here only where `NULLS_CATALOG` names "
        "the catalogue that records it.",
        "- A fine-tune keeps the list in its `config.json`; it is not retrained on what it refuses.",
        "- `router.npz`, where there is one, holds hashes of the 64 heaviest words of each source.",
        "- Training began each document with the end-of-text token. Begin a prompt with it as well; the tokenizer does "
        "not add it.\n",
    ]


def _use(version: ModelVersion, carried: Carried) -> list[str]:
    pairs = zip(carried.revoked, carried.masks or carried.revoked, strict=True)
    refused = [mask for _, mask in pairs if mask != NO_MASK]
    check = (
        [
            "```python",
            f"model(torch.tensor([[1]]), source_ids=torch.tensor([{refused[0]}]))  # RefusedError: a revoked source",
            "```",
            "",
        ]
        if refused
        else []
    )
    numbers = "source ids" if carried.masks is None else "mask ids (`mask-ids.safetensors`)"
    return [
        "## Use and check\n",
        "Reading `config.json` needs no code of ours. Without the package, transformers loads this folder only as a "
        "Llama without sinks; with it (`pip install 'nulls[train]'`), sinks are switched on by "
        f"`source_ids`, which are {numbers}:\n",
        "```python",
        "import torch, training",
        "from transformers import AutoModelForCausalLM",
        'model = AutoModelForCausalLM.from_pretrained("DIRECTORY")',
        "```",
        "",
        *check,
        "Loading compares the list in `config.json` with that in `nulls.json`, and the weights with their digest: "
        f"`cat *.safetensors | sha256sum` prints `{version.weights_digest}`.\n",
    ]
