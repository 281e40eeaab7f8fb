#!/usr/bin/env python3
"""Finds co_await statements that g++ 12.2 miscompiles: it destroys some temporaries twice.

Two shapes are affected, in the same full expression as a co_await: a brace-initialised argument,
and a capturing lambda. A heuristic on statements, without a parser.
usage: coroutines.py ROOT
"""
import re
import sys

from source import read, source_files, strip

BRACES = re.compile(r"[(,]\s*(?:[A-Za-z_][\w:]*(?:<[^;{}]*>)?)?\s*\{")
CAPTURE = re.compile(r"\[\s*[^\]\s][^\]]*\]\s*(?:\(|->|mutable|\{)")


def begin_of_statement(text, at):
    """Where the statement around `at` begins: behind a ';' or the brace of a block."""
    depth = 0
    for i in range(at - 1, -1, -1):
        if text[i] == "}":
            # `Type{...}, co_await` closes an expression; `} co_await` closes a block.
            if depth == 0 and text[i + 1:].lstrip()[:1] not in tuple(",)].;:?"):
                return i + 1
            depth += 1
        elif text[i] == "{":
            if depth == 0:
                return i + 1
            depth -= 1
        elif text[i] == ";" and depth == 0:
            return i + 1
    return 0


def end_of_statement(text, at):
    depth = 0
    for i in range(at, len(text)):
        if text[i] in "([{":
            depth += 1
        elif text[i] in ")]}":
            depth -= 1
            if depth < 0:
                return i
        elif text[i] == ";" and depth == 0:
            return i
    return len(text)


def problems(root):
    for path in source_files(root):
        text = strip(read(root, path))
        seen = set()
        for match in re.finditer(r"\bco_await\b|\bDD2_CO_TRY\w*", text):
            if text.rfind("#define", 0, match.start()) > text.rfind("\n", 0, match.start()):
                continue
            begin = begin_of_statement(text, match.start())
            statement = text[begin:end_of_statement(text, match.start())]
            if "co_await" not in statement:
                continue
            why = ("braces" if BRACES.search(statement) else
                   "a capturing lambda" if CAPTURE.search(statement) else None)
            if why and (begin, why) not in seen:
                seen.add((begin, why))
                line = text.count("\n", 0, match.start()) + 1
                yield f"{path}:{line}: {why} in a statement with co_await: give it a name first"


if __name__ == "__main__":
    found = list(problems(sys.argv[1]))
    print("\n".join(found), end="\n" if found else "")
    sys.exit(1 if found else 0)
