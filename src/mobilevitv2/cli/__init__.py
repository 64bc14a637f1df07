"""The command `mobilevitv2`: one verb a function, each in the file of its group. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import difflib
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from mobilevitv2.cli.arguments import Verb, arguments_of
from mobilevitv2.cli.benchmarking import benchmark
from mobilevitv2.cli.evaluating import evaluate
from mobilevitv2.cli.exporting import export
from mobilevitv2.cli.models import convert, info, models, version
from mobilevitv2.cli.output import note, say
from mobilevitv2.cli.predicting import predict
from mobilevitv2.cli.quiet import own_warnings_only
from mobilevitv2.cli.serving import serve
from mobilevitv2.cli.training import train
from mobilevitv2.errors import ConfigurationError, MobileViTV2Error

VERBS: dict[str, Verb] = {
    verb.__name__: verb for verb in (predict, models, info, convert, train, evaluate, export, benchmark, serve, version)
}

FAILED, BAD_USAGE, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 bad usage, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or os.environ.get("MOBILEVITV2_DEBUG", "") not in ("", "0")
    words = [word for word in words if word != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a label that the terminal has no letters for must not end the program
            stream.reconfigure(errors="backslashreplace")
    try:
        with own_warnings_only(debug=debug):
            code = _run(words)
        sys.stdout.flush()  # here, where a reader that went away is understood
    except SystemExit as leaving:  # argparse, after --help or bad usage
        return leaving.code if isinstance(leaving.code, int) else BAD_USAGE
    except BrokenPipeError:  # `mobilevitv2 models | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains at its end
        return 0
    except KeyboardInterrupt:
        note("interrupted")
        return INTERRUPTED
    except (MobileViTV2Error, OSError) as error:
        if debug:
            traceback.print_exc()
        note(f"error: {_told(error)}")
        return BAD_USAGE if isinstance(error, ConfigurationError) else FAILED
    except ModuleNotFoundError as error:
        if debug or (error.name or "mobilevitv2").partition(".")[0] == "mobilevitv2":
            raise
        note(f"error: {error.name} is not installed, and this needs it; install the package with its requirements: pip install .")
        return FAILED
    return code


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        say(overview())
        return 0 if words else BAD_USAGE
    if words[0] == "--version":
        return version()
    if words[0] not in VERBS:
        note(f"error: {_unknown(words[0])}")
        return BAD_USAGE
    verb = VERBS[words[0]]
    return verb(**arguments_of(verb, words[1:], prog=f"mobilevitv2 {words[0]}"))


def overview() -> str:
    """The text of `mobilevitv2 --help`."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items())
    return (
        "usage: mobilevitv2 VERB [ARGUMENTS]\n\nMobileViTV2 for pictures, from training to the answer.\n\n"
        f"{verbs}\n\n"
        "`mobilevitv2 VERB --help` says more about each; --debug, or MOBILEVITV2_DEBUG=1, shows where an error came from.\n\n"
        "  mobilevitv2 predict cat.jpg"
    )


def _unknown(word: str) -> str:
    near = difflib.get_close_matches(word, VERBS, n=1)
    if near:
        hint = f"did you mean `mobilevitv2 {near[0]}`?"
    elif Path(word).exists():
        hint = f"to say what is on it, `mobilevitv2 predict {word}`."
    else:
        hint = f"the verbs are {', '.join(VERBS)}."
    return f"there is no verb {word!r}; {hint}"


def _told(error: MobileViTV2Error | OSError) -> str:
    """An error's own message; of the system's, what could not be done with which file, and what helps."""
    if isinstance(error, MobileViTV2Error):
        return str(error)
    remedies = {
        errno.ENOSPC: "free some space, or write to another disk",
        errno.EDQUOT: "free some space, or write to another disk",
        errno.EACCES: "choose a place that you may write to",
        errno.EPERM: "choose a place that you may write to",
        errno.EROFS: "choose a place that can be written to",
        errno.ENOTDIR: "part of the path is a file, not a folder",
        errno.EEXIST: "a file is where a folder should be",
    }
    remedy = remedies.get(error.errno or 0)
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}" + (f"; {remedy}." if remedy else ".")


__all__ = ["VERBS", "main", "overview"]
