"""%%bpf runs a cell of C in the kernel; %bpf lists, stops and shows what runs."""

from __future__ import annotations

import argparse
import builtins
import inspect
import re
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import ModuleType
from typing import NamedTuple

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand
from IPython.core.magic_arguments import ArgDecorator, MagicArgumentParser, argument, magic_arguments
from IPython.display import display
from msgspec.structs import replace

from bpfnb import views
from bpfnb.errors import BpfnbError, Diagnostic, ProgramError, did_you_mean, near_or_all, printable
from bpfnb.hosts import Host, check_name, default_host, host_of, hosts
from bpfnb.interrupts import start_new_thread, undoing
from bpfnb.language.probes import split_attach
from bpfnb.language.program import Program, parse
from bpfnb.options import add_options, options_of, seconds_of
from bpfnb.session import Session
from bpfnb.tools.command import parser_of, values_of
from bpfnb.tools.toolbox import find, names
from bpfnb.views import html, probes
from bpfnb.views.progress import open_line

from . import questions
from .options import insert, parse_define, split

__all__ = ["COMMANDS", "BpfMagics", "Command", "help_alone", "option_helps", "option_names"]

_HELP = ("--help", "-h", "help")
_MAX_PROBES = 60
_PERIOD = 0.25  # seconds between two changes of a terminal's line


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, of which a line says all."""

    def _render_traceback_(self) -> list[str]:
        return [f"KeyboardInterrupt: {self}"]


class _SessionOptions(ArgDecorator):
    """Adds the options of every session to a magic; its name is the first word."""

    def add_to_parser(self, parser: MagicArgumentParser, group: None) -> None:
        add_options(parser, name=False, live=True)


@magics_class
class BpfMagics(Magics):
    """%%bpf and %bpf."""

    shell: InteractiveShell

    @magic_arguments()
    @argument(
        "name",
        nargs="?",
        help="the session's name, bound in the notebook; run again, it replaces the old one. "
        "Without one, sessions are called bpf1, bpf2, ..., and the same cell run again replaces its own",
    )
    @argument(
        "-a",
        "--attach",
        action="append",
        default=[],
        metavar="PROBE=FN",
        help="attach function FN to PROBE, such as syscall:clone=hello, kprobe:vfs_read=f, "
        "tracepoint:sched:sched_process_fork=f, uprobe:/bin/bash:readline=f, usdt:PATH:PROVIDER:NAME=f, "
        "profile:99=f; may be given again. Functions with bcc's names (kprobe__sys_clone, TRACEPOINT_PROBE, ...) "
        "attach by themselves",
    )
    @argument(
        "-D",
        "--define",
        action="append",
        default=[],
        metavar="X=Y",
        help="define a macro; may be given again. {x} and $x anywhere on this line are Python's x",
    )
    @argument("--cflags", metavar="FLAGS", default="", help="further flags for clang, as one quoted word")
    @argument(
        "--headers",
        metavar="auto|btf|PATH",
        default="auto",
        help="what to compile against: this kernel's own headers where exactly they are installed, else what is made "
        "from its type information (auto); always the latter (btf); or a folder of kernel headers",
    )
    @_SessionOptions()
    @argument("--help", "-h", action="store_true", help="show this, and run nothing")
    @argument("--dry-run", action="store_true", help="parse only: say what would be attached, and attach nothing")
    @no_var_expand
    @line_cell_magic
    def bpf(self, line: str, cell: str | None = None) -> Session | None:
        """Compile a cell of C, attach it to the kernel, and collect what it prints.

        As a line, manage what runs:

            %bpf list              the running sessions, and those the kernel is still detaching
            %bpf stop NAME         stop one;  %bpf stop --all  stops all
            %bpf show NAME         a session's card
            %bpf probes PATTERN    the kernel's probes, such as *clone*, or a file's, such as usdt:/usr/bin/python3:*
            %bpf count PROBE       count events, without C; also stats, hist, latency, rows, stacks: each has --help
            %bpf run TOOL          start a ready-made tool; %bpf run lists them, %bpf run TOOL --help has its options
            %bpf doctor            is this machine ready?
            %bpf host list         the machines that are traced; %bpf host stop NAME  leaves one

        With --host HOST (a destination of ssh) cells, questions, tools, probes and doctor are about another machine.
            %bpf help              this text
        """
        if cell is None:
            return self._command(line)
        return self._run(line, cell)

    # --- %%bpf ---

    def _run(self, line: str, cell: str) -> Session | None:
        args = _parsed(type(self).bpf.parser, self._words(line))
        if args.help:
            _print_help()
            return None
        if args.name is not None:
            self._check_name(args.name)
        options = options_of(args)
        flags = [*split(args.cflags), *map(parse_define, args.define)]
        # Lines count as the editor counts them: %%bpf is the first.
        program = parse("\n" + cell, [split_attach(text) for text in args.attach], flags, args.headers)
        if args.dry_run:
            print(printable(_plan(program), keep="\n"))
            _print_warnings(program.warnings)
            return None
        return self._show_run(lambda: host_of(args.host).run(program, **options), args)

    def _run_tool(self, words: list[str]) -> Session | None:
        """%bpf run NAME: start a tool; without a name list them."""
        if not words or words[0] in _HELP:
            _show(repr(default_host.tools), default_host.tools._repr_html_())
            return None
        if words[0] not in names():
            raise UsageError(f"%bpf run: there is no tool {words[0]!r}{near_or_all(words[0], names())}")
        tool = find(words[0])
        parser = parser_of(tool, f"%bpf run {tool.name}", live=True)
        if any(word in _HELP[:2] for word in words):
            print(parser.format_help())
            return None
        args = parser.parse(words[1:])
        if args.name is not None:
            self._check_name(args.name)
        values = values_of(tool, args)
        return self._show_run(lambda: tool.start(host_of(args.host), **values), args)

    def _run_question(self, words: list[str], verb: questions.Verb) -> Session | None:
        """%bpf count PROBE and the other questions: start a session that answers it."""
        parser = questions.parser_of(verb)
        if not words or any(word in _HELP[:2] for word in words):
            print(parser.format_help())
            return None
        args = parser.parse(words)
        if args.name is not None:
            self._check_name(args.name)
        return self._show_run(questions.call_of(host_of(args.host), verb, args), args)

    def _show_run(self, start: Callable[[], Session], args: argparse.Namespace) -> Session | None:
        """Start a session, bind its name, show it, and wait for it, as its options say."""
        seconds = seconds_of(args)
        try:
            session = start()
        except BpfnbError as error:
            if panel := html.error_panel(error):  # an error itself can show no HTML
                display({"text/html": panel}, raw=True)
            raise
        except KeyboardInterrupt:
            raise Interrupted("interrupted before it ran: nothing is left attached") from None
        try:
            if args.name is not None:
                self.shell.user_ns[args.name] = session
            _print_warnings(session.warnings)
            waits = seconds is not None or args.command is not None
            carded = (args.live or waits) and views.show_card(session, seconds, result=True, live=args.live)
            if args.live and not carded:
                display(session.live())
            if waits:
                _trace_for(session, seconds, quiet=carded)
        except:
            # Ctrl-C before it had begun to wait: nobody would stop it
            if seconds is not None or args.command is not None:
                start_new_thread(undoing, (session.stop,))
            raise
        return session

    # --- both ---

    def _words(self, line: str) -> list[str]:
        """Return the line's words, with the notebook's values in them: each stays one word, whatever a value holds."""
        return [insert(word, self.shell.user_ns) for word in split(line)]

    def _check_name(self, name: str) -> None:
        """Raise ProgramError for a name that the notebook has for something other than a session."""
        check_name(name)
        values = self.shell.user_ns
        if isinstance(values.get(name), ModuleType):
            what = f"the module {values[name].__name__}"
        elif name in values and values[name] is self.shell.user_ns_hidden.get(name):
            what = "IPython's own"
        elif hasattr(builtins, name):
            what = "Python's own"
        else:
            return
        message = f"a session called {name!r} would take the name from the notebook, where it is {what}"
        raise ProgramError(message, hint=f"write %%bpf {name}_, or another name")

    # --- %bpf ---

    def _command(self, line: str) -> Session | None:
        words = self._words(line)
        name, rest = (words[0], words[1:]) if words else ("list", [])
        if name == "run":
            return self._run_tool(rest)
        if verb := next((verb for verb in questions.VERBS if verb == name), None):
            return self._run_question(rest, verb)
        command = COMMANDS.get(name)
        asks = any(word in _HELP[:2] for word in rest)
        if command and command.usage and asks:
            print(f"usage: %bpf {name} {command.usage}")
            return None
        if name in _HELP or asks:
            _print_help()
            return None
        if not command:
            near = did_you_mean(name.lstrip("-"), list(COMMANDS))
            raise UsageError(
                f"%bpf {name}: no such command{near and f'; {near}'} "
                f"(there are {', '.join(COMMANDS)}; a cell of C starts with %%bpf)"
            )
        if command.host:
            rest, where = _host_option(name, rest)
        if command.takes is not None and len(rest) != (1 if command.takes else 0):
            raise UsageError(f"%bpf {name} takes {command.takes or 'nothing'}, not {' '.join(rest) or 'nothing'}")
        return command.run(*rest, **({"host": where} if command.host else {}))


# IPython opens the text with the mark of a literal block, and takes %bpf for the name of both magics.
BpfMagics.bpf.__doc__ = (BpfMagics.bpf.__doc__ or "").replace("::\n\n  %bpf [", "  %%bpf [", 1)


def _parsed(parser: MagicArgumentParser, words: list[str]) -> argparse.Namespace:
    # argparse takes a value that starts with "-D" for the option -D, quoted or not: join it to its option.
    for at in [i for i, word in enumerate(words[:-1]) if word == "--cflags"]:
        words[at : at + 2] = [f"--cflags={words[at + 1]}"]
    # The parameters of a C++ function have spaces between them: -a uprobe:./shop:Order::total(int, int)=f
    for at in [i for i, word in enumerate(words) if word in ("-a", "--attach")][::-1]:
        while len(words) > at + 2 and words[at + 1].count("(") > words[at + 1].count(")"):
            words[at + 1 : at + 3] = [f"{words[at + 1]} {words[at + 2]}"]
    options = option_names()
    for word in words:
        if f"-{word}" in options:  # argparse would take -time for -t ime
            raise UsageError(f"%%bpf: there is no option {word}; did you mean -{word}?")
    try:
        return parser.parse_args(words)
    except UsageError as error:
        message = str(error)
    unknown = re.match(r"unrecognized arguments: (-[\w-]+)", message)
    near = did_you_mean(unknown[1], options) if unknown else ""
    raise UsageError(f"%%bpf: {message}{near and f'; {near}'}  (%%bpf? lists the options)")


def _plan(program: Program) -> str:
    at = program.line_map.describe
    lines = [f"{p.requested} -> {p.function}() at {at(p.line)}" for p in program.probes]
    lines += ["prints with bpf_trace_printk"] if program.prints else []
    lines += [f"output {o.name} ({o.kind}) at {at(o.line)}" for o in program.outputs]
    lines += [f"map {m.name} ({m.macro}) at {at(m.line)}" for m in program.maps]
    return "\n".join(lines)


def _print_warnings(warnings: Iterable[Diagnostic]) -> None:
    for warning in warnings:
        if warning.severity == "warning":
            place = f", line {warning.line}" if warning.line else ""
            print(printable(f"warning{place}: {warning.message}"))


def _trace_for(session: Session, seconds: float | None, quiet: bool) -> None:
    """Let a session run for so long, or until its command ends, then stop it. Ctrl-C stops it earlier without an error.

    A terminal shows a line meanwhile, a notebook has the card (``quiet``).
    """
    begun = time.monotonic()
    line = None if quiet else open_line()
    try:
        while not session.wait(_rest(begun, seconds)):
            passed = time.monotonic() - begun
            if seconds is not None and passed >= seconds:
                break
            if line:
                line.write(_passed(session, passed, seconds))
    except KeyboardInterrupt:
        if line:
            line.erase()
        if seconds is None:
            print(f"interrupted: {session.name} is stopped, and its command ended")
        else:
            print(f"interrupted after {time.monotonic() - begun:.1f} s: {session.name} is stopped")
    finally:
        if line:
            line.erase()
        session.stop()


def _rest(begun: float, seconds: float | None) -> float:
    """Return how long to wait now: to the next change of the line, or the end."""
    return _PERIOD if seconds is None else min(max(begun + seconds - time.monotonic(), 0.0), _PERIOD)


def _passed(session: Session, passed: float, seconds: float | None) -> str:
    """Say how far a session is: "clones: 3 of 10 s, 1,234 rows"."""
    snapshot = session.snapshot()
    whole = f" of {seconds:g}" if seconds is not None else ""
    lost = f", {snapshot.lost:,} lost" if snapshot.lost else ""
    rows = f", {html.count(snapshot.rows, 'row')}{lost}" if snapshot.outputs or not snapshot.maps else ""
    return f"{session.name}: {int(passed)}{whole} s{rows}"


def help_alone(lines: list[str]) -> list[str]:
    """Turn ``%%bpf --help`` without a body, which IPython refuses as an empty cell, into ``%bpf --help``."""
    text = "".join(lines).strip()
    return ["%bpf --help\n"] if re.fullmatch(rf"%%bpf\s+({'|'.join(_HELP)})", text) else lines


def option_names() -> list[str]:
    """Return the long names of %%bpf's options, in alphabetical order."""
    parser: MagicArgumentParser = BpfMagics.bpf.parser
    return sorted(option for option in parser._option_string_actions if option.startswith("--"))


def option_helps() -> dict[str, tuple[str, str]]:
    """Return how each option of %%bpf is written, and its help, by its names."""
    found = {}
    for name, action in BpfMagics.bpf.parser._option_string_actions.items():
        value = f" {action.metavar}" if action.metavar else ""
        found[name] = f"{', '.join(action.option_strings)}{value}", (action.help or "").replace("%%", "%")
    return found


# --- the commands of %bpf -----------------------------------------------------------------------------------------


def _host_option(command: str, words: list[str]) -> tuple[list[str], str | None]:
    """Take --host HOST out of a command's words."""
    rest, where, at = [], None, 0
    while at < len(words):
        option, equals, value = words[at].partition("=")
        if option != "--host":
            rest.append(words[at])
        elif equals or at + 1 < len(words):
            where = value if equals else words[at := at + 1]
        else:
            raise UsageError(f"%bpf {command}: --host takes a destination of ssh, or the name given to Host.ssh")
        at += 1
    return rest, where


def _list() -> None:
    snapshots = [session.snapshot() for host in hosts() for session in host.sessions().values()]
    snapshots += [replace(s.snapshot(), state="detaching") for host in hosts() for s in host.detaching()]
    _show(html.sessions_text(snapshots), html.sessions_table(snapshots))


def _stop(*rest: str, host: str | None = None) -> None:
    if rest == ("--all",):
        for one in _asked(host):
            one.stop_all()
        return
    running = _running(host)
    if not rest and len(running) > 1:
        raise UsageError(f"%bpf stop: which one? Running: {_named(running)}; or --all")
    if len(rest) > 1 or (rest and rest[0].startswith("-")):
        raise UsageError("%bpf stop takes one name, or --all")
    if not rest and not running:
        print("no session is running")
    for session in [_find(rest[0], host)] if rest else running:
        session.stop()
        print(repr(session).splitlines()[0])


def _doctor(host: str | None = None) -> None:
    report = host_of(host).doctor()
    _show(repr(report), report._repr_html_())


def _probes(pattern: str, host: str | None = None) -> None:
    found = host_of(host).connect().list_probes(pattern, _MAX_PROBES)
    _show(probes.probes_text(found, pattern), probes.probes_table(found, pattern))


def _asked(host: str | None) -> list[Host]:
    """Return the hosts that a command is about: all, or the one that --host names, where it is known."""
    if host is None:
        return hosts()
    return [_known(host)]


def _known(name: str) -> Host:
    found = {host.name: host for host in hosts()[1:]}
    if name not in found:
        raise UsageError(f"no host called {name!r} is traced{near_or_all(name, found)}")
    return found[name]


def _running(host: str | None) -> list[Session]:
    return [session for one in _asked(host) for session in one.sessions().values()]


def _named(sessions: Sequence[Session]) -> str:
    return printable(", ".join(f"{s.name} on {s.host}" if s.host else s.name for s in sessions))


def _find(name: str, host: str | None = None) -> Session:
    running = _running(host)
    found = [session for session in running if session.name == name]
    if not found:
        known = f"; running: {_named(running)}" if running else "; none is running"
        raise UsageError(f"no session called {name!r} is running{known}")
    if len(found) > 1:
        here = next((session for session in found if not session.host), None)
        if not here:
            raise UsageError(f"several sessions are called {name!r}: {_named(found)}; add --host HOST")
        return here
    return found[0]


def _host(*words: str) -> None:
    """%bpf host list, %bpf host stop NAME."""
    if words in ((), ("list",)):
        rows = [_host_row(host) for host in hosts()]
        _show(html.hosts_text(rows), html.hosts_table(rows))
    elif len(words) == 2 and words[0] == "stop":
        host = _known(words[1])
        host.stop_all()
        host.close()
        print(printable(f"{host.name} is left: nothing of it runs there any longer"))
    else:
        raise UsageError(f"%bpf host takes list, or stop NAME, not {' '.join(words)}")


def _host_row(host: Host) -> tuple[str, ...]:
    """Return name, destination, state, kernel, bcc, sessions, for html.hosts_table."""
    kernel = bcc = ""
    if tracer := host.tracer():
        try:
            hello = tracer.hello()
            kernel, bcc = hello.kernel, hello.bcc
        except BpfnbError:
            pass  # it did not come up: the state says so
    destination = f"ssh {host.destination}" if host.destination else "this machine"
    return host.name or "-", destination, host.state, kernel, bcc, str(len(host.sessions()))


def _show(text: str, markup: str) -> None:
    display({"text/plain": text, "text/html": markup}, raw=True)


def _print_help() -> None:
    print(inspect.cleandoc(BpfMagics.bpf.__doc__ or ""))


class Command(NamedTuple):
    """A command of %bpf. ``takes``: what its one word is; "" for no word; None where ``run`` checks the words.
    ``usage``: what --help says; "" where ``run`` has its own. ``host``: whether it takes --host."""

    run: Callable[..., Session | None]
    takes: str | None = ""
    usage: str = ""
    host: bool = False


_LIST = "\n\nList the running sessions of all hosts, and those that the kernel is still detaching."
_STOP = """[NAME | --all] [--host HOST]

Stop a session, by its name, or all of them, on all hosts or on one. Without a name: the only one that runs."""
_HOST = """[list | stop NAME]

List the machines that are traced: this one, and those that --host or Host.ssh named. stop: stop all sessions there, and
end the tracer and the connection."""
_DOCTOR = """[--host HOST]

Try what this kernel, its tools and our rights allow, and say what is lacking and how to get it."""

_PROBES = """PATTERN [--host HOST]

List the kernel's probes whose names contain PATTERN, or match it where it has wildcards:

    %bpf probes clone                          *clone* of every kind
    %bpf probes tracepoint:sched:*             of one kind
    %bpf probes usdt:/usr/bin/python3:*        of a program or library; also uprobe: and uretprobe:"""
_SHOW = "NAME [--host HOST]\n\nShow a running session's card here as well."

COMMANDS: dict[str, Command] = {
    "list": Command(_list, usage=_LIST),
    "stop": Command(_stop, None, _STOP, host=True),
    "doctor": Command(_doctor, usage=_DOCTOR, host=True),
    "probes": Command(_probes, "one pattern", _PROBES, host=True),
    "show": Command(_find, "one name", _SHOW, host=True),
    "host": Command(_host, None, _HOST),
    "run": Command(BpfMagics._run_tool, None),
    **{verb: Command(partial(BpfMagics._run_question, verb=verb), None) for verb in questions.VERBS},
    "help": Command(_print_help),
}
