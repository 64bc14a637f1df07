"""From a typed function to a command line: the signature says what the arguments are, `Annotated` says what they mean."""

from __future__ import annotations

import argparse
import difflib
import inspect
import shutil
import textwrap
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from mobilevitv2.errors import ConfigurationError

Verb = Callable[..., int]
STDOUT = "-"


@dataclass(frozen=True)
class Argument:
    """What the help says of a parameter.

    Attributes:
        help: one sentence.
        metavar: the word that stands for the value.
        file_suffix: of an option that may stand alone and then means standard output; only a following word with this ending, or
            one of these, is its value, so that `--json cat.jpg` does not take the picture for the file to write.
        at_least_one: of a list.
        aliases: other words for an option.
    """

    help: str
    metavar: str | None = None
    file_suffix: str | tuple[str, ...] | None = None
    at_least_one: bool = False
    aliases: tuple[str, ...] = ()


class Parser(argparse.ArgumentParser):
    """argparse with one line of error, the nearest option, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Leave with what is wrong and where help is."""
        end = "" if message.endswith(("?", ".")) else "."
        self.exit(2, f"{self.prog}: error: {message}{end} `{self.prog} --help` says more.\n")


def arguments_of(verb: Verb, argv: Sequence[str], *, prog: str) -> dict[str, Any]:
    """The verb's arguments from the command line; leaves the process on --help and on bad usage, as argparse does."""
    parser, flags = parser_of(verb, prog=prog)
    words, freed = _with_lone_flags(_without_double_dash(list(argv)), flags)
    known, unknown = parser.parse_known_intermixed_args(words)
    for word in unknown:
        options = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(word.split("=")[0], options, n=1)
        parser.error(f"there is no option {word}" + (f"; did you mean {near[0]}?" if near else ""))
    values = vars(known)
    if freed and not values.get("sources", True):
        values["sources"] = [STDOUT]  # `--json -` with nothing else: JSON goes to standard output anyway, so "-" was the source
    if not values.get("sources", True):
        parser.error("no picture was named: give files, folders, globs, URLs, or - for paths on standard input")
    return values


def parser_of(verb: Verb, *, prog: str) -> tuple[Parser, dict[str, str | tuple[str, ...]]]:
    """The parser of a verb, and the endings of its options that may stand alone."""
    text = "\n\n".join(map(_filled, (inspect.getdoc(verb) or "").split("\n\n")))
    parser = Parser(prog=prog, description=text, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    hints = get_type_hints(verb, include_extras=True)
    flags: dict[str, str | tuple[str, ...]] = {}
    for name, parameter in inspect.signature(verb).parameters.items():
        annotated, argument = get_args(hints[name])
        _add(parser, name, annotated, argument, parameter)
        if argument.file_suffix is not None:
            flags[_flag(name)] = argument.file_suffix
    return parser, flags


def _filled(paragraph: str) -> str:
    """A paragraph in the width of the terminal; examples, which have indented lines, stay as they are."""
    if "\n  " in paragraph:
        return paragraph
    return textwrap.fill(paragraph, shutil.get_terminal_size().columns - 2)


def _add(parser: Parser, name: str, kind: Any, argument: Argument, parameter: inspect.Parameter) -> None:
    options: dict[str, Any] = {"help": argument.help.replace("%", "%%"), "metavar": argument.metavar}
    if kind is bool:
        parser.add_argument(_flag(name), action="store_true", help=options["help"])
        return
    if get_origin(kind) in (types.UnionType, Union):
        kind = next(part for part in get_args(kind) if part is not types.NoneType)
    is_list = get_origin(kind) is list
    if get_origin(kind) is Literal:
        options["choices"] = get_args(kind)
    elif is_list:
        options["type"] = get_args(kind)[0]
        options["nargs"] = "+" if argument.at_least_one else "*"
    else:
        options["type"] = kind
    if argument.file_suffix is not None:
        options.update(nargs="?", const=STDOUT)
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
        required = parameter.default is inspect.Parameter.empty
        default = None if required else parameter.default
        shown = "" if default is None or required else f" (default: {default})"
        names = (_flag(name), *argument.aliases)
        parser.add_argument(*names, **{**options, "help": options["help"] + shown, "default": default, "required": required})
    elif parameter.default is inspect.Parameter.empty:
        parser.add_argument(name, **options)
    else:
        parser.add_argument(name, **options, nargs="?", default=parameter.default)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _without_double_dash(argv: list[str]) -> list[str]:
    """`-- -odd.jpg` becomes `./-odd.jpg`: argparse cannot mix options and positional words and understand "--" as well."""
    if "--" not in argv:
        return argv
    end = argv.index("--")
    return argv[:end] + [f"./{word}" if word.startswith("-") and word != STDOUT else word for word in argv[end + 1 :]]


def _with_lone_flags(argv: list[str], flags: dict[str, str | tuple[str, ...]]) -> tuple[list[str], bool]:
    """`--json cat.jpg` becomes `--json=- cat.jpg`, `--json out.json` becomes `--json=out.json`; and whether a "-" was taken."""
    plain: list[str] = []
    freed = False
    words = iter(range(len(argv)))
    for index in words:
        word, after = argv[index], argv[index + 1] if index + 1 < len(argv) else ""
        if word not in flags:
            plain.append(word)
        elif after.lower().endswith(flags[word]):
            plain.append(f"{word}={after}")
            next(words)
        else:
            plain.append(f"{word}={STDOUT}")
            if after == STDOUT:
                freed = True
                next(words)
    return plain, freed


def height_and_width(size: list[int] | None) -> tuple[int, int] | None:
    """What `--size` stands for: height and width, or one number for both. Raises ConfigurationError for more than two."""
    if size is None:
        return None
    if len(size) > 2:
        raise ConfigurationError(
            f"--size {' '.join(map(str, size))} has {len(size)} numbers; give height and width, or one for both."
        )
    return size[0], size[-1]


__all__ = ["STDOUT", "Annotated", "Argument", "Verb", "arguments_of", "height_and_width", "parser_of"]
