"""Small random models of the families that ``docs/coverage.md`` covers, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import transformers
from torch import Tensor, nn
from torch.export import Dim

Inputs: TypeAlias = dict[str, Tensor]

_B, _S, _T = Dim("batch", min=1, max=64), Dim("sequence", min=2, max=60), Dim("target", min=2, max=60)
_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SMALL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_DECODER = {**_SMALL, **_ENDS, "num_key_value_heads": 2, "max_position_embeddings": 128, "use_cache": False}
_IMAGE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
          "image_size": 32, "patch_size": 8}  # fmt: skip
_COUPLED = {"vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "use_cache": False}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        build: makes the model.
        inputs: example inputs for a batch and a sequence length (which vision models ignore).
        dynamic: dimensions that vary.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], Inputs]
    dynamic: Mapping[str, Any]


def _text(batch: int, length: int) -> Inputs:
    mask = torch.ones(batch, length, dtype=torch.int64)
    if batch > 1:
        mask[0, -1] = 0
    return {"input_ids": torch.randint(3, 98, (batch, length)), "attention_mask": mask}


def _coupled(batch: int, length: int) -> Inputs:
    return {**_text(batch, length), "decoder_input_ids": torch.randint(3, 98, (batch, length + 1))}


def _pixels(batch: int, length: int) -> Inputs:
    return {"pixel_values": torch.randn(batch, 3, 32, 32)}


def _clip(batch: int, length: int) -> Inputs:
    return {**_text(batch, length), "pixel_values": torch.randn(batch + 1, 3, 32, 32)}


def _speech(batch: int, length: int) -> Inputs:
    return {"input_features": torch.randn(batch, 8, 40), "decoder_input_ids": torch.randint(3, 98, (batch, length))}


def _steps(batch: int, length: int) -> Inputs:
    return {"x": torch.randn(batch, 6, 8)}


_TEXT = {"input_ids": {0: _B, 1: _S}, "attention_mask": {0: _B, 1: _S}}
_TWO = {**_TEXT, "decoder_input_ids": {0: _B, 1: _T}}
_PIXELS = {"pixel_values": {0: _B}}


class UNet(nn.Module):
    """Two levels down and up with skip connections, group normalization and attention in the middle."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inward = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.Sequential(nn.GroupNorm(2, width), nn.SiLU(), nn.Conv2d(width, 2 * width, 3, 2, 1))
        self.middle = nn.MultiheadAttention(2 * width, 2, batch_first=True)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.outward = nn.Sequential(nn.BatchNorm2d(2 * width), nn.ReLU(), nn.Conv2d(2 * width, 3, 3, padding=1))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images [batch, 3, height, width] to images of the same size."""
        first = self.inward(pixel_values)
        low = self.down(first)
        tokens = low.flatten(2).transpose(1, 2)
        tokens = tokens + self.middle(tokens, tokens, tokens, need_weights=False)[0]
        low = tokens.transpose(1, 2).reshape(low.shape)
        high = self.up(nn.functional.interpolate(low, scale_factor=1.0, mode="nearest"))
        result: Tensor = self.outward(torch.cat([first, high], dim=1))
        return result


class Mixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al. 2021): products across patches, then across channels."""

    def __init__(self, patches: int = 16, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.across = nn.ModuleList(_mlp(patches, 32) for _ in range(2))
        self.within = nn.ModuleList(_mlp(width, 48) for _ in range(2))
        self.head = nn.Linear(width, 5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images [batch, 3, 32, 32] to scores [batch, 5]."""
        x = self.stem(pixel_values).flatten(2).transpose(1, 2)
        for i, (across, within) in enumerate(zip(self.across, self.within, strict=True)):
            x = x + across(self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + within(self.norms[2 * i + 1](x))
        result: Tensor = self.head(x.mean(dim=1))
        return result


def _mlp(width: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Recurrent(nn.Module):
    """An LSTM of two layers in both directions, and a classifier on its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Steps [batch, 6, 8] to scores [batch, 3]."""
        result: Tensor = self.head(self.layers(x)[0][:, -1])
        return result


def _hf(model: str, config: str, inputs: Any = _text, dynamic: Any = None, **options: Any) -> Family:
    def build() -> nn.Module:
        made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options))
        return made

    return Family(build, inputs, dynamic or _TEXT)


FAMILIES: dict[str, Family] = {
    "BERT": _hf("BertModel", "BertConfig", **_SMALL),
    "RoBERTa": _hf("RobertaModel", "RobertaConfig", **_SMALL, pad_token_id=1),
    "DistilBERT": _hf("DistilBertModel", "DistilBertConfig", vocab_size=99, dim=32, n_layers=2, n_heads=4,
                      hidden_dim=64),
    "ALBERT": _hf("AlbertModel", "AlbertConfig", **_SMALL, embedding_size=16),
    "ELECTRA": _hf("ElectraModel", "ElectraConfig", **_SMALL, embedding_size=16),
    "GPT-2": _hf("GPT2LMHeadModel", "GPT2Config", vocab_size=99, n_embd=32, n_layer=2, n_head=4, use_cache=False,
                 **_ENDS),
    "GPT-J": _hf("GPTJForCausalLM", "GPTJConfig", vocab_size=99, n_embd=32, n_layer=2, n_head=4, rotary_dim=4,
                 use_cache=False, **_ENDS),
    "OPT": _hf("OPTForCausalLM", "OPTConfig", vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
               ffn_dim=64, word_embed_proj_dim=32, use_cache=False, **_ENDS),
    "Llama": _hf("LlamaForCausalLM", "LlamaConfig", **_DECODER),
    "Mistral": _hf("MistralForCausalLM", "MistralConfig", **_DECODER, head_dim=8, sliding_window=8),
    "Qwen2": _hf("Qwen2ForCausalLM", "Qwen2Config", **_DECODER),
    "Qwen3": _hf("Qwen3ForCausalLM", "Qwen3Config", **_DECODER, head_dim=8),
    "Gemma": _hf("GemmaForCausalLM", "GemmaConfig", **_DECODER, head_dim=8),
    "Phi": _hf("PhiForCausalLM", "PhiConfig", **_DECODER),
    "Mixtral": _hf("MixtralForCausalLM", "MixtralConfig", **_DECODER, num_local_experts=4),
    "T5": _hf("T5ForConditionalGeneration", "T5Config", _coupled, _TWO, vocab_size=99, d_model=32, d_kv=8, d_ff=64,
              num_layers=2, num_heads=4, use_cache=False),
    "BART": _hf("BartForConditionalGeneration", "BartConfig", _coupled, _TWO, **_COUPLED),
    "Whisper": _hf("WhisperForConditionalGeneration", "WhisperConfig", _speech,
                   {"input_features": {0: _B}, "decoder_input_ids": {0: _B, 1: _S}}, **_COUPLED, **_ENDS,
                   num_mel_bins=8, max_source_positions=20, decoder_start_token_id=1),
    "ViT": _hf("ViTModel", "ViTConfig", _pixels, _PIXELS, **_IMAGE),
    "CLIP": _hf("CLIPModel", "CLIPConfig", _clip, {**_TEXT, "pixel_values": {0: Dim("images", min=1, max=64)}},
                text_config={**_SMALL, "projection_dim": 16, "max_position_embeddings": 64, "eos_token_id": 98},
                vision_config=_IMAGE, projection_dim=16),
    "ResNet": _hf("ResNetModel", "ResNetConfig", _pixels, _PIXELS, embedding_size=8, hidden_sizes=[8, 16],
                  depths=[1, 1]),
    "UNet": Family(UNet, _pixels, _PIXELS),
    "MLP-Mixer": Family(Mixer, _pixels, _PIXELS),
    "LSTM classifier": Family(Recurrent, _steps, {"x": {0: _B}}),
}  # fmt: skip


def pruning_families() -> dict[str, Family]:
    """More families, whose channels hang together in other ways: depthwise, windows, fused heads, position biases."""
    heads = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {
        "MobileNetV1": _hf("MobileNetV1Model", "MobileNetV1Config", _pixels, _PIXELS, image_size=32,
                           depth_multiplier=0.25),
        "MobileNetV2": _hf("MobileNetV2Model", "MobileNetV2Config", _pixels, _PIXELS, image_size=32,
                           depth_multiplier=0.35),
        "ResNet-18": _hf("ResNetForImageClassification", "ResNetConfig", _pixels, _PIXELS, embedding_size=16,
                         hidden_sizes=[16, 32, 64, 128], depths=[2, 2, 2, 2], layer_type="basic"),
        "ConvNeXt": _hf("ConvNextModel", "ConvNextConfig", _pixels, _PIXELS, hidden_sizes=[8, 16, 24, 32],
                        depths=[1, 1, 1, 1], image_size=32),
        "Swin": _hf("SwinModel", "SwinConfig", _pixels, _PIXELS, image_size=32, patch_size=2, embed_dim=16,
                    depths=[2, 2], num_heads=[2, 4], window_size=4),
        "GPT-NeoX": _hf("GPTNeoXForCausalLM", "GPTNeoXConfig", vocab_size=99, intermediate_size=64, use_cache=False,
                        **heads),
        "Falcon": _hf("FalconForCausalLM", "FalconConfig", vocab_size=99, use_cache=False, **heads),
        "Bloom": _hf("BloomForCausalLM", "BloomConfig", vocab_size=99, hidden_size=32, n_layer=2, n_head=4,
                     use_cache=False),
        "DeBERTa-v2": _hf("DebertaV2Model", "DebertaV2Config", vocab_size=99, intermediate_size=64, **heads),
    }  # fmt: skip
