#include "storage/journal.h"

#include <string>
#include <utility>

#include "proto/records.pb.h"
#include "proto/wire.h"
#include "storage/sealed.h"

namespace dd2 {
namespace {

constexpr std::string_view kFormat = "dd2-journal 1";
constexpr std::string_view kPrefix = "j";

std::string KeyOf(std::uint64_t sequence) {
  std::string key(kPrefix);
  AppendBigEndian(key, sequence);
  return key;
}

class StoredJournal : public Journal {
 public:
  StoredJournal(std::unique_ptr<KvStore> store, std::vector<proto::JournalRecord> records)
      : store_(std::move(store)), records_(std::move(records)) {}

  Status Append(std::vector<proto::JournalRecord> records, std::int64_t unix_ms) override {
    std::vector<std::pair<std::string, std::string>> entries;
    for (proto::JournalRecord& record : records) {
      record.set_sequence(records_.size() + entries.size() + 1);
      record.set_unix_ms(unix_ms);
      MakeTextsUtf8(record);  // else it could never be read again
      std::string key = KeyOf(record.sequence());
      std::string value = Seal(key, record.SerializeAsString());
      entries.emplace_back(std::move(key), std::move(value));
    }
    DD2_TRY(store_->PutAll(entries, Durability::kSynced));
    for (proto::JournalRecord& record : records) records_.push_back(std::move(record));
    return {};
  }
  const std::vector<proto::JournalRecord>& records() const override { return records_; }

 private:
  std::unique_ptr<KvStore> store_;
  std::vector<proto::JournalRecord> records_;
};

// The record at `key`, which must have sequence number `expected`.
Result<proto::JournalRecord> ReadRecord(std::string_view key, std::string_view value,
                                        std::uint64_t expected) {
  if (key != KeyOf(expected)) {
    return Error(Code::kCorruption, "journal record " + std::to_string(expected) +
                                        " is missing although later ones exist");
  }
  const std::string what = "journal record " + std::to_string(expected);
  const auto payload = Unseal(key, value);
  if (!payload) return payload.error().Wrap(what);
  proto::JournalRecord record;
  if (!record.ParseFromArray(payload->data(), static_cast<int>(payload->size())) ||
      record.sequence() != expected) {
    return Error(Code::kCorruption, what + " does not parse, or carries another number");
  }
  return record;
}

}  // namespace

Result<std::unique_ptr<Journal>> Journal::Open(std::unique_ptr<KvStore> store) {
  if (auto claimed = ClaimFormat(*store, kFormat); !claimed) {
    return claimed.error().Wrap("journal");
  }
  std::vector<proto::JournalRecord> records;
  Status read;
  DD2_TRY(store->Scan(kPrefix, [&](std::string_view key, std::string_view value) {
    auto record = ReadRecord(key, value, records.size() + 1);
    if (!record) {
      read = record.error();
      return false;
    }
    records.push_back(*std::move(record));
    return true;
  }));
  if (!read) return read.error();
  return std::unique_ptr<Journal>(
      std::make_unique<StoredJournal>(std::move(store), std::move(records)));
}

}  // namespace dd2
