"""A loaded model version that generates text, and never through the sinks of a revoked source.

The command line, the HTTP service and MLflow's pyfunc reach the weights only through `ServedModel`. It knows which
sources were trained, which were held out and which are revoked (`training.serving.in_force`). A request for the sinks
of any but a trained source that is not revoked is an error before anything is computed.

Run: ``flavor.load(uri, tracking_uri=...).generate("Who founded anarchism?")``. Cost: loading checks the weights'
digest, about 2 s for each GB.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import torch

from registry import ids
from registry.errors import DamagedError, NotFoundError, RefusedError, UsageError
from registry.ids import MaskId, SourceId
from training.serving.in_force import InForce
from training.serving.router import Router
from training.serving.version import ROUTER_FILE, ModelVersion
from training.serving.weights import local_weights
from training.sinks.mask_ids import MaskIds

if TYPE_CHECKING:
    from training.model.modeling_nulls import NullsForCausalLM

_ROUTE = object()


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A loaded model version.

    Attributes:
        version: the version that was loaded.
        model: in evaluation mode, on a GPU if there is one.
        tokenizer: the model's.
        router: chooses a source for a prompt.
        in_force: what is revoked in it.
        mask_ids: for an imported model, the numbers that it knows its sources by; None for a model trained here.
    """

    version: ModelVersion
    model: NullsForCausalLM
    tokenizer: Any
    router: Router
    in_force: InForce
    mask_ids: MaskIds | None = None

    @classmethod
    def load(cls, version: ModelVersion, in_force: InForce) -> ServedModel:
        """Load the weights that `version` points to.

        Args:
            version: the version.
            in_force: what is revoked in it, from `training.serving.in_force.in_force`.

        Raises:
            DamagedError, ServiceError: see `training.serving.weights.local_weights`.
        """
        from transformers import AutoTokenizer
        from transformers.utils import logging

        from training.model.modeling_nulls import NullsForCausalLM

        logging.disable_progress_bar()  # transformers' own, for reading a file; a command shows its own
        folder = local_weights(version)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = NullsForCausalLM.from_checked_folder(folder).eval().to(device)
        if model.config.layout.to_dict() != version.layout.to_dict():
            raise DamagedError(
                f"{version.uri}: {folder}/config.json draws sinks differently than the version was registered with; "
                "restore it from a copy"
            )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        router = Router.load(folder / ROUTER_FILE)
        return cls(version, model, tokenizer, router, in_force, MaskIds.load(folder))

    @property
    def trained(self) -> frozenset[SourceId]:
        """All sources that the weights were trained on, revoked ones included."""
        return frozenset(self.router.source_ids_N.tolist())

    @functools.cached_property
    def out_of_force(self) -> frozenset[SourceId]:
        """The sources whose sinks stay off: the revoked ones, and in an imported model those with the same sinks."""
        revoked = frozenset(self.in_force.revoked)
        return revoked | self.version.same_sinks(revoked)

    def mask_id(self, source_id: int) -> MaskId:
        """Return the id that the source's sinks are drawn from: its own, or its number in an imported model.

        Raises:
            NotFoundError: an imported model has no number for the source.
        """
        return MaskId(source_id if self.mask_ids is None else self.mask_ids.of(source_id))

    def check(self, source_id: int) -> SourceId:
        """Return `source_id` if its sinks may be switched on.

        Raises:
            RefusedError: the source is revoked, or was held out of training.
            NotFoundError: the source was never trained.
        """
        name = ids.format_id(source_id)
        if (where := self.in_force.revoked.get(SourceId(source_id))) is not None:
            raise RefusedError(f"source {name} is unlearned in these weights ({where}): its sinks stay off")
        if source_id in self.version.heldout:
            raise RefusedError(f"source {name} was held out of training: it has no trained sinks")
        if source_id in self.out_of_force:
            raise RefusedError(f"the sinks of source {name} are also those of one that is unlearned: they stay off")
        if not self.router.knows(source_id):
            raise NotFoundError(f"source {name} was not trained in {self.version.uri}")
        return SourceId(source_id)

    def route(self, prompt: str) -> SourceId | None:
        """Return the closest source that is not revoked; None means the backbone only."""
        return self.router.closest(prompt, exclude=self.out_of_force)

    def generate(
        self,
        prompt: str,
        *,
        source_id: int | object | None = _ROUTE,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> tuple[str, SourceId | None]:
        """Continue `prompt`.

        Args:
            prompt: the text to continue.
            source_id: the source whose sinks are on; None for the backbone only; by default, see `route`.
            max_new_tokens: the length of the continuation, at most.
            temperature: 0 takes the likeliest token; above 0, tokens are sampled.
            seed: for sampling.

        Returns:
            The continuation, and the source whose sinks were used.

        Raises:
            RefusedError, NotFoundError: see `check`.
            UsageError: the prompt and the new tokens do not fit the model's context.
        """
        used = self.route(prompt) if source_id is _ROUTE else source_id
        assert used is None or isinstance(used, int)
        chosen = None if used is None else self.check(used)
        prompt_ids_BT = self._encode(prompt, max_new_tokens)
        torch.manual_seed(seed)
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        with torch.inference_mode():
            output_BT = self.model.generate(
                prompt_ids_BT,
                attention_mask=torch.ones_like(prompt_ids_BT),
                source_ids=None if chosen is None else torch.tensor([self.mask_id(chosen)], device=self.model.device),
                max_new_tokens=max_new_tokens,
                pad_token_id=self.tokenizer.eos_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                **sampling,
            )
        new_ids = output_BT[0, prompt_ids_BT.shape[1] :]
        return self.tokenizer.decode(new_ids, skip_special_tokens=True), chosen

    def _encode(self, prompt: str, max_new_tokens: int) -> torch.Tensor:
        limit = int(self.model.config.max_position_embeddings)
        token_ids = [self.tokenizer.eos_token_id, *self.tokenizer.encode(prompt, add_special_tokens=False)]
        if len(token_ids) + max_new_tokens > limit:
            raise UsageError(
                f"a prompt of {len(token_ids)} tokens and {max_new_tokens} new ones exceed the context of {limit}; "
                "shorten the prompt or lower --max-new-tokens"
            )
        return torch.tensor([token_ids], device=self.model.device)


class PythonModel:
    """The object that `mlflow.pyfunc.load_model` wraps. It takes rows with `prompt` and optionally `source`, an id."""

    def __init__(self, served: ServedModel) -> None:
        self.served = served

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[str]:
        """Continue each prompt.

        Args:
            model_input: a DataFrame, a list of dicts, or a list of prompts. A row with `source` uses that source's
                sinks, or the backbone only where it is null; a row without it is routed.
            params: keyword arguments of `ServedModel.generate`.

        Raises:
            UsageError: a row lacks its prompt, or its source is not an id.
            RefusedError: a row asks for a revoked source.
        """
        rows = model_input.to_dict("records") if hasattr(model_input, "to_dict") else list(model_input)
        return [self._continued({"prompt": row} if isinstance(row, str) else row, params or {}) for row in rows]

    def _continued(self, row: dict[str, Any], params: dict[str, Any]) -> str:
        if not isinstance(row.get("prompt"), str):
            raise UsageError(f"expected a row with a text in `prompt`, got {sorted(row)}")
        if "source" not in row:
            return self.served.generate(row["prompt"], **params)[0]
        source = row["source"]
        if source is None or source != source:  # a DataFrame has NaN for null
            return self.served.generate(row["prompt"], source_id=None, **params)[0]
        source_id = ids.parse_id(str(source))
        if source_id is None:
            raise UsageError(f"source {source!r}: expected 16 hex digits, as `nulls lookup` prints them")
        return self.served.generate(row["prompt"], source_id=source_id, **params)[0]
