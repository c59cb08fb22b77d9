"""Encoders with decoders: two inputs, and attention from the one to the other.

Sites in the order of the graph: those of the encoder, then of each decoder layer its own and the
one across.
"""

from __future__ import annotations

from family import VOCABULARY, Family, Site, with_padding

_BOTH = ("input_ids", "decoder_input_ids")
_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
}
_T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": VOCABULARY,
    "decoder_start_token_id": 0,
}
_PLAIN = (Site(), Site(), Site(causal=True), Site(), Site(causal=True), Site())
_BIASED = (
    Site(mask="bias"),
    Site(mask="bias"),
    Site(causal=True, mask="bias"),
    Site(),
    Site(causal=True, mask="bias"),
    Site(),
)


def _pair(
    config: str, options: dict[str, object], sites: tuple[Site, ...] = _PLAIN, **more: object
) -> Family:
    given = {"model": "AutoModelForSeq2SeqLM", "inputs": _BOTH, **more}
    return Family(config, options, sites, **given)  # type: ignore[arg-type]


ENCODER_DECODERS = {
    "t5": _pair(
        "T5Config",
        _T5,
        _BIASED,
        rms_norms=12,
        captured=("eager",),
    ),
    "flan_t5": _pair(
        "T5Config",
        _T5 | {"feed_forward_proj": "gated-gelu"},
        _BIASED,
        rms_norms=12,
        captured=("eager",),
    ),
    "umt5": _pair(
        "UMT5Config",
        _T5,
        _BIASED,
        rms_norms=12,
        captured=("eager",),
    ),
    "bart": _pair("BartConfig", _BART),
    "mbart": _pair("MBartConfig", _BART),
    "marian": _pair("MarianConfig", _BART),
    "pegasus": _pair("PegasusConfig", _BART),
    "blenderbot": _pair("BlenderbotConfig", _BART),
    "m2m100": _pair("M2M100Config", _BART),
    "plbart": _pair("PLBartConfig", _BART),
    "whisper": _pair(
        "WhisperConfig",
        _BART
        | {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 64}
        | {"eos_token_id": 2, "bos_token_id": 1},
        model="AutoModelForSpeechSeq2Seq",
        inputs=("input_features", "decoder_input_ids"),
    ),
    "t5gemma": _pair(
        "T5GemmaConfig",
        {
            part: {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "intermediate_size": 48,
                "vocab_size": VOCABULARY,
                "sliding_window": 8,
            }
            for part in ("encoder", "decoder")
        }
        | {"vocab_size": VOCABULARY},
        (
            Site(key_heads=2, softcap=50.0, mask="bool"),  # the encoder's window is to both sides
            Site(causal=True, key_heads=2, softcap=50.0, window=8, mask="bool"),
            Site(key_heads=2, softcap=50.0),
        ),
        sdpa=False,
        rotary=4,
        rms_norms=12,
    ),
}
PADDED_ENCODER_DECODERS = {
    f"{name}_padded": with_padding(ENCODER_DECODERS[name]) for name in ("t5", "bart")
}
