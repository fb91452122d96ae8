"""Tokenizers of pipelines with several text encoders: what each sees of a prompt."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import Tensor

from framework.backbones.files import ModelFiles
from framework.step import Token

_FILES = ("*.json", "merges.txt", "spiece.model")


class TextTokenizer:
    """One tokenizer of a model; it needs no weights and is read when it is first asked.

    Args:
        files: The model.
        folder: Its folder in the model, such as "tokenizer_2".
        kind: Class of transformers that reads it.
        limit: Positions that its encoder is given, start and end tokens included.
    """

    def __init__(self, files: ModelFiles, folder: str, kind: str, limit: int) -> None:
        self._files = files
        self._folder = folder
        self._kind = kind
        self.limit = limit

    @cached_property
    def _tokenizer(self) -> Any:
        import transformers

        root = self._files.download({}, [f"{self._folder}/{name}" for name in _FILES])
        try:
            return getattr(transformers, self._kind).from_pretrained(root / self._folder, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise self._files.problem(f"its {self._folder} cannot be read ({error}); get the model again.") from None

    def padded(self, text: str) -> Tensor:
        """Return the encoder's input for a prompt, [1, limit] int64, cut and padded."""
        tokens = self._tokenizer(
            text, padding="max_length", max_length=self.limit, truncation=True, return_tensors="pt"
        )
        ids: Tensor = tokens.input_ids
        return ids

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens that the encoder sees, start and end included, without padding."""
        return tuple(self._tokenizer(text, max_length=self.limit, truncation=True).input_ids)

    def tail(self, text: str) -> str:
        """Return the end of a prompt that the encoder does not see."""
        unseen = self._whole(text)["offset_mapping"][self.limit - 1 : -1]
        return text[unseen[0][0] :].strip() if unseen else ""

    def tokens(self, text: str) -> tuple[Token, ...]:
        """Return all tokens of a prompt without start and end; for tokenizers that begin with a start token."""
        found, decode = self._whole(text), self._tokenizer.decode
        ids, spans = found["input_ids"][1:-1], found["offset_mapping"][1:-1]
        return tuple(Token(n, decode([n]).strip(), *span) for n, span in zip(ids, spans, strict=True))

    def _whole(self, text: str) -> Any:
        return self._tokenizer(text, return_offsets_mapping=True, truncation=False, verbose=False)
