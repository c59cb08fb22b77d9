"""Names of the targets and where their classes are."""

TABLE = {"ort": "optc.targets.ort:Ort"}
PLANNED = {
    "tensorrt": "engines for data-centre GPUs",
    "tensorrt-rtx": "engines built on any machine, for RTX GPUs",
}
