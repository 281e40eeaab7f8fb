#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "storage/zip_directory.h"

namespace dd2 {
namespace {

using testing::HasSubstr;

template <class T>
std::string Bytes(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}
std::string Half(std::size_t value) { return Bytes(static_cast<std::uint16_t>(value)); }
std::string Word(std::size_t value) { return Bytes(static_cast<std::uint32_t>(value)); }
std::string Wide(std::size_t value) { return Bytes(static_cast<std::uint64_t>(value)); }

struct Member {
  std::string name;
  std::string content;
  std::uint16_t method = 0;
  std::uint16_t flags = 0;
  std::string local_name{};       // where it is to differ
  std::size_t header = SIZE_MAX;  // where the directory says its header is
};

std::string Header(const Member& member) {
  const std::string& name = member.local_name.empty() ? member.name : member.local_name;
  return "PK\x03\x04" + Half(20) + Half(member.flags) + Half(member.method) + Word(0) + Word(0) +
         Word(member.content.size()) + Word(member.content.size()) + Half(name.size()) + Half(0) +
         name;
}

std::string Archive(std::vector<Member> members, const std::string& comment = "") {
  std::string archive;
  for (Member& member : members) {
    if (member.header == SIZE_MAX) member.header = archive.size();
    archive += Header(member) + member.content;
  }
  std::string directory;
  for (const Member& member : members) {
    directory += "PK\x01\x02" + Word(20) + Half(member.flags) + Half(member.method) + Word(0) +
                 Word(7) + Word(member.content.size()) + Word(member.content.size()) +
                 Half(member.name.size()) + Half(0) + Half(0) + Wide(0) + Word(member.header) +
                 member.name;
  }
  return archive + directory + "PK\x05\x06" + Word(0) + Half(members.size()) +
         Half(members.size()) + Word(directory.size()) + Word(archive.size()) +
         Half(comment.size()) + comment;
}

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
      Archive({{"a/one", "first"}, {"two", ""}, {"three", "3rd"}}, "PK\x05\x06 tail");
  const auto entries = Read(archive);
  ASSERT_TRUE(entries) << entries.error().message();
  ASSERT_EQ(entries->size(), 3U);
  const ZipEntry& one = entries->at("a/one");
  EXPECT_EQ(archive.substr(one.begin, one.bytes), "first");
  EXPECT_EQ(one.crc32, 7U);
  EXPECT_EQ(entries->at("two").bytes, 0U);
  const ZipEntry& three = entries->at("three");
  EXPECT_EQ(archive.substr(three.begin, three.bytes), "3rd");
  EXPECT_TRUE(Read(Archive({}))->empty());
}

TEST(ZipDirectoryTest, SaysHowEntriesAreStored) {
  std::string archive =
      Archive({{"deflated", "x", 8}, {"encrypted", "x", 8, 1}, {"zstd", "x", 93}});
  const std::size_t at = archive.find("PK\x01\x02");
  archive.replace(at + 24, 4, Word(1031));  // bytes of the file itself
  const auto entries = Read(archive);
  ASSERT_TRUE(entries) << entries.error().message();
  EXPECT_EQ(entries->at("deflated").method, ZipMethod::kDeflated);
  EXPECT_EQ(entries->at("deflated").stored, 1U);
  EXPECT_EQ(entries->at("deflated").bytes, 1031U);
  EXPECT_EQ(entries->at("encrypted").method, ZipMethod::kOther);
  EXPECT_EQ(entries->at("zstd").method, ZipMethod::kOther);
  archive.replace(at + 24, 4, Word(2064));
  EXPECT_THAT(Why(archive), HasSubstr("impossible"));
}

TEST(ZipDirectoryTest, EveryTruncationIsRefused) {
  const std::string archive = Archive({{"a/one", "first"}, {"two", "2"}});
  for (std::size_t size = 0; size < archive.size(); ++size) {
    EXPECT_FALSE(Read(archive.substr(0, size))) << size;
  }
}

TEST(ZipDirectoryTest, WhatIsNotAsItShouldBe) {
  EXPECT_THAT(Why(Archive({{"one", "x"}, {"one", "y"}})), HasSubstr("one is there twice"));
  EXPECT_THAT(Why(Archive({{"one", "x", 0, 0, "two"}})), HasSubstr("another name"));
  EXPECT_THAT(Why(Archive({{"one", "x", 0, 0, "", 5}})), HasSubstr("no header"));
  EXPECT_THAT(Why(Archive({{"one", "x", 0, 0, "", 1'000'000}})), HasSubstr("beyond its end"));
  // An entry inside another one's bytes.
  const Member inner{"in", "i"};
  EXPECT_THAT(Why(Archive({{"out", Header(inner) + inner.content},
                           {"in", "i", 0, 0, "", Header({"out", ""}).size()}})),
              HasSubstr("the same place"));
  // More bytes than there are in front of the directory.
  std::string longer = Archive({{"one", "x"}});
  const std::size_t at = longer.rfind("PK\x01\x02");
  longer.replace(at + 20, 8, Word(500) + Word(500));
  EXPECT_THAT(Why(longer), HasSubstr("ends early"));
  longer.replace(at + 20, 8, Word(1) + Word(2));
  EXPECT_THAT(Why(longer), HasSubstr("the sizes of one are impossible"));
  EXPECT_THAT(Why("PK"), HasSubstr("no directory"));
}

}  // namespace
}  // namespace dd2
