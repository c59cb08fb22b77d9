"""Custom ops, one folder each."""
