"""Encoders of text: every position sees every other."""

from __future__ import annotations

from family import DECODER, VOCABULARY, Site, bidirectional, layered, with_padding

_SHORT = {"max_position_embeddings": 64}
_BERT = DECODER | {"pad_token_id": 0}
_FROM_PAD = DECODER | {"max_position_embeddings": 80, "pad_token_id": 1}

ENCODERS = {
    "bert": bidirectional("BertConfig", _BERT),
    "distilbert": bidirectional(
        "DistilBertConfig",
        _SHORT
        | {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": VOCABULARY},
    ),
    "roberta": bidirectional("RobertaConfig", _FROM_PAD),
    "xlm_roberta": bidirectional("XLMRobertaConfig", _FROM_PAD),
    "electra": bidirectional("ElectraConfig", _BERT | {"embedding_size": 16}),
    "albert": bidirectional("AlbertConfig", _BERT | {"embedding_size": 16}),
    "mpnet": bidirectional("MPNetConfig", _FROM_PAD, site=Site(mask="bias"), sdpa=False),
    "deberta_v2": bidirectional(
        "DebertaV2Config",
        _BERT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        site=Site(mask="bias"),
        sdpa=False,
    ),
    "deberta": bidirectional(
        "DebertaConfig",
        _BERT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        site=Site(mask="bias"),
        rms_norms=5,
        sdpa=False,
    ),
    "modernbert": layered(
        "ModernBertConfig",
        _BERT | {"local_attention": 8, "global_attn_every_n_layers": 2},
        sites=(Site(), Site(mask="bool")),
        rotary=4,
    ),
    "nomic_bert": bidirectional("NomicBertConfig", _BERT, rotary=4),
    "layoutlm": bidirectional("LayoutLMConfig", _BERT),
    "xlnet": bidirectional(
        "XLNetConfig",
        {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "vocab_size": VOCABULARY},
        site=Site(mask="bias"),
        sdpa=False,
    ),
    "roformer": bidirectional(
        "RoFormerConfig", _BERT | {"embedding_size": 16}, sdpa=False, rotary=None
    ),
    "mobilebert": bidirectional(
        "MobileBertConfig",
        _BERT
        | {
            "embedding_size": 16,
            "intra_bottleneck_size": 16,
            "num_feedforward_networks": 1,
        },
    ),
    "squeezebert": bidirectional("SqueezeBertConfig", _BERT | {"embedding_size": 32}, sdpa=False),
    "esm": bidirectional(
        "EsmConfig",
        _FROM_PAD
        | {"position_embedding_type": "rotary", "mask_token_id": 3, "token_dropout": False},
        rotary=4,
    ),
    "ernie": bidirectional("ErnieConfig", _BERT),
    "camembert": bidirectional("CamembertConfig", _FROM_PAD),
    "data2vec_text": bidirectional("Data2VecTextConfig", _FROM_PAD),
    "eurobert": bidirectional(
        "EuroBertConfig", _BERT | {"num_key_value_heads": 4}, rotary=4, rms_norms=5
    ),
    "gte": bidirectional("GteConfig", _BERT, rotary=4),
    "clip_text": bidirectional(
        "CLIPTextConfig",
        DECODER | {"eos_token_id": 2},
        model="CLIPTextModel",
        site=Site(causal=True),
    ),
    "siglip_text": bidirectional("SiglipTextConfig", DECODER, model="SiglipTextModel"),
    "rembert": bidirectional("RemBertConfig", _BERT | {"input_embedding_size": 16}, sdpa=False),
    "ibert": bidirectional("IBertConfig", _FROM_PAD, sdpa=False, rms_norms=5),
    "t5_encoder": bidirectional(
        "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        | {"vocab_size": VOCABULARY},
        model="T5EncoderModel",
        site=Site(mask="bias"),
        rms_norms=5,
        captured=("eager",),
    ),
}
PADDED_ENCODERS = {
    f"{name}_padded": with_padding(ENCODERS[name])
    for name in ("bert", "distilbert", "roberta", "modernbert", "t5_encoder", "mpnet", "electra")
}
