"""Encoders of pictures and sound."""

from __future__ import annotations

from family import COMMON, Site, bidirectional, layered

_PICTURE = {k: v for k, v in COMMON.items() if k != "vocab_size"} | {
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
_SEEN = {"inputs": ("pixel_values",)}
_CONVOLUTIONS = {
    "conv_dim": (16, 16),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,
    "apply_spec_augment": False,
}
_HEARD = {"inputs": ("input_values",)}
_SOUND = COMMON | {"intermediate_size": 48} | _CONVOLUTIONS

_STAGES = (Site(mask="bias", key_heads=2),) * 2 + (Site(mask="bias"),) * 2

PERCEPTION = {
    "vit": bidirectional("ViTConfig", _PICTURE, **_SEEN),
    "deit": bidirectional("DeiTConfig", _PICTURE, **_SEEN),
    "beit": bidirectional(
        "BeitConfig",
        _PICTURE | {"use_relative_position_bias": True},
        site=Site(mask="bias"),
        **_SEEN,
        captured=("eager",),
    ),
    "dinov2": bidirectional("Dinov2Config", _PICTURE | {"mlp_ratio": 2}, **_SEEN),
    "dinov3": bidirectional("DINOv3ViTConfig", _PICTURE, rotary=None, **_SEEN),
    "clip_vision": bidirectional("CLIPVisionConfig", _PICTURE, model="CLIPVisionModel", **_SEEN),
    "siglip_vision": bidirectional(
        "SiglipVisionConfig", _PICTURE, model="SiglipVisionModel", **_SEEN
    ),
    "vit_msn": bidirectional("ViTMSNConfig", _PICTURE, **_SEEN),
    "ijepa": bidirectional("IJepaConfig", _PICTURE, **_SEEN),
    "yolos": bidirectional("YolosConfig", _PICTURE | {"image_size": (32, 32)}, **_SEEN),
    "swin": layered(
        "SwinConfig",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2]}
        | {"num_heads": [2, 4], "window_size": 4},
        sites=_STAGES,
        **_SEEN,
        captured=("eager",),
    ),
    "swinv2": layered(
        "Swinv2Config",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2]}
        | {"num_heads": [2, 4], "window_size": 4},
        sites=_STAGES,
        sdpa=False,
        **_SEEN,
    ),
    "segformer": layered(
        "SegformerConfig",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [16, 32],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [2, 4],
            "mlp_ratios": [2, 2],
        },
        sites=(Site(key_heads=2), Site(key_heads=4)),
        **_SEEN,
    ),
    "pvt": layered(
        "PvtConfig",
        {
            "image_size": 32,
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sequence_reduction_ratios": [2, 1],
            "hidden_sizes": [16, 32],
            "patch_sizes": [4, 2],
            "strides": [4, 2],
            "num_attention_heads": [2, 4],
            "mlp_ratios": [2, 2],
        },
        sdpa=False,
        sites=(Site(key_heads=2), Site(key_heads=4)),
        **_SEEN,
    ),
    "wav2vec2": bidirectional("Wav2Vec2Config", _SOUND, **_HEARD),
    "hubert": bidirectional("HubertConfig", _SOUND, **_HEARD),
    "unispeech": bidirectional("UniSpeechConfig", _SOUND, **_HEARD),
    "wavlm": bidirectional("WavLMConfig", _SOUND, site=Site(mask="bias"), sdpa=False, **_HEARD),
    "whisper_encoder": bidirectional(
        "WhisperConfig",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_layers": 2,
            "decoder_attention_heads": 4,
            "num_mel_bins": 8,
            "max_source_positions": 16,
        },
        model="WhisperEncoder",
        inputs=("input_features",),
    ),
}
