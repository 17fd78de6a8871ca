"""Parse the command line with argparse; an error is one line with the word that was probably meant, exit code 2.

Which word was meant is guessed: first other upper and lower case, then longer words, then similar ones.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from laion_face_builder.cli import output


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


MOST_IDS = 2**63 - 1
_NUMBERS: Mapping[Any, str] = {int: "a whole number", float: "a number"}


class Parser(argparse.ArgumentParser):
    """A parser that takes options by their whole names only: `--data` could silently mean one of several."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **how})

    @property
    def option_names(self) -> list[str]:
        """Names of all options, "--debug" as well as "-h"."""
        return [name for action in self._actions for name in action.option_strings]

    @property
    def commands(self) -> Mapping[str, Parser]:
        """The parsers of the commands, by name."""
        found = [action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return found[0] if found else {}

    def error(self, message: str) -> NoReturn:
        """Print the error in one line, and exit with code 2."""
        output.complain(f"{message}{' ' if message.endswith('?') else '; '}see `{self.prog} --help`")
        sys.exit(2)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            if (expected := _NUMBERS.get(action.type)) is None:
                raise
            raise argparse.ArgumentError(action, f"found {arg_string!r}, expected {expected}") from error

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            valid = list(map(str, action.choices))
            if action.nargs == "?" and action.option_strings:
                valid[-1] += f"; {action.option_strings[0]} without a value stands last"
            what = "there is no command" if isinstance(action, argparse._SubParsersAction) else "found"
            raise argparse.ArgumentError(
                action if what == "found" else None,
                f"{what} {str(value)!r}: {meant(str(value), valid)}valid are {', '.join(valid)}",
            )

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is None or file is sys.stdout:
            output.say(message, end="")
        else:
            super()._print_message(message, file)


def parse(parser: Parser, words: list[str]) -> argparse.Namespace:
    """Parse the typed words.

    Raises:
        SystemExit: they are not valid, and the error has been printed; or they had --help or --version.
    """
    _refuse_unknown(parser, words)
    return parser.parse_args(words)


def sample_id(word: str) -> int:
    """Convert a word to a sample id, or raise ArgumentTypeError."""
    number = int(word) if word.lstrip("-").isdecimal() else -1
    if not 0 <= number <= MOST_IDS:
        raise argparse.ArgumentTypeError(
            f"found {word!r}, expected a sample id as in the column sample_id: a whole number from 0 to {MOST_IDS}"
        )
    return number


def _refuse_unknown(parser: Parser, words: list[str]) -> None:
    """Report an option that does not exist, before argparse takes its value for something else."""
    command = next((word for word in words if not word.startswith("-")), "")
    of_command = parser.commands.get(command)
    for word in _options_among(words):
        chosen = of_command if of_command is not None else parser
        if word not in [*parser.option_names, *chosen.option_names]:
            chosen.error(_unknown(parser, command, chosen, word))


def _options_among(words: list[str]) -> Iterable[str]:
    ends = words.index("--") if "--" in words else len(words)
    return [word.partition("=")[0] for word in words[:ends] if word.startswith("--") and " " not in word]


def _unknown(parser: Parser, command: str, chosen: Parser, word: str) -> str:
    elsewhere = [name for name, other in parser.commands.items() if word in other.option_names]
    near = meant(word, chosen.option_names)
    hint = f"it belongs to {', '.join(elsewhere)}" if elsewhere else near
    return f"{command or 'laion-face'} has no option {word}: {hint}".rstrip(" :")
