#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <thread>

#include "cli/commands.h"
#include "cli/http_client.h"
#include "cli/log_filter.h"
#include "cli/report_data.h"
#include "cli/run_files.h"
#include "cli/slurm_jobs.h"
#include "common/exit_codes.h"
#include "common/json.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

constexpr std::chrono::milliseconds kPoll(300);

struct LogsArguments {
  std::string run;
  int rank = -1;
  std::string domain;
  std::string agent;
  bool job = false;
  int lines = 40;
  bool follow = false;
};

// A file of RUN/logs, and whose lines of it are wanted.
struct LogPlace {
  fs::path file;
  std::optional<int> local_rank;
};

// Where a rank works, or worked last.
struct RankPlace {
  std::string domain;
  int local_rank = 0;
};

Result<std::vector<RankPlace>> LiveRanks(const fs::path& run) {
  DD2_TRY_ASSIGN(const json::object document, AskRun(run, "/api/v1/members"));
  const json::value* members = document.if_contains("members");
  std::vector<RankPlace> ranks;
  if (members == nullptr || !members->is_array()) return ranks;
  for (const json::value& value : members->get_array()) {
    const json::object* member = value.if_object();
    const auto rank = member == nullptr ? std::nullopt : FindNumber(*member, "rank");
    if (!rank || *rank < 0) continue;
    if (ranks.size() < static_cast<std::size_t>(*rank) + 1)
      ranks.resize(static_cast<std::size_t>(*rank) + 1);
    ranks[static_cast<std::size_t>(*rank)] = {
        FindText(*member, "domain").value_or(""),
        static_cast<int>(FindNumber(*member, "local_rank").value_or(0))};
  }
  return ranks;
}

// kNotFound: it has, or had, no such rank.
Result<RankPlace> FindRank(const fs::path& run, int rank) {
  Result<std::vector<RankPlace>> ranks = LiveRanks(run);
  if (!ranks || ranks->empty()) {
    DD2_TRY_ASSIGN(const RunFiles files, ReadRunFiles(run));
    ranks = std::vector<RankPlace>();
    for (const auto& member : files.members) ranks->push_back({member.domain, member.local_rank});
  }
  const auto index = static_cast<std::size_t>(rank);
  if (index < ranks->size()) return (*ranks)[index];
  return Error(Code::kNotFound, run.string() + " has no rank " + std::to_string(rank) + ": " +
                                    (ranks->empty() ? "its workers have never worked together"
                                                    : "its last generation had ranks 0 to " +
                                                          std::to_string(ranks->size() - 1)));
}

// The files that there are, for a message.
std::string Present(const fs::path& logs) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(logs, error)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text.empty() ? "nothing" : text;
}

Result<LogPlace> FindLog(const LogsArguments& arguments) {
  const fs::path run = arguments.run;
  const fs::path logs = run / "logs";
  std::error_code error;
  if (!fs::is_directory(run, error)) {
    return Error(Code::kNotFound, run.string() + ": no such run folder");
  }
  LogPlace place;
  place.file = logs / "coordinator.log";
  if (arguments.rank >= 0) {
    DD2_TRY_ASSIGN(const RankPlace rank, FindRank(run, arguments.rank));
    place.file = logs / ("domain-" + rank.domain + ".log");
    place.local_rank = rank.local_rank;
  } else if (!arguments.domain.empty()) {
    place.file = logs / ("domain-" + arguments.domain + ".log");
  } else if (!arguments.agent.empty()) {
    place.file = logs / ("agent-" + arguments.agent + ".log");
  } else if (arguments.job) {
    DD2_TRY_ASSIGN(const RunJobs jobs, ReadRunJobs(run));
    place.file = logs / ("slurm-" + jobs.main + ".out");
  }
  if (fs::exists(place.file, error)) return place;
  return Error(Code::kNotFound, "there is no " + place.file.string() + " (yet). " + logs.string() +
                                    " has " + Present(logs));
}

void Print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

int ShowLog(const LogsArguments& arguments) {
  const auto place = FindLog(arguments);
  if (!place) return Fail(place.error());
  std::ifstream file(place->file, std::ios::binary);
  if (!file) return Fail(Error(Code::kUnavailable, "cannot read " + place->file.string()));
  std::fprintf(stderr, "%s\n", place->file.c_str());
  LogFilter filter(place->local_rank);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  Print(LastLines(filter.Take(text), static_cast<std::size_t>(arguments.lines)));
  // Ctrl-C ends it by the signal's default action.
  while (arguments.follow) {
    std::this_thread::sleep_for(kPoll);
    file.clear();
    text.assign((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    Print(filter.Take(text));
  }
  return kExitOk;
}

}  // namespace

void AddLogsCommand(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand(
      "logs", "The end of a log of a run: its coordinator's, or a rank's wherever it works");
  auto arguments = std::make_shared<LogsArguments>();
  command->add_option("run", arguments->run, "Folder of the run")->required()->type_name("RUN");
  CLI::Option_group* which = command->add_option_group("which");
  which->add_option("--rank", arguments->rank, "Of the process that is this rank, or was it last")
      ->type_name("R")
      ->check(CLI::Range(0, 1 << 20));
  which
      ->add_option("--domain", arguments->domain,
                   "Of all workers of a domain, as dd2 status names it")
      ->type_name("NAME");
  which->add_option("--agent", arguments->agent, "Of a domain's agent")->type_name("NAME");
  which->add_flag("--job", arguments->job, "Of the Slurm job with `dd2 run`");
  which->require_option(0, 1);
  command->add_option("-n,--lines", arguments->lines, "So many lines (40)")
      ->type_name("N")
      ->check(CLI::Range(0, 1000000));
  command->add_flag("-f,--follow", arguments->follow,
                    "Go on with what is written (Ctrl-C ends it)");
  command->callback([arguments, &exit_code] { exit_code = ShowLog(*arguments); });
}

}  // namespace dd2
