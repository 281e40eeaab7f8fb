#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/result.h"

namespace dd2 {

enum class Durability : unsigned char {
  kBuffered,  // survives the process, not the machine
  kSynced,    // on the disk when the call returns
};

// An ordered map of bytes. Thread-safe. RocksStore is the real one, MemStore is for tests.
class KvStore {
 public:
  virtual ~KvStore() = default;
  // kNotFound: no such key. kCorruption: the stored block failed its check.
  virtual Result<std::string> Get(std::string_view key) = 0;
  virtual Status Put(std::string_view key, std::string_view value, Durability durability) = 0;
  // All or nothing.
  virtual Status PutAll(const std::vector<std::pair<std::string, std::string>>& entries,
                        Durability durability) = 0;
  virtual Status Delete(std::string_view key) = 0;
  // Calls `visit` for each key with `prefix`, in key order, until it returns false.
  virtual Status Scan(std::string_view prefix,
                      const std::function<bool(std::string_view, std::string_view)>& visit) = 0;
  // Read-only instances: sees what the owner has written since. A no-op for others.
  virtual Status CatchUp() = 0;
};

struct RocksOptions {
  bool create = true;
  bool blob_files = false;  // large values apart from the tree (score cache)
};

// Opens `folder` for this process alone. kUnavailable: another process has it open.
// kCorruption: it does not open; the message says what RocksDB said.
Result<std::unique_ptr<KvStore>> OpenRocksStore(const std::filesystem::path& folder,
                                                const RocksOptions& options);
// Follows a store that another process on this machine owns: a view of it as it was at the last
// CatchUp. Writes are refused (kFailedPrecondition). Fails while the owner is only creating it.
Result<std::unique_ptr<KvStore>> OpenRocksFollower(const std::filesystem::path& folder);
std::unique_ptr<KvStore> NewMemStore();

}  // namespace dd2
