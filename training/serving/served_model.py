"""A model in use: prompt or text in, tokens or losses out, and never through the sinks of a revoked source.

`ServedModel` is the only way that the command line, the HTTP service and MLflow's pyfunc reach the weights. It knows
which sources were trained, which were held out and which are revoked; asking for another's sinks is an error before
anything is computed. Loading checks the weights' digest (about 2 s for each GB).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import torch

from registry import ids
from registry.errors import NotFoundError, RefusedError, UsageError
from training.serving.flavor import ROUTER_FILE, ModelVersion
from training.serving.router import Router
from training.serving.weights import local_weights
from training.sinks.mask_ids import MaskIds

if TYPE_CHECKING:
    from training.model.modeling_nulls import NullsForCausalLM

_ROUTE = object()


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A loaded model version.

    Attributes:
        version: what it is a version of, and what is revoked.
        model: in evaluation mode, on the best device there is.
        tokenizer: of the model.
        router: prompt -> source.
        mask_ids: of an imported model, which numbers its sources otherwise than by their ids.
    """

    version: ModelVersion
    model: NullsForCausalLM
    tokenizer: Any
    router: Router
    mask_ids: MaskIds | None = None

    @classmethod
    def load(cls, version: ModelVersion) -> ServedModel:
        """Reads the weights that `version` points to.

        Raises:
            DamagedError, ServiceError: as `training.serving.weights.local_weights`.
        """
        from transformers import AutoTokenizer
        from transformers.utils import logging

        from training.model.modeling_nulls import NullsForCausalLM

        logging.disable_progress_bar()  # of reading a file; a command shows its own
        folder = local_weights(version)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = NullsForCausalLM.from_pretrained(folder).eval().to(device)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(version, model, tokenizer, Router.load(folder / ROUTER_FILE), MaskIds.load(folder))

    @property
    def trained(self) -> frozenset[int]:
        """Every source that the weights have seen, revoked ones included."""
        return frozenset(self.router.source_ids_N.tolist())

    @functools.cached_property
    def out_of_force(self) -> frozenset[int]:
        """Sources whose sinks stay off: the revoked ones, and in an imported model those with the same sinks."""
        return self.version.revoked | self.version.same_sinks(self.version.revoked)

    def mask_id(self, source_id: int) -> int:
        """What the model knows a source by: its id, or its number in an imported model.

        Raises:
            NotFoundError: an imported model has no number for it.
        """
        return source_id if self.mask_ids is None else self.mask_ids.of(source_id)

    def check(self, source_id: int) -> int:
        """Returns `source_id` if its sinks may be switched on.

        Raises:
            RefusedError: it is revoked, or was held out of training.
            NotFoundError: it was never trained.
        """
        name = ids.format_id(source_id)
        if source_id in self.version.revoked:
            raise RefusedError(f"source {name} is unlearned in {self.version.uri or 'this model'}: its sinks stay off")
        if source_id in self.version.heldout:
            raise RefusedError(f"source {name} was held out of training: it has no trained sinks")
        if source_id in self.out_of_force:
            raise RefusedError(f"the sinks of source {name} are also those of one that is unlearned: they stay off")
        if not self.router.knows(source_id):
            raise NotFoundError(f"source {name} was not trained in {self.version.uri}")
        return source_id

    def route(self, prompt: str) -> int | None:
        """The closest source in force, or None for the backbone alone."""
        return self.router.closest(prompt, exclude=self.out_of_force)

    def generate(
        self,
        prompt: str,
        *,
        source_id: int | object | None = _ROUTE,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> tuple[str, int | None]:
        """Continues `prompt`.

        Args:
            source_id: whose sinks to use; None for none; by default, the closest source in force.
            temperature: 0 takes the likeliest token.
            seed: of the sampling, where the temperature is above 0.

        Returns:
            The continuation, and the source whose sinks were used.

        Raises:
            RefusedError, NotFoundError: as `check`.
            UsageError: the prompt leaves no room in the model's context.
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
    """What `mlflow.pyfunc.load_model` wraps: rows with `prompt`, and optionally `source` (an id or null)."""

    def __init__(self, served: ServedModel) -> None:
        self.served = served

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[str]:
        """Continues each prompt; `model_input` is a DataFrame, a list of dicts or of strings.

        Raises:
            UsageError: a row lacks its prompt, or its source is no id.
            RefusedError: a row asks for a revoked source.
        """
        rows = model_input.to_dict("records") if hasattr(model_input, "to_dict") else list(model_input)
        return [self._one({"prompt": row} if isinstance(row, str) else row, params or {}) for row in rows]

    def _one(self, row: dict[str, Any], params: dict[str, Any]) -> str:
        if not isinstance(row.get("prompt"), str):
            raise UsageError(f"expected a row with a text in `prompt`, got {sorted(row)}")
        if "source" not in row:
            return self.served.generate(row["prompt"], **params)[0]
        source = row["source"]
        if source is None or source != source:
            return self.served.generate(row["prompt"], source_id=None, **params)[0]
        number = ids.parse_id(str(source))
        if number is None:
            raise UsageError(f"source {source!r}: expected 16 hex digits, as `nulls lookup` prints them")
        return self.served.generate(row["prompt"], source_id=number, **params)[0]
