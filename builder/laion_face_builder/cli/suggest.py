"""Guess which word was meant: first other upper and lower case, then longer words, then similar ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def meant(word: str, valid: Iterable[str]) -> str:
    """Give `did you mean 20M? ` with the nearest valid words, "" if none is near."""
    near = _near(word, list(valid))
    return f"did you mean {' or '.join(near)}? " if near else ""


def _near(word: str, valid: list[str]) -> list[str]:
    by_case = [one for one in valid if one.casefold() == word.casefold()]
    if by_case:
        return by_case
    longer = [one for one in valid if one.casefold().startswith(word.casefold())]
    if 0 < len(longer) <= 2:
        return longer
    # Without the dashes of options, which all have in common.
    plain = {one.casefold().lstrip("-"): one for one in valid}
    return [plain[one] for one in difflib.get_close_matches(word.casefold().lstrip("-"), plain, n=2)]
