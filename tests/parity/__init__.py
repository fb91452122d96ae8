"""Replays of recorded parity cases: what the authors' code did with given inputs, against this project."""
