#include "common/config_site.h"

#include <utility>

#include "common/config_settings.h"

namespace dd2 {
namespace {

using S = SiteConfig;

// clang-format off
constexpr Setting<S> kSiteSettings[] = {
    {{"shape", "", 0, 0, kPlain, "one-allocation (one job for all nodes) or job-per-node (a small job for the coordinator, one for each node)."},
     [](S& c) -> SettingField { return &c.shape; }},
    {{"partition", "", 0, 0, kPlain, "Partition of the jobs."},
     [](S& c) -> SettingField { return &c.partition; }},
    {{"account", "", 0, 0, kPlain, "Account that is charged."},
     [](S& c) -> SettingField { return &c.account; }},
    {{"qos", "", 0, 0, kPlain, "Quality of service."},
     [](S& c) -> SettingField { return &c.qos; }},
    {{"constraint", "", 0, 0, kPlain, "Features that a node must have."},
     [](S& c) -> SettingField { return &c.constraint; }},
    {{"gres", "", 0, 0, kPlain, "Devices of each node, as gpu:8."},
     [](S& c) -> SettingField { return &c.gres; }},
    {{"time", "", 0, 0, kPlain, "Time limit of a job, as 24:00:00; the run goes on in the next one."},
     [](S& c) -> SettingField { return &c.time; }},
    {{"grace", "s", 10, 86400, kPlain, "Before the time limit: for the step that is computed and a checkpoint."},
     [](S& c) -> SettingField { return &c.grace; }},
    {{"host", "", 0, 0, kPlain, "Where the nodes reach the coordinator: an address, an interface, a network as 10.1.0.0/16; empty: by rule."},
     [](S& c) -> SettingField { return &c.host; }},
    {{"scratch", "", 0, 0, kPath, "Folder, shared by all nodes, that run folders are made in; empty: runs/ in the working folder."},
     [](S& c) -> SettingField { return &c.scratch; }},
    {{"coordinator.partition", "", 0, 0, kPlain, "job-per-node: partition of the coordinator's job, which needs no device; empty: that of the others."},
     [](S& c) -> SettingField { return &c.coordinator_partition; }},
    {{"coordinator.time", "", 0, 0, kPlain, "job-per-node: time limit of the coordinator's job; empty: that of the others."},
     [](S& c) -> SettingField { return &c.coordinator_time; }},
};
// clang-format on

// Lists of words; each a line of a script, or a part of one.
struct SiteList {
  const char* key;
  const char* sentence;
  std::vector<std::string> S::*field;
};
constexpr SiteList kSiteLists[] = {
    {"sbatch", "More options of sbatch for jobs with workers.", &S::sbatch},
    {"modules", "Environment modules that each script loads.", &S::modules},
    {"prolog", "Lines of the shell that each script begins with, after the modules.", &S::prolog},
    {"srun", "More options of the srun that starts an agent, as --container-image=... of Pyxis.",
     &S::srun},
    {"container", "Words in front of an agent that run it in a container, as apptainer exec ...",
     &S::container},
};
constexpr const char* kCoordinatorSbatch = "coordinator.sbatch";
constexpr const char* kCoordinatorSentence =
    "job-per-node: more options of sbatch for the coordinator's job.";

void ReadList(const ConfigNode* node, const std::string& key, std::vector<std::string>& words,
              ConfigProblems& problems) {
  if (node == nullptr || node->kind == ConfigNode::Kind::kNull) return;
  if (node->kind != ConfigNode::Kind::kList) {
    problems.Add(node->where, key, "expected a list, an item for each: [A, B]");
    return;
  }
  for (const ConfigNode& item : node->list) {
    if (item.kind != ConfigNode::Kind::kScalar || item.scalar.empty() ||
        item.scalar.find('\n') != std::string::npos) {
      problems.Add(item.where, key, "each item must be one line of text");
      continue;
    }
    words.push_back(item.scalar);
  }
}

}  // namespace

Result<SiteConfig> ParseSiteConfig(std::string_view yaml, const std::string& label,
                                   const std::filesystem::path& folder) {
  DD2_TRY_ASSIGN(const ConfigNode root, ParseConfigTree(yaml, label));
  ConfigProblems problems;
  SettingsReader reader(folder, problems);
  reader.Remember("", root.where);
  SiteConfig site;
  std::vector<std::string> lists;
  for (const SiteList& list : kSiteLists) {
    lists.emplace_back(list.key);
    ReadList(root.Find(list.key), list.key, site.*list.field, problems);
  }
  lists.emplace_back(kCoordinatorSbatch);
  if (const ConfigNode* coordinator = root.Find("coordinator")) {
    ReadList(coordinator->Find("sbatch"), kCoordinatorSbatch, site.coordinator_sbatch, problems);
  }
  reader.Read(root, "", Bind(std::span<const Setting<S>>(kSiteSettings), site), lists, "");
  if (site.shape != kOneAllocation && site.shape != kJobPerNode && !reader.Failed("shape")) {
    problems.Add(reader.Where("shape"), "shape",
                 "'" + site.shape + "' is neither " + kOneAllocation + " nor " + kJobPerNode);
  }
  if (!problems.empty()) return problems.ToError();
  return site;
}

Result<SiteConfig> LoadSiteConfig(const std::filesystem::path& path) {
  DD2_TRY_ASSIGN(const std::string text, ReadConfigFile(path));
  return ParseSiteConfig(text, path.string(), path.parent_path());
}

std::string DescribeSiteSettings() {
  SiteConfig defaults;
  std::string out = "## Settings of a Slurm site (slurm/site.yaml)\n\n" +
                    DescribeTable(Bind(std::span<const Setting<S>>(kSiteSettings), defaults)) +
                    "\nLists of words:\n\n| setting | what it is |\n|---|---|\n";
  const auto add = [&out](const std::string& key, const std::string& sentence) {
    out += "| `" + key + "` | " + sentence + " |\n";
  };
  for (const SiteList& list : kSiteLists) add(list.key, list.sentence);
  add(kCoordinatorSbatch, kCoordinatorSentence);
  return out;
}

}  // namespace dd2
