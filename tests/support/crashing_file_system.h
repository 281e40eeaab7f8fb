#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "common/file.h"

namespace dd2 {

// What happens at one operation of a CrashingFileSystem.
enum class FileFault {
  kCrash,       // the machine stops before the operation: every later one fails
  kCrashAfter,  // the operation happens, then the machine stops
  kShortWrite,  // an append writes half of its bytes, then the machine stops (others: kCrash)
  kNoSpace,     // the operation fails with kResourceExhausted, once, an append after half of its
                // bytes; the program goes on
  kIoError,     // the same with kUnavailable
};

// What a stopped machine finds after its restart.
enum class CrashLoss {
  kUnsynced,  // nothing that was not synced: bytes since the file's last Sync(), names since the
              // last SyncDirectory() of their folder
  kData,      // every name, but of files only the bytes that were synced
  kNothing,   // everything (the process was killed, the machine went on)
};

// Forwards to the real file system, keeps book of what is durable, and lets one operation go wrong.
// What lies under `root` when it is made counts as durable. Not thread-safe.
class CrashingFileSystem : public FileSystem {
 public:
  explicit CrashingFileSystem(std::filesystem::path root);

  // Lets list number `index` (from 0) fail with kUnavailable, once.
  void FailListAt(int index) { fail_list_at_ = index; }
  int lists() const { return lists_; }
  // Lets operation number `index` (of those that change something, from 0) go wrong.
  void FailAt(int index, FileFault fault);
  // Operations so far.
  int operations() const { return operations_; }
  bool crashed() const { return crashed_; }
  // Turns the folder into what is found after the restart, and lets operations happen again.
  void Restart(CrashLoss loss);

  Result<std::unique_ptr<WritableFile>> Create(const std::filesystem::path& path) override;
  Result<std::string> Read(const std::filesystem::path& path) override;
  Status Rename(const std::filesystem::path& from, const std::filesystem::path& to) override;
  Status Remove(const std::filesystem::path& path) override;
  Status RemoveTree(const std::filesystem::path& path) override;
  Status MakeDirectories(const std::filesystem::path& path) override;
  Status SyncDirectory(const std::filesystem::path& directory) override;
  Result<std::vector<std::string>> List(const std::filesystem::path& directory) override;

 private:
  friend class CrashingFile;
  // A file or folder, whatever its names are.
  struct Node {
    bool folder = false;
    std::string synced;  // of a file: the bytes that survive
    std::string written;
    std::map<std::string, std::shared_ptr<Node>> synced_names;  // of a folder
    std::map<std::string, std::shared_ptr<Node>> names;
  };
  // Does `effect` unless this operation is the one that goes wrong.
  template <class Effect>
  Status Operation(const Effect& effect);
  // Half of an append may happen before the machine stops.
  Status Append(WritableFile& real, Node& node, std::span<const std::byte> bytes);
  std::shared_ptr<Node> Find(const std::filesystem::path& path) const;
  std::shared_ptr<Node> FindFolder(const std::filesystem::path& path) const;
  static std::shared_ptr<Node> Load(const std::filesystem::path& path);
  static void Store(const Node& node, const std::filesystem::path& path);
  static void Settle(Node& node, CrashLoss loss);

  const std::filesystem::path root_;
  std::shared_ptr<Node> tree_;
  int operations_ = 0;
  int fail_at_ = -1;
  FileFault fault_ = FileFault::kCrash;
  bool crashed_ = false;
  int lists_ = 0;
  int fail_list_at_ = -1;
};

}  // namespace dd2
