"""Errors, `Pass`, `Pipeline`, registry, hooks: knows nothing about any pass or target."""
