#include "cli/slurm_jobs.h"

#include <algorithm>
#include <cstdlib>

#include "cli/report_data.h"
#include "common/file.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

// While its controller is down, a program of Slurm tries for long.
constexpr std::chrono::seconds kPatience(10);

fs::path JobsFile(const fs::path& run) { return SlurmFolder(run) / "jobs.json"; }

const char* RoleOfMain(const LiveJobs& jobs) { return jobs.nodes.empty() ? "" : " (coordinator)"; }

json::object JobObject(const SlurmJob& job, const char* role) {
  json::object object;
  object["id"] = job.id;
  object["role"] = role;
  object["state"] = job.state;
  object["reason"] = job.reason;
  object["nodes"] = job.nodes;
  object["start"] = job.start;
  object["restarts"] = job.restarts;
  object["description"] = DescribeJob(job);
  return object;
}

}  // namespace

fs::path SlurmFolder(const fs::path& run) { return run / "slurm"; }
fs::path MainScript(const fs::path& run) { return SlurmFolder(run) / "job.sh"; }
fs::path NodeScript(const fs::path& run) { return SlurmFolder(run) / "node.sh"; }
fs::path CancelMark(const fs::path& run) { return SlurmFolder(run) / "cancelled"; }

Result<RunJobs> ReadRunJobs(const fs::path& run) {
  DD2_TRY_ASSIGN(const std::string text, RealFileSystem().Read(JobsFile(run)));
  boost::system::error_code failure;
  const json::value value = json::parse(text, failure);
  const json::object* object = failure ? nullptr : value.if_object();
  const auto main = object == nullptr ? std::nullopt : FindText(*object, "main");
  const json::value* nodes = object == nullptr ? nullptr : object->if_contains("nodes");
  if (!main || nodes == nullptr || !nodes->is_array()) {
    return Error(Code::kCorruption, JobsFile(run).string() + " does not hold main and nodes");
  }
  RunJobs jobs;
  jobs.main = *main;
  for (const json::value& node : nodes->get_array()) {
    if (node.is_string()) jobs.nodes.emplace_back(node.get_string());
  }
  return jobs;
}

Status WriteRunJobs(const fs::path& run, const RunJobs& jobs) {
  json::object object;
  object["main"] = jobs.main;
  json::array& nodes = object["nodes"].emplace_array();
  for (const std::string& node : jobs.nodes) nodes.emplace_back(node);
  return WriteFileAtomically(RealFileSystem(), JobsFile(run), json::serialize(object) + "\n");
}

Status RememberOwnJob(const fs::path& run) {
  const char* const own = std::getenv("SLURM_JOB_ID");
  std::error_code error;
  if (own == nullptr || !fs::exists(MainScript(run), error)) return {};
  RunJobs jobs;
  if (auto before = ReadRunJobs(run)) jobs = std::move(*before);
  if (jobs.main == own) return {};
  jobs.main = own;
  return WriteRunJobs(run, jobs);
}

LiveJobs PickJobs(const RunJobs& jobs, const std::vector<SlurmJob>& queue) {
  LiveJobs live;
  for (const SlurmJob& job : queue) {
    if (job.id == jobs.main) live.main = job;
    const bool node = std::find(jobs.nodes.begin(), jobs.nodes.end(), job.id) != jobs.nodes.end();
    if (node) live.nodes.push_back(job);
  }
  return live;
}

Result<LiveJobs> AskForJobs(const fs::path& run) {
  DD2_TRY_ASSIGN(const RunJobs jobs, ReadRunJobs(run));
  DD2_TRY_ASSIGN(const std::string text, CallSlurm(QueueWords(), kPatience));
  DD2_TRY_ASSIGN(const std::vector<SlurmJob> queue, ParseQueue(text));
  LiveJobs live = PickJobs(jobs, queue);
  const auto ended = RealFileSystem().Read(SlurmFolder(run) / "ended-by");
  live.preempted = ended && ended->starts_with("preemption");
  return live;
}

std::string StateWithJobs(const std::string& state, const LiveJobs& jobs) {
  if (!jobs.main || state == "finished") return state;
  if (jobs.main->state == "PENDING") {
    if (jobs.main->restarts == 0) return "queued";
    return jobs.preempted ? "preempted" : "requeued";
  }
  if (jobs.main->state == "RUNNING" || jobs.main->state == "CONFIGURING") return "starting";
  return state;
}

std::string FormatJobs(const LiveJobs& jobs) {
  std::string out;
  if (jobs.main) {
    out += "  slurm job " + jobs.main->id + RoleOfMain(jobs) + " " + DescribeJob(*jobs.main) + "\n";
  }
  for (const SlurmJob& job : jobs.nodes) {
    out += "  slurm job " + job.id + " (a node) " + DescribeJob(job) + "\n";
  }
  return out;
}

json::array JobsDocument(const LiveJobs& jobs) {
  json::array document;
  if (jobs.main) document.push_back(JobObject(*jobs.main, "main"));
  for (const SlurmJob& job : jobs.nodes) document.push_back(JobObject(job, "node"));
  return document;
}

}  // namespace dd2
