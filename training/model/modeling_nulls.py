"""A Llama whose MLPs have sinks, as a transformers model, with Auto classes, `generate` and safetensors.

`NullsForCausalLM` is `LlamaForCausalLM` at the backbone's width plus three matrices a layer, `sink_gate`, `sink_up` and
`sink_down`. Its forward takes two more arguments: `source_ids`, the sources whose sinks to use, and `document_ids`,
which separates the documents of a packed row. Without a source the pool is not used, and the result is that Llama's,
bit for bit. A sink plan (`training/sinks/mlp.py`) is made once per forward and passed to the layers as an argument;
there is no state in between.

Cost: at the default layout an MLP does 1.25 times the work of the backbone alone, in 1.5 to 2.2 times the time on a CPU
(`training/sinks/mlp.py`). Packed rows cost a mask (`document_mask.py`). Importing this module registers the Auto
classes; `import training` sees to it (`auto_classes.py`).
Run: ``AutoModelForCausalLM.from_pretrained(path).generate(ids_BT, source_ids=ids_B)``.

Shapes: B rows, T tokens of a row, D model width, P pool neurons.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaPreTrainedModel

from registry.errors import UsageError
from training.model.document_mask import document_mask, document_starts
from training.sinks.layout import KEYED, NO_SOURCE, SinkLayout
from training.sinks.mlp import SinkPlan, build_plan, sink_mlp

_DEFAULT = SinkLayout()


@strict  # types and sizes are checked as for every transformers configuration
class NullsConfig(LlamaConfig):
    """Configuration: `LlamaConfig` plus the sink layout; `num_backbone` is another name for `intermediate_size`.

    Raises:
        UsageError: `num_backbone` contradicts `intermediate_size`, the activation is not SiLU, or the layout is
            invalid.
    """

    model_type = "nulls"
    attribute_map: ClassVar[dict[str, str]] = {"num_backbone": "intermediate_size"}

    intermediate_size: int = _DEFAULT.num_backbone
    num_pool: int = _DEFAULT.num_pool
    num_sinks: int = _DEFAULT.num_sinks
    sink_seed: int = _DEFAULT.seed
    sink_scheme: str = KEYED
    sink_probability: float | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        num_backbone = kwargs.get("num_backbone", self.intermediate_size)
        if self.intermediate_size not in (num_backbone, _DEFAULT.num_backbone):
            raise UsageError(
                f"num_backbone: got {num_backbone} beside intermediate_size {self.intermediate_size}; "
                "they are two names for one number, give one"
            )
        super().__post_init__(**kwargs)
        if self.hidden_act != "silu":
            raise UsageError(f"hidden_act: got {self.hidden_act!r}, expected 'silu', the activation of the sinks")
        # Constructing a layout checks it.
        self.layout  # noqa: B018

    @property
    def layout(self) -> SinkLayout:
        """The sink layout, from which this model draws its masks."""
        return SinkLayout(
            num_backbone=self.intermediate_size,
            num_pool=self.num_pool,
            num_sinks=self.num_sinks,
            seed=self.sink_seed,
            scheme=self.sink_scheme,
            probability=self.sink_probability,
        )


class NullsMLP(LlamaMLP):
    """The backbone's MLP plus the sinks of a sink plan."""

    def __init__(self, config: NullsConfig) -> None:
        super().__init__(config)
        self.row_gradients = False
        """Whether the pool's gradients are sparse; see `training/sinks/sparse_grads.py`."""
        self.sink_gate = nn.Parameter(torch.empty(config.num_pool, config.hidden_size))
        self.sink_up = nn.Parameter(torch.empty(config.num_pool, config.hidden_size))
        self.sink_down = nn.Parameter(torch.empty(config.num_pool, config.hidden_size))

    def forward(self, hidden_BTD: Tensor, sink_plan: SinkPlan | None = None) -> Tensor:
        """Compute out_BTD with the sinks of the plan's layer 0; without a plan, exactly LlamaMLP."""
        backbone_BTD: Tensor = super().forward(hidden_BTD)
        if sink_plan is None:
            return backbone_BTD
        pool = self.sink_gate, self.sink_up, self.sink_down
        sinks_TD = sink_mlp(hidden_BTD.flatten(0, 1), sink_plan, 0, *pool, row_gradients=self.row_gradients)
        return backbone_BTD + sinks_TD.view_as(backbone_BTD)


class NullsDecoderLayer(LlamaDecoderLayer):
    """`LlamaDecoderLayer` that passes `sink_plan` to its MLP."""

    def __init__(self, config: NullsConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.layer_idx = layer_idx
        self.mlp = NullsMLP(config)

    def __call__(self, *args: Any, sink_plan: SinkPlan | None = None, **kwargs: Any) -> Any:
        """Call `forward` with this layer's part of the whole plan.

        The part is taken here, outside of the compiled code: a number that differs from layer to layer would compile
        each layer again, and none after eight.
        """
        return super().__call__(*args, sink_plan=sink_plan and sink_plan.for_layer(self.layer_idx), **kwargs)

    def forward(self, hidden_BTD: Tensor, sink_plan: SinkPlan | None = None, **kwargs: Any) -> Tensor:
        """Compute the layer: hidden_BTD; `kwargs` are those of LlamaDecoderLayer, all for attention."""
        attention_BTD, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_BTD), **kwargs)
        hidden_BTD = hidden_BTD + attention_BTD
        mlp_BTD: Tensor = self.mlp(self.post_attention_layernorm(hidden_BTD), sink_plan)
        return hidden_BTD + mlp_BTD


class NullsPreTrainedModel(LlamaPreTrainedModel):
    """Base of the model and its inner part: the configuration class and the initial weights."""

    config: NullsConfig
    # transformers would read the class from the annotation above, which is only a string here.
    config_class = NullsConfig
    _no_split_modules: ClassVar[list[str]] = ["NullsDecoderLayer"]
    # A sink plan depends on the values of the batch's ids, which a full graph cannot read.
    _can_compile_fullgraph = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            # The padding token also begins each document. As `padding_idx` its row would be zero and never train, and
            # RMSNorm, whose derivative at zero is 1 / sqrt(eps), would multiply its gradient in each layer, to infinity
            # in a deep model. Padding itself needs no such row: it has no target, and no document attends to it.
            module.padding_idx = None
        super()._init_weights(module)
        if isinstance(module, NullsMLP):
            for pool_PD in (module.sink_gate, module.sink_up, module.sink_down):
                init.normal_(pool_PD, mean=0.0, std=self.config.initializer_range)


class NullsModel(NullsPreTrainedModel, LlamaModel):
    """`LlamaModel` with sinks; its forward passes `sink_plan` to the layers."""

    def __init__(self, config: NullsConfig) -> None:
        super().__init__(config)
        # Loaded weights are not initialised, so `_init_weights` does not see their embedding.
        self.embed_tokens.padding_idx = self.padding_idx = None
        self.layers = nn.ModuleList([NullsDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.post_init()


class NullsForCausalLM(NullsPreTrainedModel, LlamaForCausalLM):
    """A causal language model with a set of sinks for each source."""

    def __init__(self, config: NullsConfig) -> None:
        # LlamaForCausalLM's own constructor would build and initialise a second LlamaModel.
        super(LlamaForCausalLM, self).__init__(config)
        self.model = NullsModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | BlockMask | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        source_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Compute what `LlamaForCausalLM.forward` does, with sinks and packed rows.

        Args:
            source_ids: int64 [B] or [B, T], NO_SOURCE for none; `generate` takes [B], one source a prompt.
            document_ids: int64 [B, T], for rows of several documents: a document is a run of equal ids, and attention
                stays inside it. Padding is -1, and has no source. Positions restart with each document unless
                `position_ids` is given; there is no cache.

        Raises:
            UsageError: shapes do not match, or `document_ids` come with a cache, an `attention_mask`, or an attention
                implementation other than "flex_attention", "sdpa" and "eager".
        """
        tokens = input_ids if input_ids is not None else inputs_embeds
        if tokens is None:
            raise UsageError("input_ids: got none, and no inputs_embeds; expected one of them")
        if document_ids is not None:
            if attention_mask is not None or past_key_values is not None:
                raise UsageError("document_ids: makes its own attention mask and no cache; leave those two out")
            if document_ids.shape != tokens.shape[:2]:
                got, expected = tuple(document_ids.shape), tuple(tokens.shape[:2])
                raise UsageError(f"document_ids: got shape {got}, expected that of the tokens, {expected}")
            starts_BT = document_starts(document_ids)
            attention_mask = document_mask(starts_BT, self.config._attn_implementation, self.dtype)
            if position_ids is None:
                position_ids = torch.arange(starts_BT.shape[1], device=starts_BT.device) - starts_BT
            use_cache = False
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            sink_plan=self._plan(source_ids, document_ids, tokens),
            **kwargs,
        )

    def _plan(self, source_ids: Tensor | None, document_ids: Tensor | None, tokens: Tensor) -> SinkPlan | None:
        """Return the sink plan of this batch, or None where no sinks and no gradients are needed."""
        num_rows, num_tokens = tokens.shape[:2]
        if source_ids is None:
            if not (self.training and torch.is_grad_enabled()):
                return None
            # An empty plan, so that every parameter gets a gradient in every training step.
            source_ids = torch.full((num_rows,), NO_SOURCE, device=tokens.device)
        if source_ids.ndim == 1:
            source_ids = source_ids[:, None].expand(-1, num_tokens)
        if source_ids.shape != (num_rows, num_tokens):
            raise UsageError(
                f"source_ids: got shape {tuple(source_ids.shape)}, expected [{num_rows}] or "
                f"[{num_rows}, {num_tokens}]; generate() takes one source a row"
            )
        if document_ids is not None:
            source_ids = source_ids.masked_fill(document_ids < 0, NO_SOURCE)
        return build_plan(source_ids.flatten(), self.config.layout, self.config.num_hidden_layers)


AutoConfig.register(NullsConfig.model_type, NullsConfig)
AutoModelForCausalLM.register(NullsConfig, NullsForCausalLM)
