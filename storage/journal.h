#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <vector>

#include "common/result.h"
#include "storage/kv_store.h"

namespace dd2 {

namespace proto {
class JournalRecord;
}  // namespace proto

// The coordinator's decisions in order, each synced before it is acted on (design 2). One writer.
// Not thread-safe.
class Journal {
 public:
  // Reads what is there. kCorruption: a hole in the sequence or a record that does not parse.
  static Result<std::unique_ptr<Journal>> Open(std::unique_ptr<KvStore> store);
  virtual ~Journal() = default;
  // Gives each record the next sequence number and the time, and syncs them all at once.
  virtual Status Append(std::vector<proto::JournalRecord> records, std::int64_t unix_ms) = 0;
  virtual const std::vector<proto::JournalRecord>& records() const = 0;
};

}  // namespace dd2
