#include "worker/agent/slurm_job.h"

namespace dd2 {

std::vector<std::string> TellScript(const std::string& job) {
  return {"scancel", "--batch", "--signal=USR1", job};
}

std::vector<std::string> RequeueOrphan(const std::string& job) {
  static constexpr const char* kScript =
      "host=$(scontrol show job \"$1\" | sed -n 's/^ *BatchHost=//p') && [ -n \"$host\" ] &&"
      " case $(sinfo -h -n \"$host\" -o %T) in down*|*'*') scontrol requeue \"$1\" ;; *) false ;; "
      "esac";
  return {"bash", "-c", kScript, "dd2-agent", job};
}

}  // namespace dd2
