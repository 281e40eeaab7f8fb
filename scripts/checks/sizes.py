#!/usr/bin/env python3
"""A ratchet on sizes: headers <= 250 lines, sources <= 600, functions <= 70.

What is longer stands in sizes.allow with its size, one "path[:function] lines" each. An entry
that is exceeded fails; so does one that is no longer needed or has become shorter, so that the
list can only shrink.
usage: sizes.py ROOT [ALLOW_FILE]
"""
import os
import re
import sys

from source import read, source_files, strip

HEADER_LINES_MAX = 250
SOURCE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70

NO_FUNCTION = re.compile(
    r"^(?:template\s*<[^{}]*>\s*)?(?:namespace|class|struct|union|enum|extern)\b|=\s*$")
NAME = re.compile(r"(~?\w+|operator\s*\S+?)\s*\(")


def functions(text):
    """(name, first line, last line) of every function body that is not inside another one."""
    depth_of_function, depth, head, start, name = None, 0, 0, 0, ""
    for i, char in enumerate(text):
        if char == "{":
            if depth_of_function is None:
                before = text[head:i].strip()
                before = re.sub(r"^(?:\s*(?:public|private|protected)\s*:)+", "", before).strip()
                found = NAME.search(before)
                if ")" in before and found and not NO_FUNCTION.search(before):
                    depth_of_function, name = depth, found.group(1)
                    start = head + len(text[head:i]) - len(text[head:i].lstrip())
            depth += 1
            if depth_of_function is None:
                head = i + 1
        elif char == "}":
            depth -= 1
            if depth_of_function is not None and depth == depth_of_function:
                yield name, text.count("\n", 0, start) + 1, text.count("\n", 0, i) + 1
                depth_of_function = None
            if depth_of_function is None:
                head = i + 1
        elif char == ";" and depth_of_function is None:
            head = i + 1


def preprocessor_blanked(text):
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", lambda m: "\n" * m.group(0).count("\n"), text,
                  flags=re.M)


def too_long(root):
    """{entry: (lines, limit)} of everything above its limit."""
    found = {}
    for path in source_files(root):
        text = read(root, path)
        lines = text.count("\n")
        limit = HEADER_LINES_MAX if path.endswith((".h", ".cuh")) else SOURCE_LINES_MAX
        if lines > limit:
            found[path] = (lines, limit)
        for name, first, last in functions(preprocessor_blanked(strip(text))):
            if last - first + 1 > FUNCTION_LINES_MAX:
                entry = f"{path}:{name}"
                longest = max(last - first + 1, found.get(entry, (0,))[0])
                found[entry] = (longest, FUNCTION_LINES_MAX)
    return found


def problems(root, allow_path):
    allowed = {}
    if os.path.exists(allow_path):
        with open(allow_path, encoding="utf-8") as file:
            for line in file:
                if line.strip() and not line.startswith("#"):
                    entry, lines = line.split()
                    allowed[entry] = int(lines)
    found = too_long(root)
    for entry, (lines, limit) in sorted(found.items()):
        if entry not in allowed:
            yield f"{entry}: {lines} lines, the limit is {limit}: split it"
        elif lines > allowed[entry]:
            yield f"{entry}: {lines} lines, was {allowed[entry]}: it may only become shorter"
    for entry, lines in sorted(allowed.items()):
        now = found.get(entry, (0,))[0]
        if now == 0:
            yield f"{entry}: within its limit or gone, good: take it out of {allow_path}"
        elif now < lines:
            yield f"{entry}: {now} lines now, good: write that into {allow_path}"


if __name__ == "__main__":
    default = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sizes.allow")
    result = list(problems(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else default))
    print("\n".join(result), end="\n" if result else "")
    sys.exit(1 if result else 0)
