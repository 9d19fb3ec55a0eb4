"""Write syshax(1) and the shell completions from the command's own parsers. `make manuals` runs it."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass

from config_man import escaped

from syshaxd import cli

HEAD = r""".TH SYSHAX 1 "" "sysHAX" "User commands"
.SH NAME
syshax \- administer the sysHAX daemon
.SH SYNOPSIS
.B syshax
.I VERB
.RI [ arguments ]
.SH DESCRIPTION
.B syshax
reads and changes the configuration of
.BR syshaxd (8),
and asks and steers the running daemon through its control socket.
Keys may be written as in the files
.RB ( units.gpu.port ),
with
.B services
.RB ( services.gpu.port ),
or short
.RB ( gpu.port ,
.BR model ).
.SH VERBS
"""
TAIL = r""".SH EXIT STATUS
.TP
.B 0
done
.TP
.B 1
failed; the message says why
.TP
.B 2
bad arguments
.TP
.B 69
the daemon can't be reached
.TP
.B 78
the configuration is bad
.SH FILES
.TP
.I /etc/syshax/*.yaml
configuration, see
.BR syshax.yaml (5)
.TP
.I /run/syshax/control.sock
control socket of the service; members of the group
.I syshax
may use it
.SH ENVIRONMENT
.TP
.B SYSHAX_CONFIG
configuration folder or file instead of
.I /etc/syshax
.SH SEE ALSO
.BR syshaxd (8),
.BR syshax.yaml (5)
"""


@dataclass(frozen=True)
class Option:
    """One option of a verb."""

    flags: tuple[str, ...]
    metavar: str
    help: str


@dataclass(frozen=True)
class Page:
    """One verb as its parser describes it."""

    name: str
    summary: str
    text: str
    options: tuple[Option, ...]
    operands: tuple[str, ...]
    choices: tuple[str, ...]

    @property
    def flags(self) -> tuple[str, ...]:
        """All flags."""
        return tuple(flag for option in self.options for flag in option.flags)


def pages() -> list[Page]:
    """All verbs."""
    return [page(verb) for verb in cli.VERBS]


def page(verb: cli.Verb) -> Page:
    """One verb."""
    module = importlib.import_module(f"{cli.__name__}.{verb.module}")
    parser = argparse.ArgumentParser(f"syshax {verb.name}", add_help=False)
    module.add_arguments(parser)
    actions = parser._actions  # argparse has no public way to list them
    options = [item for item in actions if is_option(item)]
    operands = [item for item in actions if not is_option(item)]
    choices = tuple(str(choice) for item in operands for choice in item.choices or ())
    names = tuple(operand(item) for item in operands)
    return Page(verb.name, verb.help, (module.__doc__ or "").strip(), tuple(map(option, options)), names, choices)


def is_option(action: argparse.Action) -> bool:
    """Whether it is written with dashes."""
    return bool(action.option_strings)


def option(action: argparse.Action) -> Option:
    """An option as its parser has it; `metavar` is "" where it takes no value."""
    metavar = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    return Option(tuple(action.option_strings), metavar, action.help or "")


def operand(action: argparse.Action) -> str:
    """An operand as a synopsis shows it."""
    name = "|".join(map(str, action.choices)) if action.choices else str(action.metavar or action.dest.upper())
    return f"[{name}]" if action.nargs in ("?", "*") else name


def manual(verbs: list[Page]) -> str:
    """syshax(1)."""
    return HEAD + "".join(map(manual_verb, verbs)) + TAIL


def manual_verb(verb: Page) -> str:
    """One verb's section."""
    operands = " ".join(verb.operands)
    lines = [f".SS {escaped(' '.join(filter(None, (verb.name, operands))))}", escaped(verb.text)]
    for item in verb.options:
        flags = ", ".join(f"\\fB{escaped(flag)}\\fR" for flag in item.flags)
        value = f" \\fI{escaped(item.metavar)}\\fR" if item.metavar else ""
        lines += [".TP", flags + value, escaped(item.help)]
    return "\n".join(lines) + "\n"


BASH = """\
# bash completion of syshax(1). Written by `make manuals`.
_syshax() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words
    case $before in
        --config|--socket) COMPREPLY=($(compgen -f -- "$word")); return ;;
    esac
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{verbs}"
    elif [ "${{COMP_WORDS[1]}}" = units ] && [ "$COMP_CWORD" -eq 3 ]; then
        words=$(syshax interfaces --json 2>/dev/null | sed -n 's/.*"unit": "\\([^"]*\\)".*/\\1/p')
    else
        case ${{COMP_WORDS[1]}} in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -F _syshax syshax
"""


def bash(verbs: list[Page]) -> str:
    """Completion for bash."""
    words = [" ".join((*verb.choices, *verb.flags, "--help")) for verb in verbs]
    cases = [f'            {verb.name}) words="{known}" ;;' for verb, known in zip(verbs, words)]
    return BASH.format(verbs=" ".join(verb.name for verb in verbs), cases="\n".join(cases))


def quoted(text: str) -> str:
    """A shell word in single quotes."""
    return "'" + text.replace("'", "'\\''") + "'"


def zsh(verbs: list[Page]) -> str:
    """Completion for zsh."""
    lines = ["#compdef syshax", "# Written by `make manuals`.", "local -a verbs", "verbs=("]
    lines += [f"    {quoted(f'{verb.name}:{verb.summary}')}" for verb in verbs]
    lines += [")", "if (( CURRENT == 2 )); then", "    _describe verb verbs", "    return", "fi", "case $words[2] in"]
    for verb in verbs:
        lines += [f"    {verb.name})", "        _arguments \\"]
        flags = [(item, flag) for item in verb.options for flag in item.flags]
        lines += [f"            {quoted(zsh_option(item, flag))} \\" for item, flag in flags]
        lines += [f"            {quoted('2:action:(' + ' '.join(verb.choices) + ')')} \\"] if verb.choices else []
        lines += ["            '--help[show help]'", "        ;;"]
    return "\n".join([*lines, "esac", ""])


def zsh_option(item: Option, flag: str) -> str:
    """One flag as _arguments takes it."""
    text = item.help.replace("[", "(").replace("]", ")").replace(":", ",")
    files = ":_files" if item.metavar == "PATH" else ":"
    return f"{flag}[{text}]" + (f":{item.metavar}{files}" if item.metavar else "")


def fish(verbs: list[Page]) -> str:
    """Completion for fish."""
    lines = ["# fish completion of syshax(1). Written by `make manuals`.", "complete -c syshax -f"]
    for verb in verbs:
        lines.append(f"complete -c syshax -n __fish_use_subcommand -a {verb.name} -d {quoted(verb.summary)}")
        condition = quoted(f"__fish_seen_subcommand_from {verb.name}")
        if verb.choices:
            lines.append(f"complete -c syshax -n {condition} -a {quoted(' '.join(verb.choices))}")
        lines += [f"complete -c syshax -n {condition} {fish_option(item)}" for item in verb.options]
    return "\n".join(lines) + "\n"


def fish_option(item: Option) -> str:
    """One option as `complete` takes it."""
    flags = [f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in item.flags]
    value = ["-r" + (" -F" if item.metavar == "PATH" else "")] if item.metavar else []
    return " ".join([*flags, *value, f"-d {quoted(item.help)}"])


def files() -> dict[str, str]:
    """All that is written, by path inside packaging/rpm."""
    verbs = pages()
    return {
        "man/syshax.1": manual(verbs),
        "completion/syshax.bash": bash(verbs),
        "completion/_syshax": zsh(verbs),
        "completion/syshax.fish": fish(verbs),
    }
