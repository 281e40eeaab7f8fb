#include <map>
#include <mutex>
#include <utility>

#include "storage/kv_store.h"

namespace dd2 {
namespace {

class MemStore : public KvStore {
 public:
  Result<std::string> Get(std::string_view key) override {
    const std::lock_guard lock(mutex_);
    const auto found = entries_.find(key);
    if (found == entries_.end()) return Error(Code::kNotFound, "no such key");
    return found->second;
  }
  Status Put(std::string_view key, std::string_view value, Durability) override {
    const std::lock_guard lock(mutex_);
    entries_.insert_or_assign(std::string(key), std::string(value));
    return {};
  }
  Status PutAll(const std::vector<std::pair<std::string, std::string>>& entries,
                Durability) override {
    const std::lock_guard lock(mutex_);
    for (const auto& [key, value] : entries) entries_.insert_or_assign(key, value);
    return {};
  }
  Status Delete(std::string_view key) override {
    const std::lock_guard lock(mutex_);
    if (const auto found = entries_.find(key); found != entries_.end()) entries_.erase(found);
    return {};
  }
  Status Scan(std::string_view prefix,
              const std::function<bool(std::string_view, std::string_view)>& visit) override {
    // A copy, so that `visit` may call back into the store.
    const auto entries = [this] {
      const std::lock_guard lock(mutex_);
      return entries_;
    }();
    for (auto entry = entries.lower_bound(prefix);
         entry != entries.end() && entry->first.starts_with(prefix); ++entry) {
      if (!visit(entry->first, entry->second)) break;
    }
    return {};
  }
  Status CatchUp() override { return {}; }

 private:
  std::mutex mutex_;
  std::map<std::string, std::string, std::less<>> entries_;
};

}  // namespace

std::unique_ptr<KvStore> NewMemStore() { return std::make_unique<MemStore>(); }

}  // namespace dd2
