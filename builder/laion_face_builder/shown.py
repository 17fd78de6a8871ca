"""What may be shown: addresses, errors and log lines without the passwords, signatures and tokens in them.

Addresses carry secrets: `http://user:password@host/`, `?X-Amz-Signature=…`. They are kept as given where they are
used, and go through `shown` or `bare` wherever they are put into words or names. The words of others (libraries,
servers) go through `short` or `hushed`; so does every error of ours, as the last thing that happens to its text, and
every line that is logged (`log`). The cause of an error of ours goes through `harmless`: tracebacks have its words.

And numbers, as people read them: `ranges`, `counted`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator

#: Stands for what is not shown.
HIDDEN = "***"

#: What every secret that is looked for has in it; most texts have none of these. Below all is bounded that may be in
#: vain: a message of megabytes takes a second, not an hour.
_MARKS = re.compile(r"[@?]|hf_|bearer|basic|authorization", re.IGNORECASE)
_END = r"\s'\"<>"
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<=://)[^\s/?#]{0,999}@(?:(?=[/?#]).{0,999}@)?", f"{HIDDEN}@"),
        # A password with "/", "?", "#" or a blank that was not percent-encoded: where a port would be there is none.
        (rf"(?<=://)[^\s/?#@:\[]{{0,999}}:(?!\d{{0,5}}(?:[{_END}/?#),;\]:]|$)).{{0,999}}@", f"{HIDDEN}@"),
        # Where no port can be, a colon is that of a password.
        (
            r"(?i)(?<![a-z0-9+.-])((?!https?:|hf:|wss?:)[a-z][a-z0-9+.-]{0,30}://)[^\s/?#@:\[]{0,999}:(?!:).{0,999}@",
            rf"\1{HIDDEN}@",
        ),
        (rf"(://[^?{_END}]{{0,999}}\?)[^{_END}]*[^{_END}:,;.)\]]", rf"\1{HIDDEN}"),
        (rf"\?(?=[^{_END}]{{0,999}}=)[^{_END}]*[^{_END}:,;.)\]]", f"?{HIDDEN}"),
        # As a proxy may be named, or an address that was taken apart: no scheme.
        (rf"[^{_END}/?#@:=(]{{1,256}}:[^\s/?#@]{{1,256}}@(?=[\w\[])", f"{HIDDEN}@"),
        (r"(?i)(authorization['\"]?\s*[:=,]\s*(?:b?['\"])?(?:(?:basic|bearer)\s+)?)[^\s'\",})]+", rf"\1{HIDDEN}"),
        (r"\b(Bearer\s+)[^\s'\",})]{8,}", rf"\1{HIDDEN}"),
        (r"(?<=['\"])(Basic\s+)[A-Za-z0-9+/=_-]{4,}(?=['\"\\])", rf"\1{HIDDEN}"),
        (r"\bhf_(?:[a-z]+_)?[A-Za-z0-9]{16,}[\w.-]*", f"hf_{HIDDEN}"),
    )
)


def hushed(text: str) -> str:
    """Return the text without the passwords, signatures and tokens in it; unchanged if there are none."""
    if _MARKS.search(text):
        for pattern, replacement in _RULES:
            text = pattern.sub(replacement, text)
    return text


def short(said: object, most: int = 300) -> str:
    """Return an error or a text in one line, first hushed and then cut: half a secret would not be recognised.

    An error without words is called by its type.
    """
    text = hushed(" ".join(str(said).split()))
    if not text and isinstance(said, BaseException):
        return type(said).__name__
    return text if len(text) <= most else f"{text[:most]}…"


def shown(address: str) -> str:
    """Return an address for people: *** stands for user and password, and for the query. Paths and Hub ids stay."""
    if "://" not in address:
        return hushed(address)
    for pattern, replacement in _RULES[:3]:
        address = pattern.sub(replacement, address)
    address, mark, _ = address.partition("?")
    return hushed(address.partition("#")[0]) + (f"?{HIDDEN}" if mark else "")


def bare(address: str) -> str:
    """Return an address for names: without user, password and query, so that it is the same with any of them."""
    return shown(address).partition("?")[0].replace(f"{HIDDEN}@", "") if "://" in address else address


def ranges(numbers: Iterable[int], between: str = ",") -> str:
    """Write ascending numbers with ranges for three and more in a row: "0,2,5-7", as --parts takes parts."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    said = ([f"{run[0]}-{run[-1]}"] if len(run) > 2 else map(str, run) for run in runs)
    return between.join(one for run in said for one in run)


def counted(number: int, what: str) -> str:
    """Give "1 tar" and "1,000 tars" for a thing that takes an s in the plural."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


class Stranger(Exception):
    """Stands for an error of a library if its words, or those of one of its causes, had a secret in them."""


def harmless(error: Exception) -> Exception:
    """Return what our error may be raised from: `error`, or a stand-in if its traceback would show a secret.

    The stand-in only names the types of its causes: where there was a secret, they may quote pieces of it.
    """
    first, *behind = chain(error)
    if all(hushed(text) == text for one in (first, *behind) for text in (str(one), repr(one))):
        return error
    kinds = "".join(f", from {type(one).__name__}" for one in behind)
    return Stranger(f"{type(first).__name__}: {hushed(str(first))}{kinds}").with_traceback(error.__traceback__)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes, as a traceback shows them, each once: libraries make circles of them."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


class ShownFields:
    """A base for dataclasses (made with repr=False) whose repr shows their addresses without their secrets."""

    def __repr__(self) -> str:
        fields = (spec for spec in dataclasses.fields(self) if spec.repr)  # type: ignore[arg-type]
        said = (f"{spec.name}={_said(getattr(self, spec.name))}" for spec in fields)
        return f"{type(self).__qualname__}({', '.join(said)})"


def _said(value: object) -> str:
    return repr(shown(value)) if isinstance(value, str) else hushed(repr(value))
