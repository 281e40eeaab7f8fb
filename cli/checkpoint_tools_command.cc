// dd2 checkpoint show|reshard|export|prune. None of them needs LibTorch.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <system_error>

#include "cli/checkpoint_files.h"
#include "cli/checkpoint_prune.h"
#include "cli/commands.h"
#include "cli/format.h"
#include "common/exit_codes.h"
#include "common/json.h"
#include "proto/control.pb.h"
#include "proto/retention.h"
#include "storage/checkpoint_store.h"
#include "storage/checkpoint_tools.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

struct ToolArguments {
  std::string run;
  std::string id;
  std::string out;
  std::string network = "generator";
  std::string what = "ema";
  int ranks = 0;
  int keep = 0;  // 0: as the run's settings say
  bool dry_run = false;
  bool json = false;
};

void Print(const json::object& document) { std::printf("%s\n", json::serialize(document).c_str()); }

Result<CheckpointReader> OpenChosen(const ToolArguments& arguments) {
  DD2_TRY_ASSIGN(const std::string id, ChooseCheckpoint(arguments.run, arguments.id));
  return CheckpointReader::Open(RealFileSystem(), CheckpointsOf(arguments.run), id);
}

json::object CountersOf(const proto::Counters& counters) {
  return {{"outer_cycles", counters.outer_cycles()},
          {"generator_updates", counters.generator_updates()},
          {"guidance_updates", counters.guidance_updates()},
          {"skipped_updates", counters.skipped_updates()},
          {"phase_generator_updates", counters.phase_generator_updates()},
          {"phase_guidance_updates", counters.phase_guidance_updates()}};
}

json::object Describe(const proto::CheckpointManifest& manifest) {
  const proto::CheckpointHeader& header = manifest.header();
  json::object document{{"id", manifest.checkpoint_id()},
                        {"run_id", manifest.run_id()},
                        {"phase", header.phase()},
                        {"step", header.step()},
                        {"ordinal", manifest.ordinal()},
                        {"committed_unix_ms", manifest.committed_unix_ms()},
                        {"world_size", header.world_size()},
                        {"seed", header.seed()},
                        {"config_digest", header.config_digest()},
                        {"teacher_digest", header.teacher_digest()},
                        {"numeric_mode", header.numeric_mode()},
                        {"code_version", header.code_version()},
                        {"counters", CountersOf(header.counters())},
                        {"evaluation", nullptr}};
  if (manifest.has_evaluation()) {
    document["evaluation"] = {
        {"phase", manifest.evaluation().phase()},
        {"step", manifest.evaluation().step()},
        {manifest.evaluation().has_fid() ? "fid" : "fdr", DistanceOf(manifest.evaluation())}};
  }
  json::array parts;
  for (const proto::CheckpointPart& part : manifest.parts()) {
    parts.push_back({{"file", part.file()},
                     {"bytes", part.size_bytes()},
                     {"pieces", part.pieces_size()},
                     {"xxh3_128", part.hash()}});
  }
  document["parts"] = std::move(parts);
  json::object groups;
  for (const auto& [name, group] : GroupsOf(manifest)) {
    groups[name] = {{"tensors", group.tensors}, {"elements", group.elements}};
  }
  document["groups"] = std::move(groups);
  return document;
}

void PrintText(const proto::CheckpointManifest& manifest) {
  const proto::CheckpointHeader& header = manifest.header();
  const auto line = [](const char* name, const std::string& value) {
    std::printf("%-14s  %s\n", name, value.c_str());
  };
  line("checkpoint", manifest.checkpoint_id() + " of run " + manifest.run_id() + ", number " +
                         (manifest.ordinal() > 0 ? std::to_string(manifest.ordinal()) : "unknown"));
  line("position",
       "phase " + std::to_string(header.phase()) + ", step " + std::to_string(header.step()));
  line("committed", FormatTime(manifest.committed_unix_ms()));
  for (const auto& [name, value] : CountersOf(header.counters())) {
    if (value.as_int64() != 0) line(std::string(name).c_str(), std::to_string(value.as_int64()));
  }
  if (manifest.has_evaluation()) {
    const proto::Evaluation& evaluation = manifest.evaluation();
    line(evaluation.has_fid() ? "FID" : "FDr",
         FormatValue(DistanceOf(evaluation)) + ", evaluated at phase " +
             std::to_string(evaluation.phase()) + ", step " + std::to_string(evaluation.step()));
  }
  line("seed", std::to_string(header.seed()));
  line("configuration", header.config_digest());
  line("teacher", header.teacher_digest());
  line("numeric mode", header.numeric_mode());
  line("code version", header.code_version());
  line("world size", std::to_string(header.world_size()));
  for (const proto::CheckpointPart& part : manifest.parts()) {
    std::printf("  %-28s %10s  %5d pieces  %s\n", part.file().c_str(),
                FormatBytes(part.size_bytes()).c_str(), part.pieces_size(), part.hash().c_str());
  }
  std::printf("%-14s  %s\n", "tensors", "all fp32");
  for (const auto& [name, group] : GroupsOf(manifest)) {
    std::printf("  %-28s %10lld elements in %lld tensors\n", name.c_str(),
                static_cast<long long>(group.elements), static_cast<long long>(group.tensors));
  }
}

// Of the manifest only: nothing is read that could be large.
Status Show(const ToolArguments& arguments) {
  DD2_TRY_ASSIGN(const std::string id, ChooseCheckpoint(arguments.run, arguments.id));
  DD2_TRY_ASSIGN(const proto::CheckpointManifest manifest,
                 ReadManifest(RealFileSystem(), CheckpointsOf(arguments.run), id));
  if (arguments.json) {
    Print(Describe(manifest));
  } else {
    PrintText(manifest);
  }
  return {};
}

Status Reshard(const ToolArguments& arguments) {
  std::error_code ignored;
  fs::path out = fs::absolute(arguments.out).lexically_normal();
  if (!out.has_filename()) out = out.parent_path();  // it ended with a slash
  if (fs::exists(out / "config.yaml", ignored)) {
    return Error(Code::kFailedPrecondition,
                 out.string() +
                     " holds a run, whose journal would not know the checkpoint: choose "
                     "another folder");
  }
  DD2_TRY_ASSIGN(const CheckpointReader source, OpenChosen(arguments));
  DD2_TRY(ReshardCheckpoint(RealFileSystem(), source, arguments.ranks, CheckpointsOf(out)));
  // It may have been made just now.
  DD2_TRY(RealFileSystem().SyncDirectory(out.parent_path()));
  const std::string& id = source.manifest().checkpoint_id();
  if (arguments.json) {
    Print({{"id", id}, {"folder", (CheckpointsOf(out) / id).string()}, {"parts", arguments.ranks}});
  } else {
    std::printf("%s: %d parts; `dd2 checkpoint digest %s` gives the same lines as that of %s\n",
                (CheckpointsOf(out) / id).c_str(), arguments.ranks, out.c_str(),
                arguments.run.c_str());
  }
  return {};
}

Status Export(const ToolArguments& arguments) {
  std::error_code ignored;
  if (fs::is_directory(arguments.out, ignored)) {
    return Error(Code::kInvalidArgument, arguments.out + " is a folder: name a file with --out");
  }
  DD2_TRY_ASSIGN(const CheckpointReader source, OpenChosen(arguments));
  const proto::CheckpointManifest& manifest = source.manifest();
  if (arguments.network == "generator" && manifest.header().counters().generator_updates() == 0) {
    return Error(Code::kFailedPrecondition,
                 "checkpoint " + manifest.checkpoint_id() +
                     " is older than the first generator update: there is no generator to export "
                     "yet (--network guidance has what was trained)");
  }
  const std::string group = arguments.network + "." + arguments.what;
  DD2_TRY_ASSIGN(const WrittenFile written,
                 ExportGroup(RealFileSystem(), source, group, arguments.out));
  if (arguments.json) {
    Print({{"id", manifest.checkpoint_id()},
           {"group", group},
           {"file", arguments.out},
           {"bytes", written.size_bytes},
           {"xxh3_128", written.hash.Hex()}});
  } else {
    std::printf("%s: %s of %s, %s\n", arguments.out.c_str(), group.c_str(),
                manifest.checkpoint_id().c_str(),
                FormatBytes(static_cast<std::int64_t>(written.size_bytes)).c_str());
  }
  return {};
}

json::array Texts(const std::vector<std::string>& lines) {
  json::array texts;
  for (const std::string& line : lines) texts.emplace_back(line);
  return texts;
}

int Prune(const ToolArguments& arguments) {
  PruneRequest request;
  request.run = arguments.run;
  if (arguments.keep > 0) request.keep = arguments.keep;
  request.dry_run = arguments.dry_run;
  const auto outcome = PruneRun(RealFileSystem(), request);
  if (!outcome) {
    std::fprintf(stderr, "dd2: %s\n", outcome.error().message.c_str());
    return outcome.error().exit_code;
  }
  if (arguments.json) {
    Print({{"rule", outcome->rule},
           {"dry_run", arguments.dry_run},
           {"kept", Texts(outcome->kept)},
           {"deleted", Texts(outcome->deleted)},
           {"damaged", Texts(outcome->damaged)},
           {"freed_bytes", outcome->freed_bytes}});
    return kExitOk;
  }
  const char* verb = arguments.dry_run ? "would be deleted" : "deleted";
  for (const std::string& id : outcome->kept) std::printf("%s  kept\n", id.c_str());
  for (const std::string& id : outcome->deleted) std::printf("%s  %s\n", id.c_str(), verb);
  for (const std::string& bad : outcome->damaged) {
    std::printf("%s; left as it is: the next `dd2 run --resume` puts it into quarantine\n",
                bad.c_str());
  }
  std::printf("%s: %zu %s, %s\n", outcome->rule.c_str(), outcome->deleted.size(), verb,
              FormatBytes(outcome->freed_bytes).c_str());
  return kExitOk;
}

std::shared_ptr<ToolArguments> AddTool(CLI::App& command) {
  auto arguments = std::make_shared<ToolArguments>();
  command.add_option("run", arguments->run, "Folder of the run")->required()->type_name("RUN");
  command.add_flag("--json", arguments->json, "Print JSON");
  return arguments;
}

void AddId(CLI::App& command, ToolArguments& arguments) {
  command.add_option("--id", arguments.id, "A checkpoint's id; the newest unless given")
      ->type_name("ID");
}

void SetAction(CLI::App& command, int& exit_code, const std::shared_ptr<ToolArguments>& arguments,
               Status (*action)(const ToolArguments&)) {
  command.callback([arguments, action, &exit_code] {
    const Status status = action(*arguments);
    if (!status) exit_code = Fail(status.error());
  });
}

}  // namespace

void AddCheckpointTools(CLI::App& app, int& exit_code) {
  CLI::App* show = app.add_subcommand(
      "show", "What a checkpoint is: position, counters, digests, parts, groups of tensors");
  const auto shown = AddTool(*show);
  AddId(*show, *shown);
  SetAction(*show, exit_code, shown, Show);

  CLI::App* reshard = app.add_subcommand(
      "reshard", "Write a checkpoint once more, cut for another number of ranks");
  const auto resharded = AddTool(*reshard);
  AddId(*reshard, *resharded);
  reshard->add_option("--ranks", resharded->ranks, "Parts of the new checkpoint")
      ->required()
      ->type_name("N");
  reshard->add_option("--out", resharded->out, "The new one is DIR/checkpoints/ID")
      ->required()
      ->type_name("DIR");
  SetAction(*reshard, exit_code, resharded, Reshard);

  CLI::App* exported =
      app.add_subcommand("export", "Write one network of a checkpoint as a plain safetensors file");
  const auto export_arguments = AddTool(*exported);
  AddId(*exported, *export_arguments);
  exported->add_option("--out", export_arguments->out, "The file to write")
      ->required()
      ->type_name("FILE.safetensors");
  exported->add_option("--network", export_arguments->network, "generator (default) or guidance")
      ->check(CLI::IsMember({"generator", "guidance"}));
  exported
      ->add_option("--what", export_arguments->what,
                   "ema (default: the moving average) or param (the weights as trained)")
      ->check(CLI::IsMember({"ema", "param"}));
  SetAction(*exported, exit_code, export_arguments, Export);

  CLI::App* prune = app.add_subcommand(
      "prune", "Delete the checkpoints of a run that is not live which its rule does not keep");
  const auto pruned = AddTool(*prune);
  prune->add_option("--keep", pruned->keep, "Newest ones to keep, instead of checkpoint.keep_last")
      ->check(CLI::Range(1, 1'000'000'000))
      ->type_name("N");
  prune->add_flag("--dry-run", pruned->dry_run, "Only say what would be deleted");
  prune->callback([pruned, &exit_code] { exit_code = Prune(*pruned); });
}

}  // namespace dd2
