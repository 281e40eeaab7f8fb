#pragma once

#include "common/result.h"

namespace dd2 {

// Exit codes of dd2, dd2-coordinator, dd2-agent and dd2-worker. Documented for users: never
// renumber.
enum ExitCode : int {
  kExitOk = 0,        // done, or a command's question was answered
  kExitInternal = 1,  // our bug, or an error that none of the others describes
  kExitUsage = 2,     // command line or configuration is wrong; all problems were printed
  kExitAlreadyStarted =
      3,                 // the run folder is in use, or holds a started run and --resume is absent
  kExitCannotStart = 4,  // used port, missing mpirun, folder not writable, disk full
  kExitRunFailed = 5,    // the run ended with an error; the message says how to resume
  kExitStopped = 6,      // stopped on request after a checkpoint; --resume continues it
  kExitNotFound = 7,     // no such run folder, checkpoint or file
  kExitBadData = 8,      // a weight file, checkpoint or cache failed its check
  kExitUnreachable = 9,  // the run's coordinator does not answer (status, pause, ...)
  kExitDoNotRestart = 10,  // the same failure again and again: a restart would only repeat it
  kExitDiskFull = 11,  // the coordinator only: the next one waits for space and takes the run over
};

// The exit code of a program that ends because of `error`.
constexpr ExitCode ExitCodeFor(Code code) {
  switch (code) {
    case Code::kInvalidArgument: return kExitUsage;
    case Code::kNotFound: return kExitNotFound;
    case Code::kCorruption: return kExitBadData;
    case Code::kFailedPrecondition:
    case Code::kResourceExhausted: return kExitCannotStart;
    case Code::kUnavailable:
    case Code::kAborted:
    case Code::kDeadlineExceeded: return kExitRunFailed;
    case Code::kInternal: return kExitInternal;
  }
  return kExitInternal;
}

}  // namespace dd2
