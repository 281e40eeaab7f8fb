#include "storage/sealed.h"

#include "storage/kv_store.h"

namespace dd2 {
namespace {

constexpr std::size_t kHashBytes = 16;
constexpr std::string_view kFormatKey = "format";

std::string HashOf(std::string_view key, std::string_view payload) {
  Hasher128 hasher;
  hasher.UpdateField(key);
  hasher.UpdateField(payload);
  std::string bytes;
  AppendDigest(bytes, hasher.Finish());
  return bytes;
}

}  // namespace

std::string Seal(std::string_view key, std::string_view payload) {
  std::string sealed(payload);
  sealed += HashOf(key, payload);
  return sealed;
}

Result<std::string_view> Unseal(std::string_view key, std::string_view sealed) {
  if (sealed.size() < kHashBytes) {
    return Error(Code::kCorruption, "a stored value of " + std::to_string(sealed.size()) +
                                        " bytes is shorter than its checksum");
  }
  const std::string_view payload = sealed.substr(0, sealed.size() - kHashBytes);
  if (HashOf(key, payload) != sealed.substr(payload.size())) {
    return Error(Code::kCorruption, "a stored value of " + std::to_string(sealed.size()) +
                                        " bytes does not match its checksum");
  }
  return payload;
}

void AppendBigEndian(std::string& key, std::uint64_t value) {
  for (int shift = 56; shift >= 0; shift -= 8) {
    key.push_back(static_cast<char>((value >> shift) & 0xFF));
  }
}

void AppendDigest(std::string& key, const Digest128& digest) {
  AppendBigEndian(key, digest.high);
  AppendBigEndian(key, digest.low);
}

Status ClaimFormat(KvStore& store, std::string_view format) {
  const auto stored = store.Get(kFormatKey);
  if (stored) {
    auto found = Unseal(kFormatKey, *stored);
    if (!found) return found.error().Wrap("format line");
    if (*found != format) {
      return Error(Code::kFailedPrecondition,
                   "the store holds '" + std::string(*found) + "', this program reads '" +
                       std::string(format) + "'; use the version that wrote it, or move it away");
    }
    return {};
  }
  if (stored.error().code() != Code::kNotFound) return stored.error();
  bool empty = true;
  DD2_TRY(store.Scan("", [&](std::string_view, std::string_view) { return empty = false; }));
  if (!empty) {
    return Error(Code::kCorruption, "the store has entries but no format line: not one of ours?");
  }
  return store.Put(kFormatKey, Seal(kFormatKey, format), Durability::kSynced);
}

}  // namespace dd2
