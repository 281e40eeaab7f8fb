#!/usr/bin/env python3
"""clang-format on every source file, without changing any. usage: formatting.py ROOT"""
import shutil
import subprocess
import sys

from source import source_files

if __name__ == "__main__":
    root = sys.argv[1]
    if not shutil.which("clang-format"):
        sys.exit("formatting: clang-format is missing; scripts/setup installs it")
    files = source_files(root)
    ran = subprocess.run(["clang-format", "--dry-run", "-Werror", *files], cwd=root,
                         capture_output=True, text=True, check=False)
    bad = sorted({line.split(":", 1)[0] for line in ran.stderr.splitlines() if "error:" in line})
    for path in bad:
        print(f"{path}: not formatted; clang-format -i {path}")
    if ran.returncode != 0 and not bad:
        print(ran.stderr)
    sys.exit(1 if ran.returncode != 0 else 0)
