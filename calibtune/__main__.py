"""``python -m calibtune``: finds the command, runs it, turns errors into one sentence and an exit code."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import difflib
import errno
import gc
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import NoReturn

from calibtune import __version__
from calibtune.errors import UserError
from calibtune.processes import GARBAGE, Terminated, ending_on_sigterm, is_first_process
from calibtune.text import Visible, one_sentence, visible

#: Command name -> one line of help. The module is ``calibtune.commands.<name>``; only the one asked for is imported,
#: so that ``--help`` and ``rescore`` never load torch.
COMMANDS = {
    "eval": "evaluate a base model or an artifact through lm_eval",
    "merge": "put an adapter into its base model's weights",
    "bake": "put a temperature into a model's weights",
    "fit": "mend calibration: temperature, label smoothing, CFT or RCFT",
    "mend": "measure, fit, choose and report in one go",
    "demo": "the whole story on a small world whose truth is known: no download, no GPU",
    "doctor": "check the installation, a model's letters and a task",
    "regime": "accuracy against calibration: frontier, bounds, preference collapse",
    "push": "put an artifact onto the Hugging Face hub, with its card",
    "report": "one page, figures and tables from lm_eval's result and sample files",
    "leaderboard": "rank many models on many tasks, with intervals of the ranks",
    "reproduce": "the paper's tables for a model, as a plan of ordinary commands",
    "rescore": "recompute every calibration number from lm_eval's samples files, without a model",
    "winrate": "win rates by a judge: AlpacaEval, Arena-Hard",
}

#: In remarks of lm_eval about tasks like ours and of transformers about layers by other names.
REMARKS = ("Custom kwargs can be passed to `--metadata`", "match nothing in")

EXAMPLES = """\
examples:
  lm_eval --model hf --model_args pretrained=M --tasks mc_calib_arc --log_samples --output_path out
  python -m calibtune rescore out
"""


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """Build the parser, importing only the module of ``command``.

    Args:
        command: The command that will run, or None to list all of them.

    Returns:
        The parser; its namespace holds ``command`` and ``run``.
    """
    parser = argparse.ArgumentParser(
        prog="python -m calibtune",
        description="Measure and mend the calibration of aligned language models.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"calibtune {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        if name != command:
            commands.add_parser(name, help=text)
            continue
        module = importlib.import_module(f"calibtune.commands.{name}")
        sub = commands.add_parser(
            name, help=text, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run, parser=sub, go_on=getattr(module, "go_on", None))
    return parser


class Console(logging.Handler):
    """Print what the libraries below the commands log, above a progress bar rather than into it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message: information to stdout, warnings to stderr."""
        from tqdm import tqdm

        if record.levelno >= logging.WARNING:
            tqdm.write(f"warning: {one_sentence(record.getMessage())}", file=sys.stderr)
        else:
            tqdm.write(record.getMessage(), file=sys.stdout)
        sys.stdout.flush()


@contextlib.contextmanager
def printed_logs() -> Iterator[None]:
    """Print what calibtune and harness_ext log, while a command runs."""
    console = Console()
    loggers = [logging.getLogger(name) for name in ("calibtune", "harness_ext")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        # Of several processes the first one speaks; warnings can be about any.
        logger.setLevel(logging.INFO if is_first_process() else logging.WARNING)
        logger.addHandler(console)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
            logger.removeHandler(console)


def quieten() -> None:
    """Leave out what other libraries say at every command and no user of these commands can act on."""
    # A faster 4-bit kernel for CPUs, fetched from the hub.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # Which of Liger's kernels for other makers' chips cannot be loaded.
    logging.getLogger("liger_kernel.backends.registry").setLevel(logging.ERROR)
    # That any task which loads its own data can be given arguments.
    logging.getLogger("lm_eval.api.task").addFilter(_is_no_remark)
    # Which names of other models its plan to split a model has.
    logging.getLogger("transformers.distributed.mixin").addFilter(_is_no_remark)
    # PEFT asks transformers by an attribute's old name.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def _is_no_remark(record: logging.LogRecord) -> bool:
    return not any(remark in record.getMessage() for remark in REMARKS)


def _unknown(parser: argparse.ArgumentParser, words: list[str]) -> str:
    """Return the complaint about words that a command does not know, with the flag that was likely meant."""
    flags = [flag for action in parser._actions for flag in action.option_strings]
    close = difflib.get_close_matches(words[0].partition("=")[0], flags, 1)
    return f"unrecognized arguments: {' '.join(words)}" + (f"; did you mean {close[0]}?" if close else "")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    0, 1 (the work failed), 2 (misuse), 130 (Ctrl-C), 143 (SIGTERM). With ``--json`` nothing but what the command writes
    to ``args.stdout`` goes to stdout.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names can have signs that a terminal's encoding has not
    try:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        return _stopped(error)


def _run(argv: list[str]) -> int:
    gc.set_threshold(max(GARBAGE, gc.get_threshold()[0]))
    # Read when torch and numpy are loaded. Their threads wait for each other after every operation; awake, they take
    # the core from those that they wait for wherever another program runs too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    quieten()
    command = next((word for word in argv if not word.startswith("-")), None)
    parser = build_parser(command)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(one_sentence(_unknown(args.parser, unknown)))
    args.stdout = Visible(sys.stdout)
    printed = Visible(sys.stderr) if getattr(args, "json", False) else args.stdout
    try:
        with contextlib.redirect_stdout(printed), printed_logs(), ending_on_sigterm():
            return int(args.run(args))
    except UserError as error:
        print(f"calibtune: error: {one_sentence(str(error))}", file=sys.stderr)
        return error.exit_code
    except MemoryError:
        print("calibtune: error: there is not enough memory for this; give less at a time", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, Terminated)
        if is_first_process():
            how = f"; {args.go_on(args)}" if args.go_on else ""
            print(f"calibtune: {'terminated' if terminated else 'interrupted'}{how}", file=sys.stderr)
        return 143 if terminated else 130


def _stopped(error: OSError) -> int:
    """Say which file or disk ended the command; nothing where the reader of stdout, such as head, has enough."""
    # Files that a command writes have names in their errors; printing alone has none.
    printing = error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF)
    if printing or isinstance(error, BrokenPipeError):
        # Else Python would try once more to write the rest, and complain.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    what = "standard output" if printing else visible(str(error.filename or "the command")[:200])
    if not isinstance(error, BrokenPipeError):
        print(f"calibtune: error: {what} cannot be written or read: {error.strerror or error}", file=sys.stderr)
    return 1


def command() -> NoReturn:
    """Run :func:`main` as a process, and end it at once.

    After torch and transformers, Python takes one to four seconds to search what was imported for garbage and to free
    it, which the system does anyway.
    """
    code: str | int | None = 1

    # Registered first, so it runs after what libraries do at the end.
    @atexit.register
    def end() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # full, closed, or none
                stream.flush()
        os._exit(code if isinstance(code, int) else 1)

    try:
        code = main()
    except SystemExit as asked:
        code = asked.code or 0
    except KeyboardInterrupt:
        print("calibtune: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    command()
