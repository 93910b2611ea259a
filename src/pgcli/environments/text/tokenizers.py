"""From text to tokens and back: characters, a closed list of words, bytes, or a Hugging Face tokenizer in a folder.

A prompt and its completion are encoded separately and their tokens joined; never the joined text: a tokenizer may merge
across the border, and the policy could then not write that completion after that prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from pgcli.errors import InputError


class Tokenizer(Protocol):
    """Tokens 0 .. size - 1. `end` is an action like any other, and never the same token as `pad`."""

    @property
    def size(self) -> int: ...

    @property
    def bos(self) -> int | None:
        """Token at the beginning of every text; None if there is none."""
        ...

    @property
    def end(self) -> int: ...

    @property
    def pad(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Tokens, without special ones. Raises InputError for text outside the vocabulary."""
        ...

    def decode(self, tokens: Sequence[int], *, specials: bool = False) -> str:
        """The text, `decode(encode(text)) == text`; with `specials` including beginning, end and padding tokens."""
        ...


SPECIALS = ("<bos>", "<end>", "<pad>")


class Symbols:
    """Symbols of a closed list, then <bos>, <end> and <pad>."""

    def __init__(self, symbols: Iterable[str], *, separator: str) -> None:
        self.names = (*symbols, *SPECIALS)
        self.separator = separator
        self.numbers = {name: number for number, name in enumerate(self.names)}
        self.size = len(self.names)
        if len(self.numbers) < self.size:
            raise InputError("a vocabulary names each of its symbols once")
        self.bos, self.end, self.pad = self.size - 3, self.size - 2, self.size - 1

    def _encode(self, symbols: Sequence[str], kind: str) -> list[int]:
        unknown = sorted({s for s in symbols if s in SPECIALS or s not in self.numbers})
        if unknown:
            raise InputError(f"not among the {self.size - 3} {kind} of the vocabulary: {', '.join(map(repr, unknown))}")
        return [self.numbers[s] for s in symbols]

    def decode(self, tokens: Sequence[int], *, specials: bool = False) -> str:
        return self.separator.join(self.names[t] for t in tokens if specials or t < self.size - 3)


class Characters(Symbols):
    """Each character of an alphabet is a token."""

    def __init__(self, alphabet: str) -> None:
        super().__init__(alphabet, separator="")

    def encode(self, text: str) -> list[int]:
        return self._encode(text, "characters")


class Words(Symbols):
    """Each word of a closed list is a token; words stand between spaces."""

    def __init__(self, words: Iterable[str]) -> None:
        super().__init__(words, separator=" ")

    def encode(self, text: str) -> list[int]:
        return self._encode(text.split(), "words")


class Bytes:
    """The bytes of UTF-8, 0 .. 255, then <bos>, <end> and <pad>; one token is spare, so that there are 260."""

    size = 260
    bos, end, pad = 256, 257, 258

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int], *, specials: bool = False) -> str:
        """The text; invalid UTF-8 becomes replacement characters."""
        pieces, run = [], bytearray()
        for token in tokens:
            if token < 256:
                run.append(token)
            elif specials:
                pieces += [run.decode(errors="replace"), (*SPECIALS, "<spare>")[token - 256]]
                run = bytearray()
        return "".join(pieces) + run.decode(errors="replace")


class HuggingFace:
    """The tokenizer in a folder with a `tokenizer.json`, read by transformers. Nothing is downloaded."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise InputError(f"no folder {self.folder} to read a tokenizer from")
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise InputError(
                "a Hugging Face tokenizer needs an extra: pip install 'policy-gradient-cli[llm]'"
            ) from error
        try:
            self.inner: Any = AutoTokenizer.from_pretrained(
                str(self.folder), local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.folder} has no tokenizer that can be read: {str(error).splitlines()[0]}"
            ) from error
        # Below the layer that also cleans up, which is switched off here: a third of the time.
        self.fast: Any = getattr(self.inner, "backend_tokenizer", None)
        self.size = len(self.inner)
        self.bos: int | None = self.inner.bos_token_id
        if self.inner.eos_token_id is None:
            raise InputError(
                f"the tokenizer of {self.folder} has no end token (eos_token): a completion could never end"
            )
        self.end: int = self.inner.eos_token_id
        self.pad = padding(self.inner.pad_token_id, end=self.end)

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text, add_special_tokens=False)

    def decode(self, tokens: Sequence[int], *, specials: bool = False) -> str:
        known = [t for t in tokens if t < self.size]  # a model may have more logits than its tokenizer has tokens
        if self.fast is not None:
            return self.fast.decode(known, skip_special_tokens=not specials)
        return self.inner.decode(known, skip_special_tokens=not specials, clean_up_tokenization_spaces=False)


def padding(own: int | None, *, end: int) -> int:
    """A token for padding that is not the end: with the end as padding, masking the padding would never teach the end.

    Many tokenizers have no padding token, or use the end. Padding is masked and never read, so any other token will do.
    """
    return own if own is not None and own != end else int(end == 0)
