#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "common/asio.h"
#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/file.h"
#include "common/result.h"
#include "coordinator/control_service.h"
#include "coordinator/run_core.h"
#include "coordinator/run_state.h"
#include "coordinator/store_service.h"
#include "storage/journal.h"

namespace dd2 {

struct LoopOptions {
  std::filesystem::path run_folder;
  std::string secret;              // content of RUN/secret
  std::string host = "127.0.0.1";  // of the control port
  std::uint16_t port = 0;          // 0: any free one
};

// Drives RunCore: what sockets, people and the clock say goes in, what it wants done is done in its
// order: journal records are synced before any later action, so nothing is acted on that a restart
// would not know.
//
// Owned by main; everything given by reference must outlive it. Control thread only: journal writes
// and manifests are short and block the thread.
class CoordinatorLoop final : public RunControl {
 public:
  CoordinatorLoop(asio::io_context& context, FileSystem& files, const Clock& clock,
                  Journal& journal, CoreOptions core, CoreStart start, LoopOptions options);

  // Told of everything that happens; call before Run().
  void AddObserver(RunObserver& observer);
  // Opens the control port; its number. kUnavailable: it is taken.
  Result<std::uint16_t> Listen();
  // Works until the run has ended and everybody is gone; the exit code. Listen() comes first.
  Task<ExitCode> Run();
  // SIGINT, SIGTERM: the first stops with a checkpoint, the second at once.
  void OnSignal(const std::string& name);

  Status Pause(const std::string& by) override;
  Status Resume(const std::string& by) override;
  Status RequestCheckpoint(const std::string& by) override;
  Status Cancel(const std::string& by) override;
  Status Drain(const std::string& domain, const std::string& by) override;
  const RunState& state() const override { return core_.state(); }
  const RunState& ListMembers() override { return core_.ListMembers(Now()); }

 private:
  Moment Now() const;
  ControlHandlers Handlers();
  Status PerformWish(Result<Actions> actions);
  // An error: an action failed, and what the core made of that was done instead.
  Status Perform(Actions actions);
  // One action that is no journal record.
  Status Do(const Action& action);
  Status WriteResult();
  void Notify();

  FileSystem& files_;
  const Clock& clock_;
  Journal& journal_;
  const LoopOptions options_;
  RunCore core_;
  StoreService store_;
  ControlService control_;
  asio::steady_timer tick_;
  std::vector<RunObserver*> observers_;
  std::uint64_t notified_version_ = 0;
  int signals_ = 0;
  bool ended_ = false;
  ExitCode exit_code_ = kExitInternal;
};

}  // namespace dd2
