"""Looking at results: the offline report, the TensorBoard plugin, and the command that starts TensorBoard.

Both pages show the same document (`document.py`), read from the records of runs (`results.py`), through the same
modules in `assets/`.
"""
