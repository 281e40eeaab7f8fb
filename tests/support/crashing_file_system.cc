#include "tests/support/crashing_file_system.h"

#include <fstream>
#include <iterator>
#include <utility>

#include "common/check.h"

namespace dd2 {

namespace fs = std::filesystem;

namespace {

Error Stopped() { return {Code::kUnavailable, "the machine stopped"}; }

std::string BytesOf(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

std::string_view View(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

class CrashingFile : public WritableFile {
 public:
  CrashingFile(CrashingFileSystem& files, std::unique_ptr<WritableFile> real,
               std::shared_ptr<CrashingFileSystem::Node> node)
      : files_(files), real_(std::move(real)), node_(std::move(node)) {}

  Status Append(std::span<const std::byte> bytes) override {
    return files_.Append(*real_, *node_, bytes);
  }
  Status Sync() override {
    return files_.Operation([&]() -> Status {
      node_->synced = node_->written;
      return real_->Sync();
    });
  }
  Status Close() override {
    return files_.Operation([&] { return real_->Close(); });
  }

 private:
  CrashingFileSystem& files_;
  std::unique_ptr<WritableFile> real_;
  std::shared_ptr<CrashingFileSystem::Node> node_;
};

CrashingFileSystem::CrashingFileSystem(fs::path root)
    : root_(std::move(root)), tree_(Load(root_)) {}

void CrashingFileSystem::FailAt(int index, FileFault fault) {
  fail_at_ = index;
  fault_ = fault;
}

template <class Effect>
Status CrashingFileSystem::Operation(const Effect& effect) {
  if (crashed_) return Stopped();
  if (operations_++ != fail_at_) return effect();
  switch (fault_) {
    case FileFault::kNoSpace: return Error(Code::kResourceExhausted, "no space left");
    case FileFault::kIoError: return Error(Code::kUnavailable, "input/output error");
    case FileFault::kCrashAfter: static_cast<void>(effect()); break;
    case FileFault::kCrash:
    case FileFault::kShortWrite: break;
  }
  crashed_ = true;
  return Stopped();
}

Status CrashingFileSystem::Append(WritableFile& real, Node& node,
                                  std::span<const std::byte> bytes) {
  const bool here = !crashed_ && operations_ == fail_at_ &&
                    (fault_ == FileFault::kShortWrite || fault_ == FileFault::kNoSpace);
  if (here) {
    const auto half = bytes.first(bytes.size() / 2);
    node.written += View(half);
    static_cast<void>(real.Append(half));
  }
  return Operation([&]() -> Status {
    node.written += View(bytes);
    return real.Append(bytes);
  });
}

Result<std::unique_ptr<WritableFile>> CrashingFileSystem::Create(const fs::path& path) {
  std::unique_ptr<WritableFile> file;
  DD2_TRY(Operation([&]() -> Status {
    DD2_TRY_ASSIGN(auto real, RealFileSystem().Create(path));
    std::shared_ptr<Node>& node = FindFolder(path.parent_path())->names[path.filename().string()];
    // An existing file is truncated, and keeps what was synced until the next Sync().
    if (node == nullptr) node = std::make_shared<Node>();
    node->written.clear();
    file = std::make_unique<CrashingFile>(*this, std::move(real), node);
    return {};
  }));
  return file;
}

Result<std::string> CrashingFileSystem::Read(const fs::path& path) {
  if (crashed_) return Stopped();
  return RealFileSystem().Read(path);
}

Status CrashingFileSystem::Rename(const fs::path& from, const fs::path& to) {
  return Operation([&]() -> Status {
    DD2_TRY(RealFileSystem().Rename(from, to));
    auto moved = FindFolder(from.parent_path())->names.extract(from.filename().string());
    FindFolder(to.parent_path())->names[to.filename().string()] = moved.mapped();
    return {};
  });
}

Status CrashingFileSystem::Remove(const fs::path& path) {
  return Operation([&]() -> Status {
    DD2_TRY(RealFileSystem().Remove(path));
    FindFolder(path.parent_path())->names.erase(path.filename().string());
    return {};
  });
}

Status CrashingFileSystem::RemoveTree(const fs::path& path) {
  // As many operations as names: a machine can stop between any two of them.
  const std::shared_ptr<Node> node = Find(path);
  if (node != nullptr && node->folder) {
    const std::map<std::string, std::shared_ptr<Node>> names = node->names;
    for (const auto& [name, child] : names) DD2_TRY(RemoveTree(path / name));
  }
  return Operation([&]() -> Status {
    DD2_TRY(RealFileSystem().RemoveTree(path));
    if (node != nullptr) FindFolder(path.parent_path())->names.erase(path.filename().string());
    return {};
  });
}

Status CrashingFileSystem::MakeDirectories(const fs::path& path) {
  if (path == root_ || Find(path) != nullptr) return crashed_ ? Status(Stopped()) : Status();
  DD2_TRY(MakeDirectories(path.parent_path()));
  return Operation([&]() -> Status {
    DD2_TRY(RealFileSystem().MakeDirectories(path));
    const auto folder = std::make_shared<Node>();
    folder->folder = true;
    FindFolder(path.parent_path())->names[path.filename().string()] = folder;
    return {};
  });
}

Status CrashingFileSystem::SyncDirectory(const fs::path& directory) {
  return Operation([&]() -> Status {
    DD2_TRY(RealFileSystem().SyncDirectory(directory));
    const std::shared_ptr<Node> folder = FindFolder(directory);
    folder->synced_names = folder->names;
    return {};
  });
}

Result<std::vector<std::string>> CrashingFileSystem::List(const fs::path& directory) {
  if (crashed_) return Stopped();
  if (lists_++ == fail_list_at_) return Error(Code::kUnavailable, "input/output error");
  return RealFileSystem().List(directory);
}

void CrashingFileSystem::Restart(CrashLoss loss) {
  Settle(*tree_, loss);
  fs::remove_all(root_);
  Store(*tree_, root_);
  crashed_ = false;
  fail_at_ = -1;
  operations_ = 0;
}

std::shared_ptr<CrashingFileSystem::Node> CrashingFileSystem::Find(const fs::path& path) const {
  std::shared_ptr<Node> node = tree_;
  for (const fs::path& part : path.lexically_relative(root_)) {
    if (part == ".") continue;
    const auto found = node->names.find(part.string());
    if (found == node->names.end()) return nullptr;
    node = found->second;
  }
  return node;
}

std::shared_ptr<CrashingFileSystem::Node> CrashingFileSystem::FindFolder(
    const fs::path& path) const {
  std::shared_ptr<Node> node = Find(path);
  DD2_CHECK_MSG(node != nullptr && node->folder, path.string() + " is no folder of the test");
  return node;
}

std::shared_ptr<CrashingFileSystem::Node> CrashingFileSystem::Load(const fs::path& path) {
  auto node = std::make_shared<Node>();
  node->folder = fs::is_directory(path);
  if (!node->folder) {
    node->written = node->synced = BytesOf(path);
    return node;
  }
  for (const fs::directory_entry& entry : fs::directory_iterator(path)) {
    node->names[entry.path().filename().string()] = Load(entry.path());
  }
  node->synced_names = node->names;
  return node;
}

void CrashingFileSystem::Store(const Node& node, const fs::path& path) {
  if (!node.folder) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << node.written;
    return;
  }
  fs::create_directory(path);
  for (const auto& [name, child] : node.names) Store(*child, path / name);
}

void CrashingFileSystem::Settle(Node& node, CrashLoss loss) {
  if (loss != CrashLoss::kNothing) node.written = node.synced;
  if (loss == CrashLoss::kUnsynced) node.names = node.synced_names;
  node.synced = node.written;
  for (const auto& [name, child] : node.names) Settle(*child, loss);
  node.synced_names = node.names;
}

}  // namespace dd2
