#include "cli/log_filter.h"

#include <gtest/gtest.h>

namespace dd2 {
namespace {

TEST(LogFilter, KeepsARanksLinesAndThoseOfNobody) {
  LogFilter filter(1);
  EXPECT_EQ(filter.Take("[1,0]<stderr>:zero\n[1,1]<stderr>:one\nmpirun says\n[1,11]<stderr>:el"),
            "[1,1]<stderr>:one\nmpirun says\n");
  EXPECT_EQ(filter.Take("even\nworker 1 (pid 7): mine\nworker 2 (pid 8): not mine\n"),
            "worker 1 (pid 7): mine\n");
  LogFilter all(std::nullopt);
  EXPECT_EQ(all.Take("[1,0]<stderr>:zero\nrest"), "[1,0]<stderr>:zero\n");
}

TEST(LogFilter, LastLines) {
  EXPECT_EQ(LastLines("a\nb\nc\n", 2), "b\nc\n");
  EXPECT_EQ(LastLines("a\nb\nc", 1), "c");
  EXPECT_EQ(LastLines("a\nb\n", 9), "a\nb\n");
  EXPECT_EQ(LastLines("a\nb\n", 0), "");
  EXPECT_EQ(LastLines("", 3), "");
}

}  // namespace
}  // namespace dd2
