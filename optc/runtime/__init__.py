"""Running what was built: generation loop, sampling, tokenizer. Needs numpy and tokenizers only."""
