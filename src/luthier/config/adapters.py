"""The settings of each method, a section each. Names are PEFT's where PEFT has the method."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from luthier.config.section import Auto, Section, Text


def check_expression(text: str) -> str:
    """The text, where it is a regular expression; else ValueError."""
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression ({error})") from error
    return text


# A name is an expression too.
Expression = Annotated[Text, AfterValidator(check_expression)]
Targets = Expression | Annotated[list[Text], Field(min_length=1)]


class LoraSettings(Section):
    """Low-rank adapters (Hu 2021, arXiv:2106.09685), read by lora, dora and qlora."""

    r: Annotated[int, Field(ge=1, le=1024)] | Auto = Field(
        "auto", description="rank: the width of the adapter; memory grows in step with it; auto goes by plan.domain and the number of rows"
    )
    lora_alpha: Annotated[float, Field(gt=0)] | Auto = Field(
        "auto", description="scale: the adapter's output is multiplied by lora_alpha / r; auto: twice r, at most 64 up to r: 64"
    )
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] | Auto = Field(
        "auto", description="share of the adapter's inputs that are dropped in training; auto: less with more rows, none where rows share a prefix"
    )
    target_modules: Targets = Field(
        "all-linear", description="layers that get an adapter: all-linear, names ([q_proj, v_proj]), or a regular expression for whole names"
    )
    layers_to_transform: list[Annotated[int, Field(ge=0)]] = Field(
        [], description="numbers of the layers that get an adapter, from 0; []: all (those below the lowest are frozen whole)"
    )
    rank_pattern: dict[Expression, Annotated[int, Field(ge=1)]] = Field({}, description="another r for some layers: {name or regular expression: r}")
    alpha_pattern: dict[Expression, Annotated[float, Field(gt=0)]] = Field({}, description="another lora_alpha for some layers, as rank_pattern")
    use_rslora: bool = Field(False, description="scale by lora_alpha / sqrt(r) instead (Kalajdzievski 2023, arXiv:2312.03732)")
    use_dora: bool = Field(False, description="also train the length of each weight column (Liu 2024, arXiv:2402.09353); method: dora for short")
    init_lora_weights: Literal["default", "pissa", "olora", "eva", "orthogonal", "loftq"] = Field(
        "default", description="where the adapter starts: default at zero, so that the model begins as its base; others are saved as plain LoRA"
    )
    loraplus_lr_ratio: float | None = Field(
        None, ge=1, description="rate of B over that of A (Hayou 2024, arXiv:2402.12354; 16 is usual); null: the same rate"
    )
    modules_to_save: list[Text] = Field(
        [], description="tables trained and saved whole: [embed_tokens, lm_head], which another tokenizer needs; many times the adapter's size"
    )

    @property
    def numbers(self) -> tuple[int, float, float]:
        """r, lora_alpha and lora_dropout. Where no plan has filled an auto: 16, alpha_of(r) and 0."""
        r = 16 if self.r == "auto" else self.r
        alpha = alpha_of(r) if self.lora_alpha == "auto" else self.lora_alpha
        return r, alpha, 0.0 if self.lora_dropout == "auto" else self.lora_dropout


def alpha_of(r: int) -> float:
    """lora_alpha that goes with a rank: twice as much up to 32, then 64, and never less than r, so that the scale is 2 to 1."""
    return float(min(2 * r, max(64, r)))


class QloraSettings(Section):
    """The quantized base below the adapters (Dettmers 2023, arXiv:2305.14314)."""

    quantization: Literal["nf4", "fp4", "int8", "int8_torchao"] = Field(
        "nf4", description="format of the frozen weights: nf4, fp4 or int8 by bitsandbytes, int8_torchao by torchao"
    )
    double_quant: bool = Field(True, description="quantize the scales of nf4 and fp4 too (0.4 bits less for each weight)")
    compute_dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field("auto", description="format of the products; auto: that of training.precision")


class BottleneckSettings(Section):
    """Bottleneck adapters (Houlsby 2019, arXiv:1902.00751; Pfeiffer 2021, arXiv:2005.00247; He 2022, arXiv:2110.04366)."""

    kind: Literal["houlsby", "pfeiffer", "parallel"] = Field(
        "pfeiffer", description="houlsby: after attention and MLP; pfeiffer: after the MLP; parallel: beside the MLP, reading its input"
    )
    reduction_factor: float = Field(16, gt=0, description="the model's width over the adapter's")
    non_linearity: Literal["relu", "gelu", "silu", "tanh"] = Field("relu", description="what stands between its two layers")
    scaling: float = Field(1.0, gt=0, description="its output is multiplied by this number")


class PrefixSettings(Section):
    """Prefix tuning (Li and Liang 2021, arXiv:2101.00190)."""

    num_virtual_tokens: int = Field(20, ge=1, le=4096, description="keys and values that every row sees before itself, in each layer")
    prefix_projection: bool = Field(False, description="make them with a small network while training, as the paper does")
    encoder_hidden_size: int | None = Field(None, ge=1, description="width of that network; null: the model's")

    @field_validator("encoder_hidden_size")
    @classmethod
    def _has_a_network(cls, value: int | None, given: Any) -> int | None:
        if value is not None and not given.data.get("prefix_projection"):
            raise ValueError("there is no network without prefix_projection: true")
        return value


class PromptSettings(Section):
    """Prompt tuning (Lester 2021, arXiv:2104.08691)."""

    num_virtual_tokens: int = Field(20, ge=1, le=4096, description="embeddings that stand before every row")
    prompt_tuning_init_text: Text | None = Field(None, description="begin with the embeddings of this text; null: with those of drawn tokens")


class PTuningSettings(Section):
    """P-tuning (Liu 2021, arXiv:2103.10385)."""

    num_virtual_tokens: int = Field(20, ge=1, le=4096, description="embeddings that stand before every row")
    encoder_reparameterization_type: Literal["MLP", "LSTM"] = Field("MLP", description="the network that makes them")
    encoder_hidden_size: int | None = Field(None, ge=1, description="its width; null: the model's")
    encoder_num_layers: int = Field(2, ge=1, description="its layers (LSTM)")
    encoder_dropout: float = Field(0.0, ge=0, lt=1, description="share of what goes from layer to layer that is dropped in training (LSTM)")

    @field_validator("encoder_num_layers", "encoder_dropout")
    @classmethod
    def _has_layers(cls, value: float, given: Any) -> float:
        if given.data.get("encoder_reparameterization_type") == "MLP" and value != cls.model_fields[str(given.field_name)].default:
            raise ValueError("only an LSTM reads it (encoder_reparameterization_type: LSTM)")
        if given.field_name == "encoder_dropout" and value and given.data.get("encoder_num_layers") == 1:
            raise ValueError("an LSTM of one layer drops nothing")
        return value


class Ia3Settings(Section):
    """IA3 (Liu 2022, arXiv:2205.05638)."""

    target_modules: Targets = Field("auto", description="layers whose outputs get factors; auto: keys, values and the MLP's last layer")
    feedforward_modules: Targets = Field("auto", description="those of them whose inputs get factors instead; auto: the MLP's last layer")


LAYERS = re.compile(r"\d{1,6}(-\d{1,6})?( *, *\d{1,6}(-\d{1,6})?)*")


class FreezeSettings(Section):
    """What `method: full` leaves as it is."""

    layers: Text | Annotated[int, Field(ge=0)] | list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description='layers that stay as they are, from 0: 0-19, "0-3,8" or a list; null: none'
    )
    embeddings: bool = Field(False, description="the embedding (and a head that is tied to it) stays as it is")

    @field_validator("layers")
    @classmethod
    def _is_a_range(cls, value: object) -> object:
        if isinstance(value, str) and (not LAYERS.fullmatch(value) or any(first > last for first, last in _ranges(value))):
            raise ValueError('should be numbers and ranges of layers: 0-19 or "0-3,8"')
        return value

    def numbers(self) -> list[int]:
        """The numbers of the frozen layers, each once, in order."""
        if self.layers is None:
            return []
        if not isinstance(self.layers, str):
            return sorted({self.layers} if isinstance(self.layers, int) else set(self.layers))
        return sorted({number for first, last in _ranges(self.layers) for number in range(first, last + 1)})

    def idle_layers(self, layers: int) -> int:
        """How many of the lowest of so many layers nothing runs back through: those below the first trained one, where nothing below is trained."""
        numbers = self.numbers() if self.embeddings else []
        return next((number for number in range(layers) if number not in numbers), layers)


def _ranges(text: str) -> list[tuple[int, int]]:
    """The first and the last number of each part of "0-3,8"."""
    parts = [part.strip().partition("-") for part in text.split(",")]
    return [(int(first), int(last or first)) for first, _, last in parts]
