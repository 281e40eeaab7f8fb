#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "common/result.h"

namespace dd2 {

// How `dd2-worker run` was started by its agent's mpirun.
struct WorkerOptions {
  std::filesystem::path run;  // the run folder
  std::string coordinator_host;
  std::uint16_t coordinator_port = 0;
  std::string domain;  // the failure domain this process dies with
  int local_rank = 0;
  int local_size = 1;
  int first_device = 0;             // GPU of local rank 0; the others take those behind it
  std::filesystem::path snapshots;  // folder in shared memory; empty: there is none
  std::string run_id;               // whose snapshots they are
};

enum class WorkerOutcome : std::uint8_t {
  kFinished,  // the run is done
  kStopped,   // stopped on request, after a checkpoint
};

// Joins the run and works through its leases until the run is finished or stopped. Blocks; owns the
// compute thread. On an error the coordinator has been told why.
Result<WorkerOutcome> RunWorker(const WorkerOptions& options);

}  // namespace dd2
