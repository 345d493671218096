"""The nested-token model in transformers' own terms; importing this module registers the Auto classes.

Letters: B rows, S positions of a row, P patches, R runs of placeholders (a picture at a scale), m visual tokens (the
scale), D_vision and D the widths of the vision tower and of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from export.runtime.errors import MvlmError
from export.runtime.families import Family, current_name

from .connectors import (
    Connector,
    NestedPoolConnector,
    PatchPositions,
    PoolConnector,
    QueryConnector,
    start_pyramid,
    start_random,
)
from .kv_cache import cache_argument, cache_of, given_cache
from .losses import IGNORED_LABEL, TagGroup, answer_loss, word_loss
from .nested_basis import nested_basis
from .processing import MvlmImageProcessor, MvlmProcessor
from .projection import Projector, ProjectorKind
from .scales import require_scales
from .vision_towers import leading_tokens, patch_features, vision_width

# What `forward` takes of pictures, whose first dimension is not the rows.
_OF_PICTURES = ("pixel_values", "num_visual_tokens", "picture_of_run", "stitch_sources", "stitch_weights")


@strict
class MvlmConfig(PreTrainedConfig):
    """A tower, a connector and a language model.

    Attributes:
        connector: `pool` (M3), `nested_pool` (M3's grids, each finer one as what it adds) or `query` (MQT).
        grid_side: patches along one side of the picture, as the tower leaves them.
        image_token_id: stands m times where a picture goes. It may lie past the word table.
        num_visual_tokens: the scale when a caller names none; None asks callers to name one.
        connector_positions: add a learned position to each patch, for towers that leave none in their features.
        num_queries, num_heads, value_mlp, query_start: of the `query` connector, see `QueryConnector`.
        vision_feature_layer: which hidden state of the tower is read (LLaVA reads the last but one).
        projector, projector_act, projector_bias, pixel_shuffle: what stands before the pooling, see `Projector`.
        newline: a vector of its own ends each row of a grid that is put together of tiles (LLaVA-NeXT).
    """

    model_type = "mvlm"
    sub_configs_defaults = {  # noqa: RUF012 - transformers' own way to declare it
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen3"),
    }

    # Given as dictionaries or configurations; transformers makes configurations of them.
    vision_config: Any = None
    text_config: Any = None
    connector: Family = "pool"
    grid_side: int = 24
    image_token_id: int = 0
    num_visual_tokens: int | None = None
    connector_positions: bool = False
    num_queries: int = 256
    num_heads: int = 16
    value_mlp: bool = False
    query_start: Literal["random", "pyramid"] = "random"
    vision_feature_layer: int = -1
    projector: ProjectorKind = "mlp"
    projector_act: str = "gelu"
    projector_bias: bool = True
    pixel_shuffle: int = 1
    newline: bool = False
    tie_word_embeddings: bool = False

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers', where a connector that was saved under an earlier name is read under today's."""
        if "connector" in config_dict:
            config_dict = config_dict | {"connector": current_name(config_dict["connector"])}
        return super().from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)


def build_connector(config: MvlmConfig) -> Connector:
    widths = (config.grid_side, vision_width(config.vision_config), config.text_config.hidden_size)
    if config.connector != "query":
        pooled = {"pool": PoolConnector, "nested_pool": NestedPoolConnector}[config.connector]
        projector = Projector(config.projector, config.projector_act, config.projector_bias, config.pixel_shuffle)
        return pooled(*widths, positions=config.connector_positions, projector=projector, newline=config.newline)
    return QueryConnector(
        *widths, positions=config.connector_positions, num_queries=config.num_queries,
        num_heads=config.num_heads, value_mlp=config.value_mlp,
    )  # fmt: skip


@dataclass
class MvlmOutput(CausalLMOutputWithPast):
    """What `forward` returns; `image_values` (pictures, P, ·) is the encoding that every scale follows from."""

    image_values: Tensor | None = None


class MvlmForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Vision tower -> connector -> language model; the scale is an argument of every call."""

    config_class = MvlmConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities: Any = ("image", "text")
    accepts_loss_kwargs = True
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(
        self, config: MvlmConfig, vision_tower: PreTrainedModel | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:  # fmt: skip
        """A part that is given keeps its weights; what is not given starts from nothing."""
        super().__init__(config)
        self.vision_tower = vision_tower or AutoModel.from_config(config.vision_config)
        self.connector = build_connector(config)
        self.language_model = language_model or AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PoolConnector) and module.newline is not None:
            nn.init.normal_(module.newline, std=len(module.newline) ** -0.5)
        if isinstance(module, PatchPositions):
            nn.init.trunc_normal_(module.table, std=0.02)
        if isinstance(module, NestedPoolConnector):
            module.basis.copy_(torch.from_numpy(nested_basis(module.grid_side)))  # no file of weights holds it
        if isinstance(module, QueryConnector):
            {"random": start_random, "pyramid": start_pyramid}[self.config.query_start](module)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    @property
    def embedding_table(self) -> Tensor:
        """The language model's words: (V, D)."""
        return self.get_input_embeddings().get_parameter("weight")

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """What every scale follows from: (B, 3, height, width) -> the connector's values (B, P, ·)."""
        if self.config.vision_feature_layer == -1:
            features = self.vision_tower(pixel_values).last_hidden_state
        else:
            outputs = self.vision_tower(pixel_values, output_hidden_states=True)
            features = outputs.hidden_states[self.config.vision_feature_layer]
        leading = leading_tokens(self.config.vision_config)
        return self.connector.values(patch_features(features, self.config.grid_side, leading))

    def visual_tokens(self, values: Tensor, picture_of_run: Sequence[int], scales: Sequence[int]) -> Tensor:
        """The tokens of each run of placeholders, one after another: (B, P, ·), R and R -> (sum of m, D)."""
        ladder = self.connector.ladder(values, sorted(set(scales)))
        return torch.cat([ladder[m][picture] for picture, m in zip(picture_of_run, scales, strict=True)])

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        num_visual_tokens: int | Sequence[int] | Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        picture_of_run: Sequence[int] | None = None,
        stitch_sources: Tensor | None = None,
        stitch_weights: Tensor | None = None,
        word_tags: Sequence[TagGroup] | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_logits: bool = True,
        cache: Cache | None = None,
    ) -> MvlmOutput:
        """Read rows whose pictures stand as m placeholders of `config.image_token_id` each.

        `num_visual_tokens` is one int, or one for each run of placeholders; left out, it is the configuration's, and
        failing that an error. The runs show the pictures in their order, or those that `picture_of_run` numbers: a
        picture is encoded once, however often it is shown. Where a picture is several views, each is one here, and
        `stitch_sources` and `stitch_weights` (T, ·) say how the placeholders follow from the tokens of all runs, as
        `export.runtime.views` describes it. `attention_mask` may be (B, S), or (B, 1, S, S) or a BlockMask for packed
        rows. Without `input_ids` the pictures are encoded, and no more. `cache` and `past_key_values` are
        transformers' new and old name of the KV cache: give one.

        The loss is the answers' where there are `labels` (B, S), the words' of the patches where there are `word_tags`
        (`losses`), or their sum; `num_items_in_batch` is what transformers' Trainer counts. Raises `MvlmError` for a
        scale that the connector does not allow and for placeholders that do not fit the scales.
        """
        values = None if pixel_values is None else self.encode_images(pixel_values)  # (pictures, P, ·)
        loss = self._word_loss(values, word_tags, labels, num_items_in_batch) if word_tags else None
        if inputs_embeds is None:
            if input_ids is None:
                return self._pictures_alone(values, loss)
            inputs_embeds = self._look_up(input_ids)  # (B, S, D)
        if values is not None:
            runs = range(len(values)) if picture_of_run is None else picture_of_run
            visual = self._visual(values, runs, num_visual_tokens)  # (sum of m, D)
            if stitch_sources is not None:
                visual = self.stitched(visual, stitch_sources, stitch_weights)  # (T, D)
            inputs_embeds = self._splice(inputs_embeds, visual, input_ids)  # (B, S, D)
        outputs = self.language_model.base_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids,
            use_cache=use_cache, **cache_argument(given_cache(cache, past_key_values)),
        )  # fmt: skip
        hidden, head = outputs.last_hidden_state, self.get_output_embeddings()  # (B, S, D)
        if labels is not None:
            answers = answer_loss(hidden, labels, head, num_items_in_batch)
            loss = answers if loss is None else answers + loss
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = head(hidden[:, kept]) if return_logits else None
        return MvlmOutput(loss, logits, cache_of(outputs), image_values=values)

    def _pictures_alone(self, values: Tensor | None, loss: Tensor | None) -> MvlmOutput:
        if values is None:
            raise MvlmError("there is nothing to read: give input_ids, inputs_embeds or pixel_values")
        return MvlmOutput(loss, image_values=values)

    def _word_loss(
        self, values: Tensor | None, tags: Sequence[TagGroup], labels: Tensor | None, num_items: Tensor | int | None
    ) -> Tensor:
        """A pass that holds a part of the step's supervised tokens counts for as much of the patch loss."""
        if values is None:
            raise MvlmError("word_tags say what patches show: give the pixel_values too")
        overviews = values[: len(tags[0][1])]  # of the pictures that the tags are of; tiles come behind
        loss = word_loss(self.connector.words(overviews), self.embedding_table, tags)
        if labels is None or num_items is None:
            return loss
        return loss * (labels[:, 1:] != IGNORED_LABEL).sum() / num_items

    def _visual(
        self, values: Tensor, picture_of_run: Sequence[int], num_visual_tokens: int | Sequence[int] | Tensor | None
    ) -> Tensor:
        """The tokens of all runs: (pictures, P, ·) -> (sum of m, D)."""
        if not len(picture_of_run):  # a picture that nobody sees: its weights stay in the graph, for other processes
            return self.connector.tokens(values, self.connector.scales[0])[0, :0]
        return self.visual_tokens(values, picture_of_run, self._scales(num_visual_tokens, len(picture_of_run)))

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **inputs: Any
    ) -> Any:
        """Rows several times, for beams. Pictures stay as they are, and their tokens are placed once for each."""
        expand: Any = getattr(super(), "_expand_inputs_for_generation")  # noqa: B009 - whose types name other classes
        if expand_size == 1 or input_ids is None or inputs.get("pixel_values") is None:
            return expand(expand_size, is_encoder_decoder, input_ids, **inputs)
        held = {name: inputs.pop(name) for name in _OF_PICTURES if name in inputs}
        counts = (input_ids == self.config.image_token_id).sum(dim=1).tolist()
        if held.get("stitch_sources") is None:
            held["stitch_sources"] = torch.arange(sum(counts), device=input_ids.device)[:, None]
        for name in ("stitch_sources", "stitch_weights"):
            if held.get(name) is not None:
                held[name] = torch.cat([part for part in held[name].split(counts) for _ in range(expand_size)])
        input_ids, inputs = expand(expand_size, is_encoder_decoder, input_ids, **inputs)
        return input_ids, inputs | held

    def placed(self, input_ids: Tensor, visual: Tensor) -> Tensor:
        """Rows with visual tokens in the places of the placeholders: (B, S), (T, D) -> (B, S, D)."""
        return self._splice(self._look_up(input_ids), visual, input_ids)

    def stitched(self, visual: Tensor, stitch_sources: Tensor, stitch_weights: Tensor | None) -> Tensor:
        """Tokens put together of others: (sum of m, D), (T, k), (T, k) -> (T, D). The source -1 is the newline."""
        newline = getattr(self.connector, "newline", None)
        if newline is None and (stitch_sources < 0).any():
            raise MvlmError("this model has no newline vector, so its tiles are not put together: leave the stitch out")
        if newline is not None:
            visual = torch.cat([visual, newline[None].to(visual.dtype)])
        rows = visual[stitch_sources]  # (T, k, D)
        if stitch_weights is None:
            return rows[:, 0]
        return (rows * stitch_weights[..., None].to(rows.dtype)).sum(dim=1)

    def _scales(self, asked: int | Sequence[int] | Tensor | None, runs: int) -> list[int]:
        asked = self.config.num_visual_tokens if asked is None else asked
        if asked is None:
            raise MvlmError("no scale was named: give num_visual_tokens, one int or one for each picture")
        if isinstance(asked, Tensor):
            asked = asked.tolist()
        scales = [asked] * runs if isinstance(asked, int) else [int(scale) for scale in asked]
        if len(scales) != runs:
            raise MvlmError(f"{len(scales)} scales were given for {runs} pictures: give one int, or one for each")
        require_scales(sorted(set(scales)), self.connector.scales)
        return scales

    def _look_up(self, input_ids: Tensor) -> Tensor:
        """The rows of the words (B, S, D). Placeholders may have none; a picture overwrites whatever they take."""
        if self.config.image_token_id >= len(self.embedding_table):
            input_ids = input_ids.masked_fill(input_ids == self.config.image_token_id, 0)
        return self.get_input_embeddings()(input_ids)

    def _splice(self, inputs_embeds: Tensor, visual: Tensor, input_ids: Tensor | None) -> Tensor:
        if input_ids is None:
            raise MvlmError("pixel_values need input_ids, which say where each picture stands")
        places = input_ids == self.config.image_token_id  # (B, S)
        if int(places.sum()) != len(visual):
            raise MvlmError(
                f"the rows hold {int(places.sum())} image placeholders, and the pictures at the scales asked for"
                f" make {len(visual)} visual tokens: build the rows with the same scales"
            )
        return inputs_embeds.masked_scatter(places[..., None], visual.to(inputs_embeds.dtype))


AutoConfig.register(MvlmConfig.model_type, MvlmConfig, exist_ok=True)
AutoModelForImageTextToText.register(MvlmConfig, MvlmForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(MvlmConfig, image_processor_classes={"pil": MvlmImageProcessor}, exist_ok=True)
AutoProcessor.register(MvlmConfig, MvlmProcessor, exist_ok=True)
