#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>

#include "cli/commands.h"
#include "cli/plan.h"
#include "common/config.h"
#include "common/exit_codes.h"

namespace dd2 {
namespace {

struct PlanArguments {
  std::string config;
  std::vector<std::string> overrides;
  std::string hardware = "cpu";
  std::string teacher;   // empty: the configuration's
  int nodes = 0;         // 0: this machine, with all domains of the configuration; devices: 1
  int ranks = 0;         // 0: the configuration's ranks, with devices 8
  double memory_gb = 0;  // of a node; 0: not known, cpu: that of this machine
  bool json = false;
};

Result<PlanInput> InputOf(const PlanArguments& arguments) {
  PlanInput input;
  DD2_TRY_ASSIGN(input.config, LoadRunConfig(arguments.config, arguments.overrides));
  DD2_TRY_ASSIGN(input.hardware, FindHardware(arguments.hardware));
  DD2_TRY_ASSIGN(input.model, arguments.teacher.empty() ? ReadModelSizes(input.config.teacher.path)
                                                        : FindModel(arguments.teacher));
  const bool device = input.hardware.device;
  input.node_memory = std::llround(arguments.memory_gb * 1e9);
  if (!device && input.node_memory == 0) {
    input.this_machine = true;
    input.node_memory = std::int64_t{sysconf(_SC_PHYS_PAGES)} * std::int64_t{sysconf(_SC_PAGESIZE)};
  }
  const bool here = !device && arguments.nodes == 0;
  input.domains = here ? input.config.domains : std::max(1, arguments.nodes);
  input.domains_per_node = here ? input.domains : 1;
  input.ranks = arguments.ranks > 0 ? arguments.ranks
                : device            ? kDevicesOfNode
                                    : input.config.ranks;
  return input;
}

int ShowPlan(const PlanArguments& arguments) {
  const auto input = InputOf(arguments);
  if (!input) return Fail(input.error());
  const auto plan = MakePlan(*input);
  if (!plan) return Fail(plan.error());
  const auto alternatives = AlternativesTo(*input, *plan);
  if (arguments.json) {
    std::printf("%s\n", boost::json::serialize(PlanDocument(*input, *plan, alternatives)).c_str());
  } else {
    std::fputs(FormatPlan(*input, *plan, alternatives).c_str(), stdout);
  }
  return plan->fits ? kExitOk : kExitCannotStart;
}

}  // namespace

void AddPlanCommand(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand(
      "plan", "What a run needs and how long it takes: memory, time, disk, and what to change");
  auto arguments = std::make_shared<PlanArguments>();
  command->add_option("config", arguments->config, "YAML file of a run")
      ->required()
      ->type_name("CONFIG");
  command->add_option("--gpu", arguments->hardware, "What the ranks compute on (cpu)")
      ->type_name("NAME")
      ->check(CLI::IsMember(HardwareNames()));
  command
      ->add_option("--nodes", arguments->nodes,
                   "Machines, a domain on each (1; cpu: this one, with all domains)")
      ->type_name("N")
      ->check(CLI::Range(1, 4096));
  command
      ->add_option("--ranks-per-node", arguments->ranks,
                   "Ranks, or devices, of each domain (cpu: ranks, else 8)")
      ->type_name("R")
      ->check(CLI::Range(1, 1024));
  command
      ->add_option("--memory", arguments->memory_gb, "Memory of a node (cpu: that of this machine)")
      ->type_name("GB")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--teacher", arguments->teacher,
                   "Instead of the configuration's: a folder, or one of the released ones by name")
      ->type_name("NAME|DIR");
  command->add_option("--set", arguments->overrides, "Overrule a setting (may be repeated)")
      ->type_name("KEY.PATH=VALUE")
      ->allow_extra_args(false);
  command->add_flag("--json", arguments->json, "One JSON object");
  command->callback([arguments, &exit_code] { exit_code = ShowPlan(*arguments); });
}

}  // namespace dd2
