#include "cli/doctor.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "cli/format.h"
#include "cli/report_data.h"
#include "common/timeouts.h"

namespace dd2 {
namespace {

namespace json = boost::json;

constexpr std::int64_t kPortsMin = 4096;
constexpr std::int64_t kFilesReserve = 256;  // logs, RocksDB, HTTP
constexpr std::int64_t kProcessesMin = 4096;
constexpr double kWriteRateMin = 50e6;  // bytes a second
constexpr double kStartMax = 10;        // seconds
constexpr double kSkewFine = 1;         // seconds
constexpr double kSkewMax = 5;

Finding Ok(std::string what, std::string finding) {
  return {Grade::kOk, std::move(what), std::move(finding), "", ""};
}
Finding Warn(std::string what, std::string finding, std::string advice) {
  return {Grade::kWarn, std::move(what), std::move(finding), std::move(advice), ""};
}
Finding Bad(std::string what, std::string finding, std::string advice) {
  return {Grade::kFail, std::move(what), std::move(finding), std::move(advice), ""};
}

std::string Seconds(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f s", seconds);
  return text;
}

const char* GradeName(Grade grade) {
  return grade == Grade::kOk ? "ok" : grade == Grade::kWarn ? "warn" : "fail";
}

void JudgePrograms(const MachineFacts& facts, Findings& out) {
  for (const char* name : {"dd2-coordinator", "dd2-agent", "dd2-worker"}) {
    if (!facts.programs.contains(name)) {
      out.push_back(Bad(name, "is not beside dd2",
                        "install all programs of one build into one folder (scripts/build)"));
    }
  }
  if (facts.programs.size() >= 3) out.push_back(Ok("programs", "version " + facts.version));
  if (!facts.mpirun) {
    out.push_back(Bad("mpirun", facts.mpirun.error().message(),
                      "install Open MPI 4.1 or later (Debian: apt-get install openmpi-bin), or put "
                      "its folder into PATH"));
  } else if (!facts.mpirun_start) {
    out.push_back(Bad("mpirun",
                      "does not start two processes: " + facts.mpirun_start.error().message(),
                      "try `mpirun -n 2 true` by hand on this machine"));
  } else {
    const std::string finding = *facts.mpirun + ", starts two processes";
    out.push_back(*facts.mpirun_start < kStartMax
                      ? Ok("mpirun", finding)
                      : Warn("mpirun", finding + " in " + Seconds(*facts.mpirun_start),
                             "look for a slow file system under it, or a name server that does not "
                             "answer"));
  }
}

void JudgeNetwork(const MachineFacts& facts, const Needs& needs, Findings& out) {
  if (!facts.address) {
    out.push_back(Bad("address", facts.address.error().message(), "set api.host (--host)"));
  } else {
    out.push_back(Ok("address", *facts.address + " can be listened on"));
  }
  for (const auto& [name, value] : facts.interface_variables) {
    const bool excluded = value.starts_with("^");
    const bool there = std::any_of(facts.interfaces.begin(), facts.interfaces.end(),
                                   [&value = value](const std::string& one) {
                                     return one == value || one.starts_with(value);
                                   });
    if (there || excluded || value.find(',') != std::string::npos) {
      out.push_back(Ok(name, value));
    } else {
      out.push_back(Bad(name, "names '" + value + "', which this machine does not have",
                        "unset it, or name one of its interfaces"));
    }
  }
  if (facts.port_range < std::max<std::int64_t>(kPortsMin, needs.connections)) {
    out.push_back(Warn("ports", std::to_string(facts.port_range) + " for outgoing connections",
                       "widen net.ipv4.ip_local_port_range"));
  } else {
    out.push_back(Ok("ports", std::to_string(facts.port_range) + " for outgoing connections"));
  }
}

void JudgeLimits(const MachineFacts& facts, const Needs& needs, Findings& out) {
  const auto limit = [](std::int64_t value) {
    return value < 0 ? std::string("no limit") : "limit " + std::to_string(value);
  };
  const std::int64_t files = needs.connections + kFilesReserve;
  if (facts.files_limit >= 0 && facts.files_limit < files) {
    out.push_back(Bad("open files",
                      limit(facts.files_limit) + ", a coordinator needs " + std::to_string(files),
                      "raise it: ulimit -n, or LimitNOFILE of slurmd"));
  } else {
    out.push_back(Ok("open files", limit(facts.files_limit)));
  }
  if (facts.processes_limit >= 0 && facts.processes_limit < kProcessesMin) {
    out.push_back(Warn("processes", limit(facts.processes_limit), "raise it: ulimit -u"));
  } else {
    out.push_back(Ok("processes", limit(facts.processes_limit)));
  }
  const std::int64_t shared = facts.shared_memory_bytes;
  if (shared < 0) {
    out.push_back(Warn("/dev/shm", "is not there",
                       "without it no state outlives a worker (checkpoint.memory_every)"));
  } else if (shared < needs.snapshot_bytes) {
    out.push_back(Warn("/dev/shm",
                       FormatBytes(shared) + " free, snapshots of the ranks need about " +
                           FormatBytes(needs.snapshot_bytes),
                       "make it larger (mount -o remount,size=...), or set "
                       "checkpoint.memory_every to 0"));
  } else {
    out.push_back(Ok("/dev/shm", FormatBytes(shared) + " free"));
  }
  out.push_back(facts.clock_synchronised
                    ? Ok("clock", "is synchronised")
                    : Warn("clock", "is not known to be synchronised",
                           "run an NTP client: logs of several nodes are compared by time"));
}

void JudgeFolder(const MachineFacts& facts, const Needs& needs, Findings& out) {
  if (!facts.write_rate) {
    out.push_back(Bad("run folder", facts.write_rate.error().message(),
                      "choose another with --run, or make room"));
    return;
  }
  const std::string rate =
      FormatBytes(static_cast<std::int64_t>(*facts.write_rate)) + "/s written and synced";
  out.push_back(*facts.write_rate < kWriteRateMin
                    ? Warn("disk", rate, "checkpoints will take long: choose a faster one")
                    : Ok("disk", rate));
  const std::string free = FormatBytes(facts.free_bytes) + " free";
  if (facts.free_bytes < needs.checkpoint_bytes) {
    out.push_back(Bad(
        "space",
        free + ", the checkpoints that are kept need about " + FormatBytes(needs.checkpoint_bytes),
        "free some, or lower checkpoint.keep_last"));
  } else {
    out.push_back(Ok("space", free));
  }
  out.push_back(facts.lock ? Ok("locks", "work in the run folder")
                           : Bad("locks", facts.lock.error().message(),
                                 "two coordinators could work on one run: mount the file system "
                                 "with locks (NFS 4, Lustre with flock)"));
}

std::string Value(const std::map<std::string, std::string>& values, const std::string& key) {
  const auto found = values.find(key);
  return found == values.end() ? "" : found->second;
}

// The number at the beginning of "300 sec"; -1: none.
int NumberIn(const std::string& text) {
  int number = -1;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

void JudgePreemption(const SlurmFacts& facts, Findings& out) {
  const std::string type = Value(facts.config, "PreemptType");
  std::string mode = Value(facts.partition, "PreemptMode");
  if (mode.empty()) mode = Value(facts.config, "PreemptMode");
  if (type.empty() || type == "preempt/none" || type == "(null)" || mode == "OFF") {
    out.push_back(Ok("preemption", "none"));
    return;
  }
  if (mode.find("SUSPEND") != std::string::npos || mode.find("GANG") != std::string::npos) {
    out.push_back(Warn("preemption", "suspends jobs (" + mode + ")",
                       "suspended workers count as lost after timeouts.heartbeat_expiry: ask for a "
                       "partition that queues jobs again"));
    return;
  }
  const int grace = NumberIn(Value(facts.partition, "GraceTime"));
  const std::string finding = mode + ", grace time " + std::to_string(std::max(grace, 0)) + " s";
  out.push_back(grace > 0 ? Ok("preemption", finding)
                          : Warn("preemption", finding,
                                 "no time for a checkpoint: ask for a GraceTime of a few steps, or "
                                 "set checkpoint.interval"));
}

}  // namespace

Findings JudgeMachine(const MachineFacts& facts, const Needs& needs) {
  Findings out;
  JudgePrograms(facts, out);
  JudgeNetwork(facts, needs, out);
  out.push_back(
      Ok("devices", facts.devices.empty() ? "none: it computes on the CPU" : facts.devices));
  JudgeLimits(facts, needs, out);
  JudgeFolder(facts, needs, out);
  return out;
}

Findings JudgeTimeouts(const Timeouts& timeouts) {
  Findings out;
  for (const TimeoutConflict& conflict : CheckTimeouts(timeouts)) {
    out.push_back(Bad("timeouts." + conflict.setting, conflict.problem, "change one of them"));
  }
  if (out.empty()) out.push_back(Ok("timeouts", "fit together"));
  return out;
}

std::map<std::string, std::string> ParseScontrol(std::string_view text) {
  // "Key = value" a line (config), or "Key=value Key=value" (partition).
  std::map<std::string, std::string> values;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (const std::size_t split = line.find(" = "); split != std::string_view::npos) {
      std::string_view key = line.substr(0, split);
      key = key.substr(0, key.find_last_not_of(' ') + 1);
      values[std::string(key)] = line.substr(split + 3);
      continue;
    }
    while (!line.empty()) {
      line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
      const std::string_view word = line.substr(0, line.find(' '));
      line.remove_prefix(word.size());
      const std::size_t split = word.find('=');
      if (split != std::string_view::npos) {
        values[std::string(word.substr(0, split))] = word.substr(split + 1);
      }
    }
  }
  return values;
}

Findings JudgeSlurm(const SlurmFacts& facts, int nodes_wanted, const Timeouts& timeouts) {
  Findings out;
  out.push_back(Ok("slurm", "version " + Value(facts.config, "SLURM_VERSION") + ", cluster " +
                                Value(facts.config, "ClusterName")));
  const std::string partition = Value(facts.partition, "PartitionName");
  const std::string state = Value(facts.partition, "State");
  if (state != "UP") {
    out.push_back(Bad("partition", partition + " is " + state, "name another with --partition"));
  } else if (facts.nodes_up < nodes_wanted) {
    out.push_back(Bad("nodes",
                      std::to_string(facts.nodes_up) + " of partition " + partition +
                          " can be had, " + std::to_string(nodes_wanted) + " are wanted",
                      "ask for fewer, or name another partition"));
  } else {
    out.push_back(Ok("nodes", std::to_string(facts.nodes_up) + " of partition " + partition +
                                  " can be had, time limit " + Value(facts.partition, "MaxTime")));
  }
  out.push_back(Value(facts.config, "JobRequeue") == "1"
                    ? Ok("requeue", "is allowed")
                    : Warn("requeue", "is off by default (JobRequeue=0)",
                           "our scripts ask for it; if the site forbids it, a run ends with each "
                           "job: submit it again with --resume"));
  JudgePreemption(facts, out);
  const int kill = NumberIn(Value(facts.config, "KillWait"));
  out.push_back(kill >= 0 && kill < 10
                    ? Warn("KillWait", std::to_string(kill) + " s",
                           "processes are killed before they can end by themselves")
                    : Ok("KillWait", std::to_string(kill) + " s"));
  const int slurmd = NumberIn(Value(facts.config, "SlurmdTimeout"));
  const auto away = std::chrono::duration_cast<std::chrono::seconds>(timeouts.coordinator_away);
  const std::string lost = "a lost batch host is replaced after about " +
                           std::to_string(std::max<long>(slurmd, away.count())) +
                           " s (SlurmdTimeout " + std::to_string(slurmd) + " s, coordinator_away " +
                           std::to_string(away.count()) + " s)";
  out.push_back(slurmd > 600 ? Warn("lost node", lost,
                                    "ask for a shorter SlurmdTimeout, or use "
                                    "--shape job-per-node")
                             : Ok("lost node", lost));
  return out;
}

Findings JudgeNodes(const std::vector<NodeFacts>& nodes, int wanted, const std::string& version) {
  Findings out;
  const auto add = [&out](const std::string& node, Finding finding) {
    finding.node = node;
    out.push_back(std::move(finding));
  };
  if (static_cast<int>(nodes.size()) < wanted) {
    out.push_back(Bad("shared folder",
                      std::to_string(nodes.size()) + " of " + std::to_string(wanted) +
                          " nodes have written what is seen here",
                      "the run folder must lie on a file system that all nodes and this machine "
                      "share"));
  }
  for (const NodeFacts& node : nodes) {
    for (const Finding& finding : node.findings) add(node.node, finding);
    add(node.node, node.saw_folder ? Ok("shared folder", "is the same as here")
                                   : Bad("shared folder", "does not show what was written here",
                                         "the run folder must lie on a file system that all nodes "
                                         "share"));
    if (node.version != version) {
      add(node.node, Bad("version", node.version + " there, " + version + " here",
                         "install one build on all nodes"));
    }
    if (!node.clock_ahead) {
      add(node.node,
          Bad("network", "the first node cannot be reached: " + node.clock_ahead.error().message(),
              "choose the interface with --host; look for a firewall"));
      continue;
    }
    const double skew = *node.clock_ahead;
    const std::string finding = "reaches the first node, its clock is " + Seconds(std::abs(skew)) +
                                (skew < 0 ? " behind" : " ahead");
    if (std::abs(skew) > kSkewMax) {
      add(node.node, Bad("network", finding, "synchronise the clocks (NTP)"));
    } else if (std::abs(skew) > kSkewFine) {
      add(node.node, Warn("network", finding, "synchronise the clocks (NTP)"));
    } else {
      add(node.node, Ok("network", "reaches the first node, clocks agree within 1 s"));
    }
  }
  return out;
}

Findings Merge(Findings findings) {
  Findings merged;
  for (Finding& finding : findings) {
    const auto same = std::find_if(merged.begin(), merged.end(), [&](const Finding& one) {
      return one.grade == finding.grade && one.what == finding.what &&
             one.finding == finding.finding && !one.node.empty() && !finding.node.empty();
    });
    if (same == merged.end()) {
      merged.push_back(std::move(finding));
    } else {
      same->node += "," + finding.node;
    }
  }
  std::stable_sort(merged.begin(), merged.end(),
                   [](const Finding& a, const Finding& b) { return a.grade < b.grade; });
  return merged;
}

std::string FormatFindings(const Findings& findings) {
  std::string out;
  for (const Finding& one : findings) {
    out += PadRight(GradeName(one.grade), 5) + PadRight(one.what, 16) + one.finding +
           (one.node.empty() ? "" : "  [" + one.node + "]") + "\n";
    if (!one.advice.empty()) out += "     -> " + one.advice + "\n";
  }
  return out;
}

json::object FindingsDocument(const Findings& findings) {
  json::object document;
  json::array& list = document["findings"].emplace_array();
  for (const Finding& one : findings) {
    json::object object;
    object["grade"] = GradeName(one.grade);
    object["what"] = one.what;
    object["finding"] = one.finding;
    object["advice"] = one.advice;
    object["node"] = one.node;
    list.push_back(std::move(object));
  }
  document["ok"] = !AnyFailed(findings);
  return document;
}

bool AnyFailed(const Findings& findings) {
  return std::any_of(findings.begin(), findings.end(),
                     [](const Finding& one) { return one.grade == Grade::kFail; });
}

json::object ToJson(const NodeFacts& facts) {
  json::object object = FindingsDocument(facts.findings);
  object["node"] = facts.node;
  object["version"] = facts.version;
  object["saw_folder"] = facts.saw_folder;
  if (facts.clock_ahead) {
    object["clock_ahead"] = *facts.clock_ahead;
  } else {
    object["unreachable"] = facts.clock_ahead.error().message();
  }
  return object;
}

Result<NodeFacts> NodeFactsFrom(std::string_view text) {
  boost::system::error_code failure;
  const json::value value = json::parse(json::string_view(text), failure);
  const json::object* object = failure ? nullptr : value.if_object();
  const auto node = object == nullptr ? std::nullopt : FindText(*object, "node");
  const json::value* list = object == nullptr ? nullptr : object->if_contains("findings");
  if (!node || list == nullptr || !list->is_array()) {
    return Error(Code::kCorruption, "no report of a node: " + std::string(text.substr(0, 200)));
  }
  NodeFacts facts;
  facts.node = *node;
  facts.version = FindText(*object, "version").value_or("");
  const json::value* saw = object->if_contains("saw_folder");
  facts.saw_folder = saw != nullptr && *saw == true;
  if (const auto ahead = FindNumber(*object, "clock_ahead")) {
    facts.clock_ahead = *ahead;
  } else {
    facts.clock_ahead =
        Error(Code::kUnavailable, FindText(*object, "unreachable").value_or("it did not say"));
  }
  for (const json::value& item : list->get_array()) {
    const json::object* one = item.if_object();
    if (one == nullptr) continue;
    Finding finding;
    const std::string grade = FindText(*one, "grade").value_or("fail");
    finding.grade = grade == "ok" ? Grade::kOk : grade == "warn" ? Grade::kWarn : Grade::kFail;
    finding.what = FindText(*one, "what").value_or("");
    finding.finding = FindText(*one, "finding").value_or("");
    finding.advice = FindText(*one, "advice").value_or("");
    facts.findings.push_back(std::move(finding));
  }
  return facts;
}

}  // namespace dd2
