"""Experiments: yaml files that the command line runs, and the bundled worlds that they run on."""
