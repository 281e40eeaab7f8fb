// The home of RocksDB. Nothing else includes it.

#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <cstdarg>
#include <cstdio>
#include <functional>
#include <mutex>
#include <system_error>
#include <utility>
#include <vector>

#include "common/file.h"
#include "storage/kv_store.h"

namespace dd2 {
namespace {

constexpr std::size_t kBlockCacheBytes = std::size_t{8} << 20;
constexpr std::size_t kWriteBufferBytes = std::size_t{2} << 20;
// Each flush makes one blob file; larger buffers make fewer.
constexpr std::size_t kBlobWriteBufferBytes = std::size_t{16} << 20;
constexpr std::uint64_t kBlobBytesMin = 1024;

// RocksDB's own log says nothing that a Status does not; only its errors are worth a line.
class QuietLogger : public rocksdb::Logger {
 public:
  QuietLogger() : Logger(rocksdb::InfoLogLevel::ERROR_LEVEL) {}
  using Logger::Logv;
  void Logv(const char*, va_list) override {}
  void Logv(const rocksdb::InfoLogLevel level, const char* format, va_list arguments) override {
    if (level < GetInfoLogLevel() || level == rocksdb::InfoLogLevel::HEADER_LEVEL) return;
    char line[512];
    std::vsnprintf(line, sizeof(line), format, arguments);
    std::string_view text(line);
    while (text.ends_with('\n')) text.remove_suffix(1);
    std::fprintf(stderr, "rocksdb: %.*s\n", static_cast<int>(text.size()), text.data());
  }
};

rocksdb::Slice ToSlice(std::string_view bytes) { return {bytes.data(), bytes.size()}; }
std::string_view ToView(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

Error FromRocks(const rocksdb::Status& status, const std::string& what) {
  const std::string message = what + ": " + status.ToString();
  if (status.IsNotFound()) return {Code::kNotFound, message};
  if (status.IsCorruption()) return {Code::kCorruption, message};
  if (status.IsNoSpace() || status.IsMemoryLimit()) {
    return {Code::kResourceExhausted, message + "; free some, then try again"};
  }
  if (status.IsNotSupported() || status.IsInvalidArgument()) {
    return {Code::kFailedPrecondition, message};
  }
  if (status.IsIOError() || status.IsBusy() || status.IsTryAgain()) {
    return {Code::kUnavailable, message};
  }
  return {Code::kInternal, message};
}

rocksdb::Options MakeOptions(const RocksOptions& wanted) {
  rocksdb::Options options;
  options.create_if_missing = wanted.create;
  // One for all stores, never destroyed: RocksDB's threads outlive a store.
  static const auto& logger = *new std::shared_ptr<rocksdb::Logger>(new QuietLogger);
  options.info_log = logger;
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  // A torn record at the end is a crash; damage before the end must not pass for one.
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  // Several processes share a small machine.
  options.write_buffer_size = wanted.blob_files ? kBlobWriteBufferBytes : kWriteBufferBytes;
  options.max_write_buffer_number = 2;
  options.max_background_jobs = 2;
  options.max_file_opening_threads = 1;
  options.compression = rocksdb::kNoCompression;  // half-precision noise does not compress
  options.keep_log_file_num = 1;
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(kBlockCacheBytes);
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  if (wanted.blob_files) {
    options.enable_blob_files = true;
    options.min_blob_size = kBlobBytesMin;
    // Off: values are immutable, and a follower may still read a blob file.
    options.enable_blob_garbage_collection = false;
  }
  return options;
}

// The owner's store and a follower's view of it.
class RocksStore : public KvStore {
 public:
  using Reopen = std::function<Result<std::shared_ptr<rocksdb::DB>>()>;

  // `reopen` is empty for the owner.
  RocksStore(std::shared_ptr<rocksdb::DB> db, std::string name, Reopen reopen)
      : name_(std::move(name)), reopen_(std::move(reopen)), db_(std::move(db)) {}

  Result<std::string> Get(std::string_view key) override {
    std::string value;
    const rocksdb::Status status = Db()->Get(rocksdb::ReadOptions(), ToSlice(key), &value);
    if (!status.ok()) return FromRocks(status, name_);
    return value;
  }
  Status Put(std::string_view key, std::string_view value, Durability durability) override {
    return Write(durability, [&](rocksdb::WriteBatch& batch) {
      return batch.Put(ToSlice(key), ToSlice(value));
    });
  }
  Status PutAll(const std::vector<std::pair<std::string, std::string>>& entries,
                Durability durability) override {
    return Write(durability, [&](rocksdb::WriteBatch& batch) {
      for (const auto& [key, value] : entries) {
        if (rocksdb::Status status = batch.Put(key, value); !status.ok()) return status;
      }
      return rocksdb::Status::OK();
    });
  }
  Status Delete(std::string_view key) override {
    return Write(Durability::kBuffered,
                 [&](rocksdb::WriteBatch& batch) { return batch.Delete(ToSlice(key)); });
  }
  Status Scan(std::string_view prefix,
              const std::function<bool(std::string_view, std::string_view)>& visit) override {
    const std::shared_ptr<rocksdb::DB> db = Db();
    const std::unique_ptr<rocksdb::Iterator> entry(db->NewIterator(rocksdb::ReadOptions()));
    for (entry->Seek(ToSlice(prefix)); entry->Valid(); entry->Next()) {
      if (!ToView(entry->key()).starts_with(prefix)) break;
      if (!visit(ToView(entry->key()), ToView(entry->value()))) break;
    }
    if (!entry->status().ok()) return FromRocks(entry->status(), name_);
    return {};
  }
  Status CatchUp() override {
    if (!reopen_) return {};
    DD2_TRY_ASSIGN(std::shared_ptr<rocksdb::DB> newer, reopen_());
    const std::lock_guard lock(mutex_);
    db_ = std::move(newer);
    return {};
  }

 private:
  std::shared_ptr<rocksdb::DB> Db() {
    const std::lock_guard lock(mutex_);
    return db_;
  }

  template <class Fill>
  Status Write(Durability durability, const Fill& fill) {
    if (reopen_) {
      return Error(Code::kFailedPrecondition,
                   name_ + " belongs to another process; this one only reads it");
    }
    rocksdb::WriteBatch batch;
    rocksdb::Status status = fill(batch);
    rocksdb::WriteOptions options;
    options.sync = durability == Durability::kSynced;
    if (status.ok()) status = Db()->Write(options, &batch);
    if (!status.ok()) return FromRocks(status, name_);
    return {};
  }

  const std::string name_;
  const Reopen reopen_;
  std::mutex mutex_;  // guards the pointer: RocksDB itself is thread-safe
  std::shared_ptr<rocksdb::DB> db_;
};

// A view of the store as it is now. Not RocksDB's secondary instance: in 7.8 that one reads freed
// memory as soon as a value lies in a blob file.
Result<std::shared_ptr<rocksdb::DB>> OpenView(const std::filesystem::path& folder) {
  rocksdb::Options options = MakeOptions(RocksOptions());
  options.create_if_missing = false;
  options.max_open_files = -1;  // keeps files readable that the owner deletes after a compaction
  // With the column family by name: without, a store that consists of one table is opened by a
  // reader (CompactedDBImpl of 7.8) that finds no value in a blob file.
  rocksdb::DB* db = nullptr;
  std::vector<rocksdb::ColumnFamilyHandle*> families;
  const rocksdb::Status status = rocksdb::DB::OpenForReadOnly(
      options, folder.string(), {{rocksdb::kDefaultColumnFamilyName, options}}, &families, &db);
  if (!status.ok()) return FromRocks(status, "cannot follow " + folder.string());
  delete families.front();  // the store has its own
  return std::shared_ptr<rocksdb::DB>(db);
}

}  // namespace

Result<std::unique_ptr<KvStore>> OpenRocksStore(const std::filesystem::path& folder,
                                                const RocksOptions& options) {
  if (options.create) DD2_TRY(RealFileSystem().MakeDirectories(folder));
  rocksdb::DB* db = nullptr;
  const rocksdb::Status status = rocksdb::DB::Open(MakeOptions(options), folder.string(), &db);
  if (!status.ok()) {
    // RocksDB has no code of its own for a store that is open elsewhere.
    if (status.IsIOError() && status.ToString().find("lock") != std::string::npos) {
      return Error(Code::kUnavailable,
                   folder.string() + " is open in another process (" + status.ToString() + ")");
    }
    return FromRocks(status, "cannot open " + folder.string());
  }
  return std::unique_ptr<KvStore>(
      std::make_unique<RocksStore>(std::shared_ptr<rocksdb::DB>(db), folder.string(), nullptr));
}

Result<std::unique_ptr<KvStore>> OpenRocksFollower(const std::filesystem::path& folder) {
  DD2_TRY_ASSIGN(std::shared_ptr<rocksdb::DB> db, OpenView(folder));
  return std::unique_ptr<KvStore>(std::make_unique<RocksStore>(
      std::move(db), folder.string(), [folder] { return OpenView(folder); }));
}

}  // namespace dd2
