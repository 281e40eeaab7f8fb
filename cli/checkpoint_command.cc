#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "cli/checkpoint_files.h"
#include "cli/commands.h"
#include "cli/format.h"
#include "common/exit_codes.h"
#include "common/json.h"
#include "proto/control.pb.h"
#include "storage/checkpoint_store.h"

namespace dd2 {
namespace {

namespace json = boost::json;

struct CheckpointArguments {
  std::string run;
  std::string id;
  bool json = false;
};

void PrintRow(const char* id, const std::string& what) {
  std::printf("%-18s  %s\n", id, what.c_str());
}

Status ListOne(const CheckpointArguments& arguments, const std::string& id, json::array& rows) {
  json::object row;
  row["id"] = id;
  const auto manifest = ReadManifest(RealFileSystem(), CheckpointsOf(arguments.run), id);
  if (!manifest) {
    row["state"] = "damaged";
    row["reason"] = manifest.error().message();
    rows.push_back(std::move(row));
    if (!arguments.json) PrintRow(id.c_str(), "damaged: " + manifest.error().message());
    return manifest.error();
  }
  const auto& header = manifest->header();
  std::int64_t bytes = 0;
  for (const auto& part : manifest->parts()) bytes += part.size_bytes();
  row["state"] = "committed";
  row["phase"] = header.phase();
  row["step"] = header.step();
  row["parts"] = manifest->parts_size();
  row["bytes"] = bytes;
  row["committed_unix_ms"] = manifest->committed_unix_ms();
  rows.push_back(std::move(row));
  if (arguments.json) return {};
  std::printf("%-18s  phase %d step %-6lld  %2d parts  %9s  %s\n", id.c_str(), header.phase(),
              static_cast<long long>(header.step()), manifest->parts_size(),
              FormatBytes(bytes).c_str(), FormatTime(manifest->committed_unix_ms()).c_str());
  return {};
}

Status ListQuarantined(const CheckpointArguments& arguments, json::array& rows) {
  DD2_TRY_ASSIGN(const auto quarantined, QuarantinedCheckpoints(arguments.run));
  for (const QuarantinedCheckpoint& one : quarantined) {
    json::object row;
    row["id"] = one.id;
    row["state"] = "quarantined";
    row["reason"] = one.reason;
    row["folder"] = one.folder.string();
    row["quarantined_unix_ms"] = one.unix_ms;
    rows.push_back(std::move(row));
    if (arguments.json) continue;
    PrintRow(one.id.c_str(), "quarantined " + FormatTime(one.unix_ms) + ": " + one.reason);
  }
  return {};
}

// A damaged manifest decides the exit code, but all are listed.
Status List(const CheckpointArguments& arguments) {
  DD2_TRY_ASSIGN(const auto ids, CheckpointIds(arguments.run));
  json::array rows;
  Status result;
  for (const auto& id : ids) {
    const Status listed = ListOne(arguments, id, rows);
    if (!listed && result) result = listed;
  }
  DD2_TRY(ListQuarantined(arguments, rows));
  if (arguments.json) {
    std::printf("%s\n", json::serialize(rows).c_str());
  } else if (ids.empty()) {
    std::printf("no committed checkpoint in %s\n", arguments.run.c_str());
  }
  return result;
}

// Reads and hashes every byte of every checkpoint (or of the one asked for). The first damaged one
// decides the exit code, but all are reported.
Status Verify(const CheckpointArguments& arguments) {
  std::vector<std::string> ids;
  if (arguments.id.empty()) {
    DD2_TRY_ASSIGN(ids, CheckpointIds(arguments.run));
  } else {
    DD2_TRY_ASSIGN(const auto id, ChooseCheckpoint(arguments.run, arguments.id));
    ids.push_back(id);
  }
  Status result;
  json::array rows;
  for (const auto& id : ids) {
    const Status status = VerifyCheckpoint(RealFileSystem(), CheckpointsOf(arguments.run), id);
    if (!status && result) result = Error(status.error()).Wrap(id);
    if (arguments.json) {
      json::object row;
      row["id"] = id;
      row["ok"] = status.has_value();
      if (!status) row["error"] = status.error().message();
      rows.push_back(std::move(row));
    } else {
      std::printf("%s  %s\n", id.c_str(), status ? "ok" : status.error().message().c_str());
    }
  }
  if (arguments.json) std::printf("%s\n", json::serialize(rows).c_str());
  if (ids.empty() && !arguments.json) {
    std::printf("no committed checkpoint in %s\n", arguments.run.c_str());
  }
  return result;
}

// One line per group, independent of the sharding, so that two runs can be compared with diff.
Status Digest(const CheckpointArguments& arguments) {
  DD2_TRY_ASSIGN(const auto id, ChooseCheckpoint(arguments.run, arguments.id));
  DD2_TRY_ASSIGN(const auto reader,
                 CheckpointReader::Open(RealFileSystem(), CheckpointsOf(arguments.run), id));
  DD2_TRY_ASSIGN(const auto digests, DigestByGroup(reader));
  if (!arguments.json) {
    for (const auto& [group, digest] : digests) {
      std::printf("%-20s %s\n", group.c_str(), digest.Hex().c_str());
    }
    return {};
  }
  json::object groups;
  for (const auto& [group, digest] : digests) groups[group] = digest.Hex();
  json::object document;
  document["id"] = id;
  document["groups"] = std::move(groups);
  std::printf("%s\n", json::serialize(document).c_str());
  return {};
}

void AddOne(CLI::App& parent, int& exit_code, const char* name, const char* text,
            Status (*action)(const CheckpointArguments&)) {
  auto arguments = std::make_shared<CheckpointArguments>();
  CLI::App* command = parent.add_subcommand(name, text);
  command->add_option("run", arguments->run, "Folder of the run")->required()->type_name("RUN");
  if (action != List) {
    command->add_option("--id", arguments->id, "A checkpoint's id")->type_name("ID");
  }
  command->add_flag("--json", arguments->json, "Print JSON");
  command->callback([arguments, action, &exit_code] {
    const Status status = action(*arguments);
    if (!status) exit_code = Fail(status.error());
  });
}

}  // namespace

void AddCheckpointCommands(CLI::App& app, int& exit_code) {
  auto arguments = std::make_shared<CheckpointArguments>();
  CLI::App* command =
      app.add_subcommand("checkpoint", "Make a checkpoint now, or look at the ones that exist");
  command->require_subcommand(0, 1);
  command->add_option("run", arguments->run, "Folder of a live run: make a checkpoint now")
      ->type_name("RUN");
  command->add_flag("--json", arguments->json, "Print JSON");
  AddOne(*command, exit_code, "ls",
         "List the checkpoints of a run, and those in quarantine with the reason", List);
  AddOne(*command, exit_code, "verify",
         "Read every byte of the checkpoints of a run and compare the hashes", Verify);
  AddOne(*command, exit_code, "digest",
         "One hash per network, EMA and optimiser state of the newest checkpoint; it does not\n"
         "depend on the number of ranks, so two runs can be compared with diff",
         Digest);
  AddCheckpointTools(*command, exit_code);
  command->callback([command, arguments, &exit_code] {
    if (!command->get_subcommands().empty()) return;
    if (arguments->run.empty()) throw CLI::RequiredError("run");
    exit_code = SendControl(arguments->run, "checkpoint", arguments->json);
  });
}

}  // namespace dd2
