"""What ``onnxruntime-genai`` wants to know of a generation graph. Imports neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...ir.signature import DecoderSpec
from ..artifact import GENERATION_FILE


def genai_config(spec: DecoderSpec, heads: int, takes: Sequence[str], known: Mapping[str, int]) -> dict[str, Any]:
    """The content of ``genai_config.json``.

    Args:
        spec: of the decoder.
        heads: of queries.
        takes: names of the graph's inputs.
        known: ``bos_token_id`` and ``pad_token_id``, as far as they are known.
    """
    plain = {name: name for name in ("input_ids", "attention_mask", "position_ids") if name in takes}
    ends = list(spec.end_tokens) or [-1]
    return {
        "model": {
            "type": "llama",  # how it is driven: tokens, a mask and a cache by layer; the graph is what it is
            "vocab_size": spec.vocabulary,
            "context_length": spec.context,
            "bos_token_id": known.get("bos_token_id", ends[0]),
            "eos_token_id": ends[0] if len(ends) == 1 else ends,
            "pad_token_id": known.get("pad_token_id", ends[0]),
            "decoder": {
                "filename": GENERATION_FILE,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "head_size": spec.head_dim,
                "num_attention_heads": heads,
                "num_key_value_heads": spec.kv_heads,
                "num_hidden_layers": spec.layers,
                "inputs": {
                    **plain,
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": spec.context,
            "num_beams": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    }
