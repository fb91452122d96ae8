"""Inversions of flows compared: errors by number of steps in closed form and on the bundled models, and ablations."""
