"""Run the demo's commands side by side, each when what it reads has been written, and go on after a kill."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from calibtune.files import write_json
from calibtune.parallel import cores, from_a_server
from calibtune.processes import Terminated
from calibtune.reading import read_json

#: What has been done, in the demo's folder; it also tells such a folder from others.
DONE = "done.json"
#: Imported once, by the process that the others are forked from.
PRELOAD = ["calibtune.demo.preload"]

Command = Sequence[str]


class Failed(Exception):
    """Report that a command ended with another exit code than 0."""

    def __init__(self, number: int, code: int) -> None:
        super().__init__(number, code)
        self.number, self.code = number, code


def output_of(command: Command) -> str | None:
    """Return the folder that a command writes."""
    return command[command.index("--output") + 1] if "--output" in command else None


def needs(commands: Sequence[Command]) -> list[set[int]]:
    """Return for each command the numbers of those whose folders it names.

    Example:
        >>> fit, both = ["fit", "--output", "a"], ["eval", "--artifact", "a", "--output", "b"]
        >>> needs([fit, both, ["report", "b", "--output", "c"]])
        [set(), {0}, {1}]
    """
    made = {output: number for number, command in enumerate(commands) if (output := output_of(command))}
    return [
        {made[word] for word in command if made.get(word, number) != number} for number, command in enumerate(commands)
    ]


def order(waits_for: Sequence[set[int]]) -> list[int]:
    """Return the commands' numbers, those first that the longest chain of others waits for.

    Example:
        >>> order([set(), set(), {1}])
        [1, 0, 2]
    """
    heights = [0] * len(waits_for)
    for number in reversed(range(len(waits_for))):
        for before in waits_for[number]:
            heights[before] = max(heights[before], heights[number] + 1)
    return sorted(range(len(waits_for)), key=lambda number: -heights[number])


class Journal:
    """Keep the list of the commands that are done in the demo's folder."""

    def __init__(self, output: Path) -> None:
        self.file = output / DONE
        self.commands: list[list[str]] = (
            read_json(self.file, list[list[str]], "begin anew with --overwrite") if self.file.is_file() else []
        )

    def done(self, command: Command) -> bool:
        """Return whether a command was done and its folder is still there."""
        folder = output_of(command)
        return list(command) in self.commands and (folder is None or Path(folder).is_dir())

    def add(self, *commands: Command) -> None:
        """Note commands that are done."""
        self.commands += [list(command) for command in commands]
        write_json(self.file, self.commands)


def resumed(command: Command) -> list[str]:
    """Return a command that was cut off as it goes on: a fit from its checkpoint, others from the beginning."""
    folder = Path(output_of(command) or "")
    if command[0] == "fit" and folder.is_dir():
        return [*command, "--resume"]
    if output_of(command) and folder.is_dir():
        shutil.rmtree(folder)
    return list(command)


def run_all(
    commands: Sequence[Command], journal: Journal, call: Callable[[list[str], int], None]
) -> Generator[list[str], None, None]:
    """Run the commands that the journal does not know, several at a time.

    Each runs in a process of its own with one thread, so that the numbers are those of one after the other.

    Args:
        commands: In an order in which they could run one by one.
        journal: What was done before; what is done is added.
        call: Runs a command, given its number, and exits with its code.

    Yields:
        Each command as it begins.

    Raises:
        Failed: A command failed; the others were ended.
    """
    context = from_a_server(PRELOAD)
    waits_for = needs(commands)
    done = {number for number, command in enumerate(commands) if journal.done(command)}
    waiting = [number for number in order(waits_for) if number not in done]
    running: dict[int, Any] = {}
    try:
        while waiting or running:
            ready = [number for number in waiting if waits_for[number] <= done]
            for number in ready[: max(cores() - len(running), 0)]:
                waiting.remove(number)
                command = resumed(commands[number])
                yield command
                process = context.Process(target=call, args=(command, number))
                # Ctrl-C can come while it waits for the server's imports: only what was started can be ended.
                process.start()
                running[number] = process
            wait([process.sentinel for process in running.values()])
            for number, process in list(running.items()):
                if process.exitcode is None:
                    continue
                del running[number]
                if process.exitcode in (130, 143):
                    raise KeyboardInterrupt if process.exitcode == 130 else Terminated
                if process.exitcode:
                    raise Failed(number, process.exitcode)
                done.add(number)
                journal.add(commands[number])
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()
