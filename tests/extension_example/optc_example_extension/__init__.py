"""What this distribution adds to optc."""

EXTENSION = {"passes": {"example-tag": "optc_example_extension.tag:Tag"}}
