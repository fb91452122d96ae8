"""Performance claims as ratios measured in one run; every benchmark prints one json object per line."""
