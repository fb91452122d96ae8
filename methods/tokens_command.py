"""The command `invedit tokens`: how the words of two prompts correspond, as Prompt-to-Prompt will take them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from framework.command import Command


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="prompt of the source image")
    parser.add_argument("target", metavar="TARGET", help="prompt of the edit")
    parser.add_argument("--model", default="shapes", help="whose tokenizer: hub id, diffusers folder, or a short name")
    parser.add_argument(
        "--edit", choices=("replace", "refine"), default="refine", help="kind of edit (default: refine)"
    )
    parser.add_argument("--word-rule", choices=("lengths", "offsets"), default="lengths", help="how words are found")
    parser.add_argument("--fix-tail", action="store_true", help="replace: map what follows the last new word correctly")
    parser.add_argument("--json", action="store_true", help="print one json document, for programs")


def _run(arguments: argparse.Namespace) -> int:
    from framework.backbones import StableDiffusion

    backbone = StableDiffusion(arguments.model)
    table = mapping_of(arguments, backbone)
    if arguments.json:
        print(json.dumps(table, ensure_ascii=False, indent=2))
        return 0
    print(format_table(table))
    for name in ("source", "target"):
        unseen = backbone.truncated(getattr(arguments, name))
        if unseen:
            print(f"The text encoder does not see {unseen!r} at the end of the {name} prompt.")
    return 0


def mapping_of(arguments: argparse.Namespace, backbone: Any) -> list[dict[str, Any]]:
    """Map the tokens of two prompts; see `token_table`."""
    import torch

    from methods.token_alignment import refinement_matrix, replacement_mapper, token_table

    source, target, length = arguments.source, arguments.target, backbone.max_tokens
    own = torch.zeros(length, dtype=torch.float64)
    if arguments.edit == "replace":
        mapper = replacement_mapper(
            source, target, backbone.tokens, length, rule=arguments.word_rule, fix_tail=arguments.fix_tail
        )
    else:
        mapper, own = refinement_matrix(source, target, backbone.tokens, length)
    return token_table(backbone.tokens(source), backbone.tokens(target), mapper, own, torch.ones_like(own))


def format_table(table: Sequence[Mapping[str, Any]]) -> str:
    """Write a token table as aligned text, one target token per line."""
    lines = [("", "target", "", "source")]
    for row in table:
        come = [
            f"{one['position']} {one['token']}" + ("" if one["weight"] == 1 else f" x {one['weight']:g}")
            for one in row["source"]
        ]
        if row["own"]:
            come.append("its own map")
        lines.append((str(row["position"]), row["token"], "<-", ", ".join(come) or "nothing"))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join(
        f"{number:>{widths[0]}}  {token:<{widths[1]}}  {arrow:<{widths[2]}}  {come}".rstrip()
        for number, token, arrow, come in lines
    )


tokens = Command("show how the tokens of two prompts correspond under Prompt-to-Prompt", _configure, _run)
