#include <gtest/gtest.h>

#include "cli/result_table.h"

namespace dd2 {
namespace {

TEST(ResultTableTest, ShowsEveryFigure) {
  const auto table = FormatResultTable(
      R"({"fdr_start":589.01,"fdr_end":42.126,"fdr_teacher":3.67,"accuracy":0.8412,
          "speedup_batch1":17.84,"speedup_batch64":4.2,
          "seconds":{"sample":20.2,"gts":100,"csd":150},"cache":{"hits":1200,"misses":0},
          "checkpoints":{"count":12,"bytes":220400000,"stall_seconds":1.254}})");
  ASSERT_TRUE(table) << table.error().message();
  EXPECT_NE(table->find("after training      42.13"), std::string::npos) << *table;
  for (const char* part : {"589.01", "3.67", "0.841", "17.8x", "4.2x", "4:30", "sample 0:20",
                           "csd 2:30", "1200 hits, 0 misses (sequences with their scores)",
                           "12, 220.4 MB; training stood still for 1.25 s"}) {
    EXPECT_NE(table->find(part), std::string::npos) << part << " in\n" << *table;
  }
}

TEST(ResultTableTest, WhatIsMissingIsLeftOut) {
  const auto table = FormatResultTable(R"({"fdr_end":42.1,"accuracy":null,"cache":{"hits":3}})");
  ASSERT_TRUE(table);
  EXPECT_EQ(std::count(table->begin(), table->end(), '\n'), 1) << *table;
}

TEST(ResultTableTest, NotJsonIsCorruption) {
  const auto table = FormatResultTable("{\"fdr_end\":");
  ASSERT_FALSE(table);
  EXPECT_EQ(table.error().code(), Code::kCorruption);
}

}  // namespace
}  // namespace dd2
