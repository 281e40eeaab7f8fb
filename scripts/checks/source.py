"""What the checks share: our source files, and their text without comments and strings."""
import os
import re

FOLDERS = ("common", "proto", "storage", "coordinator", "worker", "cli", "tests")


def source_files(root):
    """Paths of our C++ files, relative to root, sorted."""
    found = []
    for folder in FOLDERS:
        for here, _, names in os.walk(os.path.join(root, folder)):
            found += [os.path.relpath(os.path.join(here, name), root) for name in names
                      if name.endswith((".h", ".cc", ".cu", ".cuh"))]
    return sorted(found)


def read(root, path):
    with open(os.path.join(root, path), encoding="utf-8", errors="replace") as file:
        return file.read()


TOKEN = re.compile(
    r'R"(?P<mark>[^()\s\\]*)\(.*?\)(?P=mark)"'  # raw string
    r'|"(?:\\.|[^"\\\n])*"'
    r"|(?<![0-9A-Fa-f])'(?:\\.|[^'\\\n])+'"     # a character, not a digit separator
    r"|//[^\n]*|/\*.*?\*/", re.S)


def strip(text):
    """Blanks comments and the insides of strings; every newline and column stays."""
    def blank(match):
        token = match.group(0)
        if token[0] in "\"'" or token.startswith("R\""):
            return '"' + re.sub(r"[^\n]", " ", token[1:-1]) + '"'
        return re.sub(r"[^\n]", " ", token)
    return TOKEN.sub(blank, text)
