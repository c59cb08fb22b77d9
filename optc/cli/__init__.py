"""The command line: one file per command, no logic. Results on stdout, progress on stderr."""
