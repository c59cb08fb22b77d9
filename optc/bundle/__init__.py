"""The result of a build: a folder that says what it is, what it needs and what was measured."""
