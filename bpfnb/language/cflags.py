"""The flags for clang that a cell may have.

clang runs with the tracer's rights, and many of its flags do more than say how to compile: they load code into it
(-fplugin=, -Xclang -load), write files (-o, -MF, -save-temps), or read further flags from files (@file, --config). So
the allowed flags are listed here, and all others are rejected, by the notebook and by the tracer.

    check(flags)    ProgramError that names the first flag that is not allowed
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from bpfnb.errors import ProgramError

__all__ = ["check"]

_ALLOWED = "-D -U -I -include -imacros -iquote -isystem -idirafter -nostdinc -W... -w -O... -g -std= -m(no-)alu32 -f..."

# Flags that take a value, in the same word or the next: clang's option table calls them JoinedOrSeparate. What begins
# like one of the long ones may be another flag (-include-pch), so what they join begins as a path does.
_SHORT = ("-D", "-U", "-I")
_LONG = ("-include", "-imacros", "-iquote", "-isystem", "-idirafter")
_JOINED = re.compile(rf"(?:{'|'.join(_LONG)})[/.~\w].*", re.S)

_FEATURES = """
    blocks common builtin builtin-[a-z0-9_]+ freestanding hosted gnu-keywords gnu89-inline ms-extensions
    microsoft-extensions dollars-in-identifiers strict-aliasing strict-enums strict-overflow strict-return wrapv trapv
    strict-flex-arrays=[0-3] signed-char unsigned-char short-enums pack-struct pack-struct=[0-9]+ unroll-loops vectorize
    slp-vectorize tree-vectorize tree-slp-vectorize inline inline-functions inline-hint-functions optimize-sibling-calls
    omit-frame-pointer merge-all-constants merge-constants jump-tables stack-protector stack-protector-all
    stack-protector-strong delete-null-pointer-checks zero-initialized-in-bss data-sections function-sections
    unique-section-names math-errno unwind-tables asynchronous-unwind-tables exceptions ident keep-static-consts
    rounding-math lax-vector-conversions char8_t declspec digraphs asm asm-blocks PIC pic PIE pie verbose-asm
    cf-protection cf-protection=[a-z]+ debug-types-section standalone-debug eliminate-unused-debug-types
    visibility=[a-z]+ trivial-auto-var-init=[a-z]+
    show-column show-source-location caret-diagnostics diagnostics-fixit-info diagnostics-show-option
    diagnostics-show-note-include-stack color-diagnostics spell-checking elide-type
    (?:bracket-depth|constexpr-depth|constexpr-steps|error-limit|macro-backtrace-limit|message-length)=[0-9]+
    (?:spell-checking-limit|caret-diagnostics-max-lines|template-depth|template-backtrace-limit)=[0-9]+
"""
_PLAIN = re.compile(
    "|".join(
        (
            r"-W(?:[A-Za-z][\w+-]*(?:=[\w.+-]+)?)?",  # no comma: -Wa, -Wl and -Wp hand flags to others
            r"-w|-pedantic|-pedantic-errors|-ansi|-Qunused-arguments|-pipe|-undef|-nostdinc|-trigraphs",
            r"-O(?:[0-4sgz]|fast)?",
            r"-g(?:[0-3]|dwarf(?:-[2-5])?|line-tables-only|no-[a-z-]+)?",
            r"-std=[\w:+]+",
            r"-m(?:no-)?alu32",
            r"-mcpu=(?:v[1-4]|generic|probe)",
            rf"-f(?:no-)?(?:{'|'.join(_FEATURES.split())})",
        )
    )
)


def check(flags: Sequence[str]) -> None:
    """Raise ProgramError for a flag that is not on the list.

    Words are read as clang reads them: the value of a flag is no flag, whatever it looks like.
    """
    words = iter(flags)
    for word in words:
        if "\0" in word:  # clang sees only what is before it
            raise ProgramError(f"a flag for clang has a NUL in it: {word!r}")
        if word in (*_SHORT, *_LONG):
            _value_of(word, words)
        elif not _is_allowed(word):
            raise _refused(word)


def _value_of(flag: str, words: Iterator[str]) -> None:
    value = next(words, None)
    if value is None:
        raise ProgramError(f"{flag} for clang lacks its value")
    if "\0" in value:
        raise ProgramError(f"a flag for clang has a NUL in it: {value!r}")


def _is_allowed(word: str) -> bool:
    if word == "-I-":  # another option of clang's
        return False
    return word[:2] in _SHORT or bool(_JOINED.fullmatch(word) or _PLAIN.fullmatch(word))


def _refused(word: str) -> ProgramError:
    if not word.startswith("-") or word == "-":
        why = "reads flags from a file" if word.startswith("@") else "names a file to compile"
        return ProgramError(f"{word!r} among the flags for clang {why}: only the cell is compiled")
    return ProgramError(
        f"the flag {word} is not passed on to clang, which runs with the tracer's rights",
        hint=f"these are: {_ALLOWED}; docs/reference.md has them all",
    )
