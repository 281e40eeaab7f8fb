#!/usr/bin/env python3
"""Each static check finds what it is for, and leaves the harmless neighbour alone."""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
sys.path.insert(0, os.path.join(ROOT, "scripts", "checks"))
import coroutines  # noqa: E402
import layers  # noqa: E402
import sizes  # noqa: E402
import tidy  # noqa: E402
from source import strip  # noqa: E402


class Tree(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def write(self, path, text):
        full = os.path.join(self.folder.name, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w", encoding="utf-8") as file:
            file.write(text)
        return full


class LayersTest(Tree):
    def found(self, path, target):
        self.write(path, f"#pragma once\n#include {target}\n")
        return [line for line in layers.problems(self.folder.name) if line.startswith(path + ":2:")]

    def test_direction(self):
        self.assertTrue(self.found("common/a.h", '"storage/kv_store.h"'))
        self.assertTrue(self.found("proto/a.h", '"storage/kv_store.h"'))
        self.assertTrue(self.found("coordinator/a.cc", '"worker/agent/agent.h"'))
        self.assertTrue(self.found("worker/agent/a.cc", '"worker/models/teacher.h"'))
        self.assertTrue(self.found("worker/models/a.cc", '"worker/engine/png.h"'))
        self.assertTrue(self.found("storage/a.cc", '"tests/support/fake.h"'))
        self.assertFalse(self.found("worker/engine/a.cc", '"worker/models/teacher.h"'))
        self.assertFalse(self.found("storage/b.cc", '"common/result.h"'))
        self.assertFalse(self.found("tests/unit/a.cc", '"worker/engine/png.h"'))

    def test_homes(self):
        self.assertTrue(self.found("coordinator/a.cc", "<rocksdb/db.h>"))
        self.assertTrue(self.found("storage/a.cc", "<rocksdb/db.h>"))
        self.assertTrue(self.found("worker/agent/a.cc", "<torch/torch.h>"))
        self.assertTrue(self.found("worker/engine/a.cc", "<mpi.h>"))
        self.assertTrue(self.found("coordinator/b.cc", "<boost/asio/post.hpp>"))
        self.assertTrue(self.found("cli/a.cc", "<spdlog/spdlog.h>"))
        self.assertTrue(self.found("common/a.cc", "<gtest/gtest.h>"))
        self.assertFalse(self.found("storage/rocks_store.cc", "<rocksdb/db.h>"))
        self.assertFalse(self.found("worker/parallel/mpi_domain.cc", "<mpi.h>"))
        self.assertFalse(self.found("cli/b.cc", "<vector>"))


class TidyTest(Tree):
    """The real clang-tidy with our rules, on a planted fault."""

    def read(self, text):
        root = self.folder.name
        source = self.write("common/a.cc", text)
        shutil.copy(os.path.join(ROOT, ".clang-tidy"), root)
        self.write("build/release/compile_commands.json", json.dumps(
            [{"directory": root, "file": source, "command": f"c++ -std=c++20 -c {source}"}]))
        return subprocess.run(
            [sys.executable, os.path.join(ROOT, "scripts", "checks", "tidy.py"), root],
            env={**os.environ, "XDG_CACHE_HOME": root}, capture_output=True, text=True, check=False)

    def test_fault(self):
        ran = self.read("double Half(int n) { return n / 2; }\n")
        self.assertEqual(ran.returncode, 1, ran.stdout + ran.stderr)
        self.assertIn("bugprone-integer-division", ran.stdout)

    def test_clean(self):
        ran = self.read("double Half(int n) { return n / 2.0; }\n")
        self.assertEqual(ran.returncode, 0, ran.stdout + ran.stderr)
        self.assertIn("1 to read", ran.stdout)

    def test_what_was_found_clean_is_read_again_when_it_changes(self):
        def key(rules, header, files=("common/a.cc", "common/a.h")):
            self.write(".clang-tidy", rules)
            self.write("common/a.cc", '#include "common/a.h"\n')
            self.write("common/a.h", header)
            return tidy.key(self.folder.name, "common/a.cc", "c++", files, "14")

        first = key("a", "int a;")
        self.assertEqual(key("a", "int a;"), first)
        self.assertNotEqual(key("a", "int b;"), first)
        self.assertNotEqual(key("b", "int a;"), first)
        self.assertIsNone(key("a", "int a;", files=None))


class CoroutinesTest(Tree):
    def found(self, statement):
        self.write("common/a.cc", "Task<void> F() {\n  " + statement + "\n}\n")
        return list(coroutines.problems(self.folder.name))

    def test_bad(self):
        self.assertTrue(self.found("co_await Send({a, b});"))
        self.assertTrue(self.found("co_await Send(Options{.size = 1});"))
        self.assertTrue(self.found("Use(Options{1}, co_await Get());"))
        self.assertTrue(self.found("co_await [x = 1]() -> Task<void> { co_return; }();"))
        self.assertTrue(self.found("DD2_CO_TRY(co_await Send({a, b}));"))

    def test_good(self):
        self.assertFalse(self.found("Options options{1};\n  co_await Send(options);"))
        self.assertFalse(self.found("if (co_await Get()) { Use({a, b}); }"))
        self.assertFalse(self.found("// co_await Send({a, b});\n  co_await Send(a);"))
        self.assertFalse(self.found('co_await Send("({a})");'))


class SizesTest(Tree):
    LONG = "int Long() {\n" + "  Use();\n" * 70 + "}\n"

    def found(self, allow=""):
        return list(sizes.problems(self.folder.name, self.write("allow", allow)))

    def test_function(self):
        self.write("common/a.cc", "namespace dd2 {\n" + self.LONG.replace("  Use();\n", "", 2) + "}\n")
        self.assertEqual(self.found(), [])
        self.write("common/a.cc", "namespace dd2 {\n" + self.LONG + "}\n")
        self.assertIn("common/a.cc:Long: 72 lines", self.found()[0])

    def test_members_and_lambdas_count(self):
        self.write("common/a.h", "class A {\n public:\n  " + self.LONG + "};\n")
        self.assertIn("common/a.h:Long", self.found()[0])
        self.write("common/a.h", "")
        self.write("common/a.cc", "int F() {\n  auto f = [&] {\n" + "  g();\n" * 68 + "  };\n}\n")
        self.assertIn("common/a.cc:F: 72 lines", self.found()[0])

    def test_files(self):
        self.write("common/a.h", "\n" * 251)
        self.write("common/a.cc", "\n" * 601)
        self.write("common/b.cc", "\n" * 600)
        self.assertEqual(len(self.found()), 2)

    def test_the_list_only_shrinks(self):
        self.write("common/a.cc", self.LONG)
        self.assertEqual(self.found("common/a.cc:Long 72\n"), [])
        self.assertIn("may only become shorter", self.found("common/a.cc:Long 71\n")[0])
        self.assertIn("72 lines now", self.found("common/a.cc:Long 80\n")[0])
        self.write("common/a.cc", "int Short() {}\n")
        self.assertIn("take it out", self.found("common/a.cc:Long 72\n")[0])


class StripTest(unittest.TestCase):
    def test_keeps_lines_and_digit_separators(self):
        text = 'int a = 1\'000; // {\nauto s = R"x(\n{)x"; char c = \'{\'; /* {\n */ f("\\"{");\n'
        self.assertEqual(strip(text).count("\n"), text.count("\n"))
        self.assertNotIn("{", strip(text))
        self.assertIn("1'000;", strip(text))


if __name__ == "__main__":
    unittest.main()
