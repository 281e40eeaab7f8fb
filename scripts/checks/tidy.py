#!/usr/bin/env python3
"""clang-tidy (.clang-tidy: a short list, all errors) on the sources that changed.

Changed: not committed, or different from DD2_CHECK_BASE (default HEAD~1). A file with LibTorch
takes half a minute, so at most a few of those; what is left out is said.
usage: tidy.py ROOT [--all-tidy]
"""
import concurrent.futures
import os
import shutil
import subprocess
import sys

from source import read, source_files

TORCH_FILES_MAX = 2
OTHER_FILES_MAX = 8
BUILD = os.path.join("build", "release")
# clang 14 needs to be told that it has coroutines, and does not know some of g++'s flags.
EXTRA = ["--extra-arg=-DBOOST_ASIO_HAS_CO_AWAIT=1", "--extra-arg=-DBOOST_ASIO_HAS_STD_COROUTINE=1",
         "--extra-arg=-Wno-unknown-warning-option", "--extra-arg=-Wno-everything"]


def git(root, *arguments):
    ran = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True,
                         check=False)
    return ran.stdout.splitlines() if ran.returncode == 0 else []


def changed(root):
    base = os.environ.get("DD2_CHECK_BASE", "HEAD~1")
    names = git(root, "diff", "--name-only", base) or git(root, "diff", "--name-only", "HEAD")
    return set(names) | set(git(root, "ls-files", "--others", "--exclude-standard"))


def uses_torch(root, path):
    if path.startswith(("worker/", "tests/")) and not path.startswith("worker/agent/"):
        text = read(root, path)
        return not path.startswith("tests/") or "worker/" in text
    return False


def run(root, path):
    ran = subprocess.run(["clang-tidy", "--quiet", "-p", BUILD, *EXTRA, path], cwd=root,
                         capture_output=True, text=True, check=False)
    return path, ran.returncode, ran.stdout + ran.stderr


def main():
    root, everything = sys.argv[1], "--all-tidy" in sys.argv[2:]
    if not shutil.which("clang-tidy"):
        sys.exit("tidy: clang-tidy is missing; scripts/setup installs it")
    if not os.path.exists(os.path.join(root, BUILD, "compile_commands.json")):
        sys.exit("tidy: no build/release yet; scripts/build makes it")
    names = None if everything else changed(root)
    files = [path for path in source_files(root)
             if path.endswith(".cc") and (everything or path in names)]
    torch = [path for path in files if uses_torch(root, path)]
    other = [path for path in files if path not in torch]
    if not everything:
        left_out = other[OTHER_FILES_MAX:] + torch[TORCH_FILES_MAX:]
        if left_out:
            print(f"tidy: {len(left_out)} changed files left out for time (--all-tidy reads them)")
        other, torch = other[:OTHER_FILES_MAX], torch[:TORCH_FILES_MAX]
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, code, output in pool.map(lambda path: run(root, path), torch + other):
            if code != 0:
                failed += 1
                print(f"tidy: {path}\n{output}")
    print(f"tidy: {len(torch) + len(other)} files read, {failed} with errors")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
