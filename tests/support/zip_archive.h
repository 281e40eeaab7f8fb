#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace dd2 {

// Zip archives by hand, right ones and wrong ones.

template <class T>
std::string ZipBytes(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}
inline std::string ZipHalf(std::size_t value) {
  return ZipBytes(static_cast<std::uint16_t>(value));
}
inline std::string ZipWord(std::size_t value) {
  return ZipBytes(static_cast<std::uint32_t>(value));
}
inline std::string ZipWide(std::size_t value) {
  return ZipBytes(static_cast<std::uint64_t>(value));
}

struct ZipMember {
  std::string name;
  std::string content;
  std::uint16_t method = 0;
  std::uint16_t flags = 0;
  std::string local_name{};       // where it is to differ
  std::size_t header = SIZE_MAX;  // where the directory says its header is
  std::uint32_t crc32 = 7;
};

inline std::string ZipHeader(const ZipMember& member) {
  const std::string& name = member.local_name.empty() ? member.name : member.local_name;
  return "PK\x03\x04" + ZipHalf(20) + ZipHalf(member.flags) + ZipHalf(member.method) + ZipWord(0) +
         ZipWord(0) + ZipWord(member.content.size()) + ZipWord(member.content.size()) +
         ZipHalf(name.size()) + ZipHalf(0) + name;
}

inline std::string ZipArchive(std::vector<ZipMember> members, const std::string& comment = "") {
  std::string archive;
  for (ZipMember& member : members) {
    if (member.header == SIZE_MAX) member.header = archive.size();
    archive += ZipHeader(member) + member.content;
  }
  std::string directory;
  for (const ZipMember& member : members) {
    directory += "PK\x01\x02" + ZipWord(20) + ZipHalf(member.flags) + ZipHalf(member.method) +
                 ZipWord(0) + ZipWord(member.crc32) + ZipWord(member.content.size()) +
                 ZipWord(member.content.size()) + ZipHalf(member.name.size()) + ZipHalf(0) +
                 ZipHalf(0) + ZipWide(0) + ZipWord(member.header) + member.name;
  }
  return archive + directory + "PK\x05\x06" + ZipWord(0) + ZipHalf(members.size()) +
         ZipHalf(members.size()) + ZipWord(directory.size()) + ZipWord(archive.size()) +
         ZipHalf(comment.size()) + comment;
}

}  // namespace dd2
