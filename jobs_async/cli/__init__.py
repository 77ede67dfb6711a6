"""The command line: the composition root, and the only place that talks to a terminal."""
