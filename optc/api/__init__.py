"""The public functions; the whole flow is in `optc.api.build`: read that first.

One file per verb: `export`, `build`, `verify`, `run`, `bench`, `inspect_*`, `bisect`.
"""
