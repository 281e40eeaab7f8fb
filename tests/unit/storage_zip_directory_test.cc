#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "storage/zip_directory.h"
#include "tests/support/zip_archive.h"

namespace dd2 {
namespace {

using testing::HasSubstr;

Result<std::map<std::string, ZipEntry>> Read(const std::string& archive) {
  return ReadZipDirectory(std::as_bytes(std::span(archive)));
}

std::string Why(const std::string& archive) {
  const auto entries = Read(archive);
  EXPECT_FALSE(entries);
  if (entries) return "";
  EXPECT_EQ(entries.error().code(), Code::kCorruption);
  return entries.error().message();
}

TEST(ZipDirectoryTest, EntriesLieWhereTheHeadersSay) {
  const std::string archive =
      ZipArchive({{"a/one", "first"}, {"two", ""}, {"three", "3rd"}}, "PK\x05\x06 tail");
  const auto entries = Read(archive);
  ASSERT_TRUE(entries) << entries.error().message();
  ASSERT_EQ(entries->size(), 3U);
  const ZipEntry& one = entries->at("a/one");
  EXPECT_EQ(archive.substr(one.begin, one.bytes), "first");
  EXPECT_EQ(one.crc32, 7U);
  EXPECT_EQ(entries->at("two").bytes, 0U);
  const ZipEntry& three = entries->at("three");
  EXPECT_EQ(archive.substr(three.begin, three.bytes), "3rd");
  EXPECT_TRUE(Read(ZipArchive({}))->empty());
}

TEST(ZipDirectoryTest, SaysHowEntriesAreStored) {
  std::string archive =
      ZipArchive({{"deflated", "x", 8}, {"encrypted", "x", 8, 1}, {"zstd", "x", 93}});
  const std::size_t at = archive.find("PK\x01\x02");
  archive.replace(at + 24, 4, ZipWord(1031));  // bytes of the file itself
  const auto entries = Read(archive);
  ASSERT_TRUE(entries) << entries.error().message();
  EXPECT_EQ(entries->at("deflated").method, ZipMethod::kDeflated);
  EXPECT_EQ(entries->at("deflated").stored, 1U);
  EXPECT_EQ(entries->at("deflated").bytes, 1031U);
  EXPECT_EQ(entries->at("encrypted").method, ZipMethod::kOther);
  EXPECT_EQ(entries->at("zstd").method, ZipMethod::kOther);
  archive.replace(at + 24, 4, ZipWord(2064));
  EXPECT_THAT(Why(archive), HasSubstr("impossible"));
}

TEST(ZipDirectoryTest, EveryTruncationIsRefused) {
  const std::string archive = ZipArchive({{"a/one", "first"}, {"two", "2"}});
  for (std::size_t size = 0; size < archive.size(); ++size) {
    EXPECT_FALSE(Read(archive.substr(0, size))) << size;
  }
}

TEST(ZipDirectoryTest, WhatIsNotAsItShouldBe) {
  EXPECT_THAT(Why(ZipArchive({{"one", "x"}, {"one", "y"}})), HasSubstr("one is there twice"));
  EXPECT_THAT(Why(ZipArchive({{"one", "x", 0, 0, "two"}})), HasSubstr("another name"));
  EXPECT_THAT(Why(ZipArchive({{"one", "x", 0, 0, "", 5}})), HasSubstr("no header"));
  EXPECT_THAT(Why(ZipArchive({{"one", "x", 0, 0, "", 1'000'000}})), HasSubstr("beyond its end"));
  // An entry inside another one's bytes.
  const ZipMember inner{"in", "i"};
  EXPECT_THAT(Why(ZipArchive({{"out", ZipHeader(inner) + inner.content},
                              {"in", "i", 0, 0, "", ZipHeader({"out", ""}).size()}})),
              HasSubstr("the same place"));
  // More bytes than there are in front of the directory.
  std::string longer = ZipArchive({{"one", "x"}});
  const std::size_t at = longer.rfind("PK\x01\x02");
  longer.replace(at + 20, 8, ZipWord(500) + ZipWord(500));
  EXPECT_THAT(Why(longer), HasSubstr("ends early"));
  longer.replace(at + 20, 8, ZipWord(1) + ZipWord(2));
  EXPECT_THAT(Why(longer), HasSubstr("the sizes of one are impossible"));
  EXPECT_THAT(Why("PK"), HasSubstr("no directory"));
}

}  // namespace
}  // namespace dd2
