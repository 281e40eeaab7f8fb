#!/usr/bin/env python3
"""clang-tidy (.clang-tidy: a short list, all errors) on every source of the release build.

A file takes seconds, so what was found clean is remembered under a hash of all that clang-tidy reads:
its rules, the compile command, and the text of the source and of our headers it includes.
usage: tidy.py ROOT [SOURCE...]
"""
import concurrent.futures
import hashlib
import json
import os
import shutil
import subprocess
import sys

from source import source_files

BUILD = os.path.join("build", "release")
# clang 14 needs to be told that it has coroutines, and does not know some of g++'s flags.
EXTRA = ["--extra-arg=-DBOOST_ASIO_HAS_CO_AWAIT=1", "--extra-arg=-DBOOST_ASIO_HAS_STD_COROUTINE=1",
         "--extra-arg=-Wno-unknown-warning-option", "--extra-arg=-Wno-everything"]


def remembered_folder():
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "dd2", "tidy")


def compile_commands(root):
    """{source: compile command}, both relative to the root."""
    with open(os.path.join(root, BUILD, "compile_commands.json"), encoding="utf-8") as file:
        return {os.path.relpath(entry["file"], root): entry["command"].replace(root, "")
                for entry in json.load(file)}


def dependencies(root):
    """{source: files it was last compiled from}, as ninja recorded them; empty before a build."""
    ran = subprocess.run(["ninja", "-C", os.path.join(root, BUILD), "-t", "deps"],
                         capture_output=True, text=True, check=False)
    found, files = {}, []
    for line in ran.stdout.splitlines() if ran.returncode == 0 else []:
        if not line.startswith(" "):
            files = []
            continue
        full = os.path.normpath(os.path.join(root, BUILD, line.strip()))
        path = os.path.relpath(full, root) if full.startswith(root + os.sep) else full
        if not files:
            found[path] = files  # the first one is the source itself
        files.append(path)
    return found


def key(root, path, command, files, tool):
    """None when it is not known what the source includes."""
    if not files:
        return None
    digest = hashlib.sha256(repr((tool, EXTRA, path, command)).encode())
    for name in [".clang-tidy", *sorted(files)]:
        digest.update(name.encode())
        if not os.path.isabs(name):  # a system header counts by its name
            try:
                with open(os.path.join(root, name), "rb") as file:
                    digest.update(file.read())
            except OSError:
                return None
    return digest.hexdigest()


def run(root, path):
    ran = subprocess.run(["clang-tidy", "--quiet", "-p", BUILD, *EXTRA, path], cwd=root,
                         capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr


def main():
    root, wanted = os.path.abspath(sys.argv[1]), sys.argv[2:]
    if not shutil.which("clang-tidy"):
        sys.exit("tidy: clang-tidy is missing; scripts/setup installs it")
    if not os.path.exists(os.path.join(root, BUILD, "compile_commands.json")):
        sys.exit("tidy: no build/release yet; scripts/build makes it")
    tool = subprocess.run(["clang-tidy", "--version"], capture_output=True, text=True,
                          check=True).stdout
    commands, included = compile_commands(root), dependencies(root)
    folder = remembered_folder()
    os.makedirs(folder, exist_ok=True)
    sources = wanted or [path for path in source_files(root) if path.endswith(".cc")]
    marks = {}
    for path in sources:
        name = key(root, path, commands.get(path), included.get(path), tool)
        marks[path] = name and os.path.join(folder, name)
    unread = [path for path, mark in marks.items() if not mark or not os.path.exists(mark)]
    print(f"tidy: {len(sources)} sources, {len(unread)} to read", flush=True)
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, (code, output) in zip(unread, pool.map(lambda path: run(root, path), unread)):
            if code != 0:
                failed += 1
                print(f"tidy: {path}\n{output}", flush=True)
            elif marks[path]:
                with open(marks[path], "w", encoding="utf-8"):
                    pass
    print(f"tidy: {failed} with errors")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
