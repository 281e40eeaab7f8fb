#pragma once

#include <string>
#include <string_view>

#include "common/hash.h"
#include "common/result.h"

namespace dd2 {

// Values with their own checksum (FORMAT.md 3), checked in pairs: Seal just before the write,
// Unseal just after the read.

// `payload` followed by the hash of key and payload.
std::string Seal(std::string_view key, std::string_view payload);
// The payload inside `sealed`, pointing into it. kCorruption: it does not belong to `key`.
Result<std::string_view> Unseal(std::string_view key, std::string_view sealed);

// Pieces of keys: big-endian, so that keys sort by number.
void AppendBigEndian(std::string& key, std::uint64_t value);
void AppendDigest(std::string& key, const Digest128& digest);

class KvStore;
// Writes the format line into an empty store, or checks it. kFailedPrecondition: another format;
// kCorruption: there are entries but no readable format line.
Status ClaimFormat(KvStore& store, std::string_view format);

}  // namespace dd2
