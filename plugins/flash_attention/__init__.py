"""FlashAttention: the canonical attention op and its realisations."""
