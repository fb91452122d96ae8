"""Semantic guidance and LEDITS++ with four concepts: wall time over the bare calls of the same network.

`python -m benchmarks.semantic`: at most 1.08 at batch 8, all rows of a step in one call.
"""

from __future__ import annotations

import sys

from benchmarks.measure import arguments, bare_unet, batch_of, edit_run, finish, interleaved, load, record_calls, report
from methods import LEDITS, LEDITSPP, SEGA, Concept, ImplicitMaskGuidance, MaskedConcept, SemanticGuidance

STEPS, SKIP = 4, 1
WORDS = ("red", "star", "striped", "large")


def main() -> int:
    options = arguments(__doc__ or "").parse_args()
    backbone = load(options)
    batch = batch_of(backbone, options.batch)
    concepts = [Concept(word, warmup=min(k, SKIP), reverse=k % 2 == 1) for k, word in enumerate(WORDS)]
    masked = [MaskedConcept(word, threshold=0.75) for word in WORDS]
    count = len(WORDS)
    cases = {  # with the rows of one image: inversion + edit, whose source row is walked back too
        "sega": (SEGA(backbone, steps=STEPS, guidance=SemanticGuidance(concepts)), STEPS * (2 + count)),
        "ledits": (
            LEDITS(backbone, steps=STEPS, skip=SKIP, guidance=SemanticGuidance(concepts, source=0.0)),
            STEPS + (STEPS - SKIP) * (1 + 2 + count),
        ),
        "ledits_pp_noise": (
            LEDITSPP(backbone, steps=STEPS, guidance=ImplicitMaskGuidance(masked)),
            STEPS + STEPS * (1 + 1 + count),
        ),
    }
    held = []
    for name, (module, rows) in cases.items():
        edit = edit_run(module, batch)
        calls = record_calls(module, edit)
        share = sum(z.shape[0] for z, _, _ in calls) / (rows * options.batch)
        held.append(report(f"evaluations/{name}", max(share, 1 / share), 1.0, calls=len(calls)))
        timing = interleaved(edit, bare_unet(backbone, calls), options.rounds, options.device, options.clock)
        held.append(report(f"overhead/{name}", limit=1.08, batch=options.batch, concepts=count, **timing))
    return finish(held)


if __name__ == "__main__":
    sys.exit(main())
