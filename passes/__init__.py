"""Names of the passes and where their classes are."""

TABLE = {
    "flash": "optc.passes.flash:Flash",
    "kv": "optc.passes.kv:KV",
    "quant": "optc.passes.quant:Quant",
}
